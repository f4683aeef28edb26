"""iPNDM: the linear multistep method of PNDM, "Pseudo Numerical Methods for Diffusion Models on Manifolds"
(Liu et al.), started by its own lower orders: Zhang and Chen, "Fast Sampling of Diffusion Models with
Exponential Integrator".
"""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np

from fastdiff.errors import InputError
from fastdiff.samplers.adams_bashforth import RING, Transfer, extrapolate
from fastdiff.samplers.chain import chain_timesteps, read_chain
from fastdiff.samplers.path import Point
from fastdiff.samplers.prediction import Prediction
from fastdiff.samplers.sampler import Sampler
from fastdiff.samplers.schedule import NoiseSchedule
from fastdiff.samplers.settings import Settings
from fastdiff.samplers.table import StepTable

__all__ = ["SAMPLERS", "ipndm", "sine_points"]

_LEAST_ALPHA = 1e-8  # diffusers' divisor where there is no signal


def ipndm(schedule: NoiseSchedule, steps: int) -> StepTable:
    """Up to four slopes, as many as there are, one evaluation per step.

    On the levels of the checkpoint's chain, with the options of `fastdiff.samplers.pndm.plms`. A config of
    diffusers' IPNDMScheduler has no such chain; it means `sine_points`, and by trained_betas their σ.
    """
    settings = schedule.settings("ipndm")
    if schedule.config.get("_class_name") == "IPNDMScheduler":
        points = sine_points(_levels(settings, steps))
    else:
        chain = read_chain(settings, schedule, "ipndm", set_alpha_to_one=False)
        points = [chain.at(t) for t in (*chain_timesteps(settings, schedule, steps), -1)]
    transfers = [_transfer(begin, end) for begin, end in pairwise(points)]
    return StepTable("ipndm", tuple(extrapolate(points[:-1], transfers, 0)), slots=RING)


def sine_points(sigmas: list[float]) -> list[Point]:
    """σ² + α² = 1 with the timestep 2/π·atan(σ/α), from 1 to 0, for a model that predicts v."""
    alphas = [math.sqrt(max(1 - sigma**2, 0.0)) for sigma in sigmas]
    return [
        Point(2 / math.pi * math.atan2(sigma, alpha), alpha, sigma, Prediction.V)
        for sigma, alpha in zip(sigmas, alphas, strict=True)
    ]


def _levels(settings: Settings, steps: int) -> list[float]:
    given = settings.numbers("trained_betas")
    if given is None:
        levels = np.square(np.sin(np.linspace(1, 0, steps + 1, dtype=np.float32) * np.float32(math.pi / 2)))
        return [float(level) for level in levels]
    if len(given) != steps + 1:
        raise InputError(
            f"trained_betas of the scheduler config has {len(given)} entries, sampler 'ipndm' wants one more "
            f"than steps, {steps + 1}; use {len(given) - 1} steps"
        )
    if not all(0 <= level <= 1 for level in given):
        raise InputError("trained_betas of the scheduler config goes beyond 0 to 1; correct the config")
    return [float(np.float32(level)) for level in given]


def _transfer(begin: Point, end: Point) -> Transfer:
    along = end.alpha / max(begin.alpha, _LEAST_ALPHA)
    return Transfer(along, end.sigma - along * begin.sigma)


SAMPLERS = (
    Sampler(
        "ipndm",
        ipndm,
        order=2,
        evaluations=1,
        stochastic=False,
        paper="Zhang and Chen, Fast Sampling of Diffusion Models with Exponential Integrator",
        classes=("IPNDMScheduler",),
    ),
)
