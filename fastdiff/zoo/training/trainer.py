"""What the three stages share: optimiser, learning-rate schedule, EMA, checkpoints, log."""

from __future__ import annotations

import json
import math
import os
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn

from fastdiff.zoo.training.muon import Muon

__all__ = ["Settings", "leads", "run_processes", "train"]


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
    muon: bool = False
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
) -> nn.ModuleDict:
    """Train ``modules`` in place on ``loss(generator)`` and return them in float32, holding the EMA weights.

    Parameters in bfloat16 are trained through float32 masters. Resumes from ``run/name.pt`` when it is there;
    appends ``{step, loss, lr, seconds}`` to ``run/name.jsonl``.
    Each step draws from a generator seeded by (seed, step, rank), so that a resumed run sees the same data.
    Under ``torch.distributed`` the gradients are averaged over the processes and rank 0 alone writes.
    """
    run.mkdir(parents=True, exist_ok=True)
    torch.set_flush_denormal(True)
    parameters = list(modules.parameters())
    masters = [nn.Parameter(p.detach().float().clone()) for p in parameters]
    ema = [m.detach().clone() for m in masters]
    optimisers = _optimisers(masters, settings)
    rank, world = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    start, elapsed = _resume(run / f"{name}.pt", masters, optimisers, ema)
    clock, total, counted = time.monotonic() - elapsed, 0.0, 0
    for step in range(start, settings.steps):
        _copy(masters, parameters)
        lr = _learning_rate(step, settings)
        for optimiser in optimisers:
            for group in optimiser.param_groups:
                group["lr"] = lr
        generator = torch.Generator().manual_seed((settings.seed * 1_000_003 + step) * world + rank)
        value = loss(generator)
        for p in parameters:
            p.grad = None
        value.backward()  # type: ignore[no-untyped-call]
        _average_gradients(parameters, masters, world)
        torch.nn.utils.clip_grad_norm_(masters, 1.0)
        for optimiser in optimisers:
            optimiser.step()
        decay = min(settings.ema, (1 + step) / (10 + step))
        torch._foreach_lerp_(ema, [m.detach() for m in masters], 1 - decay)
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
            _save(run / f"{name}.pt", masters, optimisers, ema, step + 1, time.monotonic() - clock)
    modules.float()
    _copy(ema, parameters)
    return modules


@torch.no_grad()
def _copy(source: Sequence[Tensor], target: Sequence[Tensor]) -> None:
    for t, s in zip(target, source, strict=True):
        t.copy_(s)


def _optimisers(parameters: list[nn.Parameter], s: Settings) -> list[torch.optim.Optimizer]:
    """Muon for weights with two or more axes if the settings say so, AdamW for the rest."""
    matrices = [p for p in parameters if s.muon and p.ndim > 1]
    rest = [p for p in parameters if not (s.muon and p.ndim > 1)]
    adamw = torch.optim.AdamW(rest, s.lr, betas=(0.9, 0.99), weight_decay=s.weight_decay, fused=True)
    return [adamw, Muon(matrices, s.lr, weight_decay=s.weight_decay)] if matrices else [adamw]


def _average_gradients(parameters: list[nn.Parameter], masters: list[nn.Parameter], world: int) -> None:
    """The masters' gradients: the parameters', averaged over the processes by one all-reduce in bfloat16."""
    gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
    flat = torch.cat([g.flatten() for g in gradients])
    if world > 1:
        flat = flat.bfloat16().div_(world)
        dist.all_reduce(flat)
    for m, part in zip(masters, torch.split(flat, [m.numel() for m in masters]), strict=True):
        m.grad = part.view_as(m).float()


def leads() -> bool:
    """Whether this process is the one that writes: the only one, or that of rank 0."""
    return not dist.is_initialized() or dist.get_rank() == 0


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
    masters: list[nn.Parameter],
    optimisers: list[torch.optim.Optimizer],
    ema: list[Tensor],
    step: int,
    seconds: float,
) -> None:
    state = {
        "step": step,
        "seconds": seconds,
        "parameters": [m.detach() for m in masters],
        "optimisers": [o.state_dict() for o in optimisers],
        "ema": ema,
    }
    torch.save(state, path.with_suffix(".tmp"))
    path.with_suffix(".tmp").replace(path)


def _resume(
    path: Path, masters: list[nn.Parameter], optimisers: list[torch.optim.Optimizer], ema: list[Tensor]
) -> tuple[int, float]:
    if not path.exists():
        return 0, 0.0
    state = torch.load(path, weights_only=True, map_location=ema[0].device)
    _copy(state["parameters"], masters)
    for optimiser, stored in zip(optimisers, state["optimisers"], strict=True):
        optimiser.load_state_dict(stored)
    _copy(state["ema"], ema)
    return int(state["step"]), float(state["seconds"])
