"""What the three stages share: optimiser, learning-rate schedule, EMA, checkpoints, log."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

__all__ = ["Settings", "train"]


@dataclass(frozen=True)
class Settings:
    """One stage's budget. ``ema`` is the decay at the end; it warms up as (1 + step) / (10 + step)."""

    steps: int
    batch: int
    lr: float
    warmup: int = 200
    ema: float = 0.999
    weight_decay: float = 0.01
    seed: int = 0
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

    Resumes from ``run/name.pt`` when it is there; appends ``{step, loss, lr, seconds}`` to ``run/name.jsonl``.
    Each step draws from a generator seeded by (seed, step), so that a resumed run sees the same data.
    """
    run.mkdir(parents=True, exist_ok=True)
    parameters = list(trained if trained is not None else modules.parameters())
    optimiser = torch.optim.AdamW(
        parameters, lr=settings.lr, betas=(0.9, 0.99), weight_decay=settings.weight_decay, fused=True
    )
    torch.set_flush_denormal(True)
    ema = [p.detach().clone() for p in parameters]
    start, elapsed = _resume(run / f"{name}.pt", modules, optimiser, ema)
    clock, total, counted = time.monotonic() - elapsed, 0.0, 0
    for step in range(start, settings.steps):
        lr = _learning_rate(step, settings)
        for group in optimiser.param_groups:
            group["lr"] = lr
        generator = torch.Generator().manual_seed(settings.seed * 1_000_003 + step)
        value = loss(generator)
        optimiser.zero_grad(set_to_none=True)
        value.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimiser.step()
        decay = min(settings.ema, (1 + step) / (10 + step))
        torch._foreach_lerp_(ema, [p.detach() for p in parameters], 1 - decay)
        total, counted = total + float(value), counted + 1
        if (step + 1) % settings.log_every == 0:
            row = {"step": step + 1, "loss": total / counted, "lr": lr, "seconds": round(time.monotonic() - clock, 1)}
            with (run / f"{name}.jsonl").open("a") as log:
                log.write(json.dumps(row) + "\n")
            total, counted = 0.0, 0
        if (step + 1) % settings.save_every == 0 or step + 1 == settings.steps:
            _save(run / f"{name}.pt", modules, optimiser, ema, step + 1, time.monotonic() - clock)
    with torch.no_grad():
        for p, e in zip(parameters, ema, strict=True):
            p.copy_(e)
    return modules


def _learning_rate(step: int, s: Settings) -> float:
    """Linear warm-up, then a cosine to 2 % of the peak."""
    if step < s.warmup:
        return s.lr * (step + 1) / s.warmup
    t = (step - s.warmup) / max(1, s.steps - s.warmup)
    return s.lr * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * min(1.0, t))))


def _save(
    path: Path, modules: nn.ModuleDict, optimiser: torch.optim.Optimizer, ema: list[Tensor], step: int, seconds: float
) -> None:
    state = {
        "step": step,
        "seconds": seconds,
        "modules": modules.state_dict(),
        "optimiser": optimiser.state_dict(),
        "ema": ema,
    }
    torch.save(state, path.with_suffix(".tmp"))
    os.replace(path.with_suffix(".tmp"), path)


def _resume(
    path: Path, modules: nn.ModuleDict, optimiser: torch.optim.Optimizer, ema: list[Tensor]
) -> tuple[int, float]:
    if not path.exists():
        return 0, 0.0
    state = torch.load(path, weights_only=True)
    modules.load_state_dict(state["modules"])
    optimiser.load_state_dict(state["optimiser"])
    for mine, stored in zip(ema, state["ema"], strict=True):
        mine.copy_(stored)
    return int(state["step"]), float(state["seconds"])
