"""``python -m fastdiff.zoo.training STAGE --run DIR``: the stages in their order are vae, text_encoder, unet,
and decoder, which improves the autoencoder's decoder at any time after vae.
"""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path

import torch

from fastdiff.zoo.training.trainer import Settings, run_processes

BUDGETS = {
    "vae": Settings(steps=4_500, batch=8, lr=1e-3, warmup=50),
    "decoder": Settings(steps=6_000, batch=8, lr=1e-3, warmup=50),
    "text_encoder": Settings(steps=1_600, batch=32, lr=1e-3, warmup=100, ema=0.99),
    "unet": Settings(steps=8_000, batch=32, lr=7e-4, warmup=300, ema=0.999),
}


def main() -> None:
    """Train one stage, resuming what the run folder holds."""
    parser = argparse.ArgumentParser(prog="python -m fastdiff.zoo.training", description=__doc__)
    parser.add_argument("stage", choices=list(BUDGETS))
    parser.add_argument(
        "--run", type=Path, default=Path("runs/scenes"), help="folder of checkpoints and logs"
    )
    parser.add_argument("--steps", type=int, help="optimiser steps (default: the published budget)")
    parser.add_argument("--batch", type=int)
    parser.add_argument("--lr", type=float)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--processes", type=int, default=1, help="data-parallel processes of the unet stage")
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    given = {k: v for k in ("steps", "batch", "lr") if (v := getattr(args, k)) is not None}
    settings = Settings(**{**BUDGETS[args.stage].__dict__, **given})
    if args.stage == "vae":
        from fastdiff.zoo.training.vae import train_vae

        train_vae(args.run, settings)
    elif args.stage == "decoder":
        from fastdiff.zoo.training.vae import train_decoder

        train_decoder(args.run, settings)
    elif args.stage == "text_encoder":
        from fastdiff.zoo.training.text_encoder import train_text_encoder

        train_text_encoder(args.run, settings)
    else:
        from fastdiff.zoo.training.unet import prepare_unet, train_unet

        prepare_unet(args.run, settings.seed)
        run_processes(args.processes, partial(train_unet, args.run, settings))


if __name__ == "__main__":
    main()
