"""Guidances, tables and a made-up denoiser with a negative prompt, which several tests share."""

from __future__ import annotations

import numpy as np

from fastdiff.samplers import (
    Guidance,
    NoiseSchedule,
    make_table,
)
from fastdiff.samplers.guidance import (
    APG,
    CFGZeroStar,
    Interval,
    PerpNeg,
    Schedule,
)
from tests.samplers.configs import STABLE_DIFFUSION
from tests.samplers.oracle import EXACT, model

SCHEDULE = NoiseSchedule.from_config(STABLE_DIFFUSION)
CLIPPED = NoiseSchedule.from_config({**STABLE_DIFFUSION, "clip_sample": True})
TABLES = {name: make_table(name, SCHEDULE, 12) for name in EXACT}
SHAPE = (2, 4, 5, 3)
LATENTS = np.random.default_rng(1).standard_normal(SHAPE).astype(np.float32)

ALL = {
    "plain": Guidance(3.0),
    "interval and schedule": Guidance(
        3.0, schedule=Schedule("linear", floor=1.5), interval=Interval(0.2, 0.8, "share")
    ),
    "rescale": Guidance(4.0, rescale=0.7, interval=Interval(0.0, 0.5, "share")),
    "zero star": Guidance(4.0, CFGZeroStar(2), rescale=0.3),
    "apg": Guidance(6.0, APG(0.3, -0.5, 2.0, "output"), schedule=Schedule("cosine"), rescale=0.5),
    "all at once": Guidance(
        6.0,
        APG(0.0, 0.4, 3.0, "output", "uncond"),
        Schedule("powered_cosine", 2.0, floor=2.0),
        Interval(0.1, 0.9, "share"),
        0.7,
        original=True,
    ),
    "perp neg": Guidance(3.0, PerpNeg(1.5), rescale=0.2),
}


def denoise(x: np.ndarray, timestep: float, guided: int) -> tuple[np.ndarray | None, ...]:
    parts = [model(factor * x, timestep).astype(x.dtype) for factor in (1, 0.5, -0.3)[: guided + 1]]
    return tuple(parts) if guided else (*parts, None)
