"""``python -m fastdiff.zoo.training COMMAND --run DIR``.

Stages in their order: vae, text_encoder, unet. tiny_vae, for previews, learns from the vae of --output.
Each resumes what the run folder holds. restore fills a run folder with the shipped weights, to train on from
there; assemble writes the checkpoint folder; evaluate measures it and writes figures, samples and loss
curves.
"""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path

import torch

from fastdiff.zoo import SHIPPED
from fastdiff.zoo.training.trainer import Settings, run_processes

BUDGETS = {
    "vae": Settings(steps=5_000, batch=16, lr=3e-3, warmup=50, muon=True),
    "text_encoder": Settings(steps=1_600, batch=32, lr=1e-3, warmup=100, ema=0.99),
    "unet": Settings(steps=6_000, batch=64, lr=3e-3, warmup=300, muon=True),
    "tiny_vae": Settings(steps=4_000, batch=16, lr=3e-3, warmup=50, muon=True),
}


def main() -> None:
    """Run one command."""
    parser = argparse.ArgumentParser(
        prog="python -m fastdiff.zoo.training",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("command", choices=[*BUDGETS, "restore", "assemble", "evaluate"])
    parser.add_argument("--run", type=Path, default=Path("runs/scenes"), help="checkpoints and logs")
    parser.add_argument("--output", type=Path, default=SHIPPED["scenes"], help="the checkpoint folder")
    parser.add_argument("--steps", type=int, help="optimiser steps (default: the published budget)")
    parser.add_argument("--batch", type=int, help="pictures per step and process")
    parser.add_argument("--lr", type=float, help="peak learning rate")
    parser.add_argument("--device", help="where PyTorch trains: cpu or cuda (default: cpu)")
    parser.add_argument("--threads", type=int, help="threads of one process")
    parser.add_argument("--processes", type=int, default=1, help="data-parallel processes")
    parser.add_argument("--muon", action=argparse.BooleanOptionalAction, help="train matrices with Muon")
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    if args.command in BUDGETS:
        names = ("steps", "batch", "lr", "device", "muon")
        given = {k: v for k in names if (v := getattr(args, k)) is not None}
        settings = Settings(**{**BUDGETS[args.command].__dict__, **given})
        _train(args.command, args.run, settings, args.processes, args.output)
    else:
        from fastdiff.zoo.training import assemble, evaluate

        if args.command == "restore":
            assemble.restore(args.output, args.run)
        elif args.command == "assemble":
            print(f"{args.output}: {assemble.assemble(args.run, args.output) / 1e6:.1f} MB")
        else:
            for name, value in evaluate.report(args.output, args.run).as_dict().items():
                print(f"{name:<12} {value:.4g}" if isinstance(value, float) else f"{name:<12} {value}")


def _train(stage: str, run: Path, settings: Settings, processes: int, checkpoint: Path) -> None:
    """Run one stage. Its imports take seconds, so only those of the chosen one are made."""
    if stage == "text_encoder":
        from fastdiff.zoo.training.text_encoder import train_text_encoder

        train_text_encoder(run, settings)
    elif stage == "tiny_vae":
        from fastdiff.zoo.training.tiny_vae import train_tiny_vae

        train_tiny_vae(run, settings, checkpoint)
    elif stage == "unet":
        from fastdiff.zoo.training.unet import prepare_unet, train_unet

        prepare_unet(run, settings.seed, settings.device)
        run_processes(processes, partial(train_unet, run, settings))
    else:
        from fastdiff.zoo.training.vae import train_vae

        run_processes(processes, partial(train_vae, run, settings))


if __name__ == "__main__":
    main()
