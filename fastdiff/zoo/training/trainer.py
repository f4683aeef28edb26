"""What the three stages share: optimiser, learning-rate schedule, EMA, checkpoints, log."""

from __future__ import annotations

import json
import math
import os
import tempfile
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn

__all__ = ["Settings", "run_processes", "train"]


@dataclass(frozen=True)
class Settings:
    """One stage's budget; ``batch`` is that of each process, ``device`` PyTorch's name of where it trains.
    ``ema`` is the decay at the end; it warms up
    as (1 + step) / (10 + step).
    """

    steps: int
    batch: int
    lr: float
    warmup: int = 200
    ema: float = 0.999
    weight_decay: float = 0.01
    seed: int = 0
    device: str = "cpu"
    save_every: int = 500
    log_every: int = 50


def train(
    name: str,
    run: Path,
    modules: nn.ModuleDict,
    loss: Callable[[torch.Generator], Tensor],
    settings: Settings,
    trained: Iterable[nn.Parameter] | None = None,
) -> nn.ModuleDict:
    """Train ``modules`` in place on ``loss(generator)`` and return them holding the EMA weights.

    Resumes from ``run/name.pt`` when it is there; appends ``{step, loss, lr, seconds}`` to
    ``run/name.jsonl``.
    Each step draws from a generator seeded by (seed, step, rank), so that a resumed run sees the same data.
    Under ``torch.distributed`` the gradients are averaged over the processes and rank 0 alone writes.
    """
    run.mkdir(parents=True, exist_ok=True)
    parameters = list(trained if trained is not None else modules.parameters())
    optimiser = torch.optim.AdamW(
        parameters, lr=settings.lr, betas=(0.9, 0.99), weight_decay=settings.weight_decay, fused=True
    )
    torch.set_flush_denormal(True)
    ema = [p.detach().clone() for p in parameters]
    rank, world = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    start, elapsed = _resume(run / f"{name}.pt", modules, optimiser, ema)
    clock, total, counted = time.monotonic() - elapsed, 0.0, 0
    for step in range(start, settings.steps):
        lr = _learning_rate(step, settings)
        for group in optimiser.param_groups:
            group["lr"] = lr
        generator = torch.Generator().manual_seed((settings.seed * 1_000_003 + step) * world + rank)
        value = loss(generator)
        optimiser.zero_grad(set_to_none=True)
        value.backward()  # type: ignore[no-untyped-call]
        if world > 1:
            _average_gradients(parameters, world)
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimiser.step()
        decay = min(settings.ema, (1 + step) / (10 + step))
        torch._foreach_lerp_(ema, [p.detach() for p in parameters], 1 - decay)
        total, counted = total + float(value.detach()), counted + 1
        if rank == 0 and (step + 1) % settings.log_every == 0:
            row = {
                "step": step + 1,
                "loss": total / counted,
                "lr": lr,
                "seconds": round(time.monotonic() - clock, 1),
            }
            with (run / f"{name}.jsonl").open("a") as log:
                log.write(json.dumps(row) + "\n")
            total, counted = 0.0, 0
        if rank == 0 and ((step + 1) % settings.save_every == 0 or step + 1 == settings.steps):
            _save(run / f"{name}.pt", modules, optimiser, ema, step + 1, time.monotonic() - clock)
    with torch.no_grad():
        for p, e in zip(parameters, ema, strict=True):
            p.copy_(e)
    return modules


def _average_gradients(parameters: list[nn.Parameter], world: int) -> None:
    """One all-reduce over all gradients together, sent as bfloat16."""
    gradients = [p.grad for p in parameters if p.grad is not None]
    flat = torch.cat([g.flatten().bfloat16() for g in gradients]).div_(world)
    dist.all_reduce(flat)
    parts = torch.split(flat, [g.numel() for g in gradients])
    for g, part in zip(gradients, parts, strict=True):
        g.copy_(part.view_as(g))


def run_processes(processes: int, stage: Callable[[], object]) -> None:
    """Run ``stage`` in that many processes on this machine, joined by ``torch.distributed`` (gloo)."""
    if processes == 1:
        stage()
    else:
        with tempfile.TemporaryDirectory() as folder:
            mp.start_processes(  # type: ignore[attr-defined, no-untyped-call]
                _worker, (processes, f"{folder}/meet", stage), nprocs=processes, start_method="spawn"
            )


def _worker(rank: int, world: int, meeting: str, stage: Callable[[], object]) -> None:
    dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=world)
    torch.set_num_threads(max(1, (os.cpu_count() or 1) // world))
    stage()
    dist.barrier()
    dist.destroy_process_group()


def _learning_rate(step: int, s: Settings) -> float:
    """Linear warm-up, then a cosine to 2 % of the peak."""
    if step < s.warmup:
        return s.lr * (step + 1) / s.warmup
    t = (step - s.warmup) / max(1, s.steps - s.warmup)
    return s.lr * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * min(1.0, t))))


def _save(
    path: Path,
    modules: nn.ModuleDict,
    optimiser: torch.optim.Optimizer,
    ema: list[Tensor],
    step: int,
    seconds: float,
) -> None:
    state = {
        "step": step,
        "seconds": seconds,
        "modules": modules.state_dict(),
        "optimiser": optimiser.state_dict(),
        "ema": ema,
    }
    torch.save(state, path.with_suffix(".tmp"))
    path.with_suffix(".tmp").replace(path)


def _resume(
    path: Path, modules: nn.ModuleDict, optimiser: torch.optim.Optimizer, ema: list[Tensor]
) -> tuple[int, float]:
    if not path.exists():
        return 0, 0.0
    state = torch.load(path, weights_only=True, map_location=ema[0].device)
    modules.load_state_dict(state["modules"])
    optimiser.load_state_dict(state["optimiser"])
    for mine, stored in zip(ema, state["ema"], strict=True):
        mine.copy_(stored)
    return int(state["step"]), float(state["seconds"])
