"""Multistep consistency sampling: Song, Dhariwal, Chen and Sutskever, "Consistency Models"."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from fastdiff.errors import InputError
from fastdiff.samplers.chain import given_indices
from fastdiff.samplers.clipping import Clipping
from fastdiff.samplers.path import Point
from fastdiff.samplers.prediction import Linear
from fastdiff.samplers.sampler import Sampler
from fastdiff.samplers.schedule import NoiseSchedule
from fastdiff.samplers.settings import Settings
from fastdiff.samplers.table import Step, StepTable, step_at

__all__ = ["SAMPLERS", "consistency", "consistency_point"]


def consistency_point(sigma: float, sigma_min: float, sigma_data: float) -> Point:
    """The level σ as a consistency model sees it: f = c_skip·x + c_out·F(x/√(σ² + σ_data²), 250·log σ).

    f(x, σ_min) = x: Eq. 5 of the paper and appendix C.
    """
    timestep = 250 * math.log(sigma)
    sigma = float(np.float32(sigma))  # as diffusers keeps levels
    total = math.hypot(sigma, sigma_data)
    above = sigma - sigma_min
    denoised = Linear(sigma_data**2 / (above**2 + sigma_data**2), above * sigma_data / total)
    return Point(timestep, 1.0, sigma, input_scale=1 / total, denoised=denoised)


def consistency(schedule: NoiseSchedule, steps: int) -> StepTable:
    """Algorithm 1 of the paper: x' = f(x, σ) + √(σ'² − σ_min²)·z.

    Reads timesteps, decreasing, and with the defaults of diffusers' CMStochasticIterativeScheduler
    num_train_timesteps (40), sigma_min (0.002), sigma_max (80), sigma_data (0.5), rho (7), s_noise (1), which
    scales the noise, and clip_denoised (true), which clips f to ±1. As there, timestep t of T is the Karras
    level t/(T − 1) of the way from sigma_max to sigma_min, and timesteps are visited from the last to the
    first.
    """
    settings = schedule.settings("consistency")
    sigma_min, sigma_max = settings.positive("sigma_min", 0.002), settings.positive("sigma_max", 80.0)
    if sigma_min > sigma_max:
        raise InputError(f"sigma_min is {sigma_min:g}, wanted at most sigma_max, {sigma_max:g}; correct one")
    sigma_data = settings.positive("sigma_data", 0.5)
    s_noise = settings.within("s_noise", 1.0, 0.0, math.inf)
    clipping = Clipping(1.0) if settings.flag("clip_denoised", True) else Clipping()
    rho, train_steps = settings.positive("rho", 7.0), settings.integer("num_train_timesteps", 40, minimum=2)
    low, high = sigma_min ** (1 / rho), sigma_max ** (1 / rho)
    ramp = np.array(_indices(settings, train_steps, steps)[::-1]) / (train_steps - 1)
    levels: Sequence[float] = ((high + ramp * (low - high)) ** rho).tolist()

    rows: list[Step] = []
    for sigma, following in pairwise((*levels, sigma_min)):
        point = consistency_point(sigma, sigma_min, sigma_data)
        update, estimate = clipping.split(point.x0, 1.0)
        bounded = min(max(following, sigma_min), sigma_max)
        noise = s_noise * math.sqrt(bounded**2 - sigma_min**2) if steps > 1 else None
        rows.append(step_at(point, update, noise_coef=noise, estimate=estimate))
    return StepTable("consistency", tuple(rows), init_noise_sigma=sigma_max)


def _indices(settings: Settings, train_steps: int, steps: int) -> list[int]:
    """The levels that are visited, decreasing; those of a few-step model are given."""
    given = given_indices(settings, train_steps, steps)
    if given is not None:
        return given
    if steps > train_steps:
        raise InputError(
            f"steps is {steps}, but sampler 'consistency' wants 1 to {train_steps}, the number of timesteps "
            "of the training; use fewer steps"
        )
    return [t * (train_steps // steps) for t in reversed(range(steps))]


SAMPLERS = (
    Sampler(
        "consistency",
        consistency,
        order=1,
        evaluations=1,
        stochastic=True,
        paper="Song, Dhariwal, Chen and Sutskever, Consistency Models",
        classes=("CMStochasticIterativeScheduler",),
        any_steps=True,
    ),
)
