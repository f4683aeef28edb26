"""The midpoint method in the noise level: k-diffusion's DPM2, after DPM-Solver-2 of Lu et al., "DPM-Solver: A
Fast ODE Solver for Diffusion Probabilistic Model Sampling in Around 10 Steps".
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise

from fastdiff.samplers.noise_options import Churn, ancestral_step, churned, not_negative
from fastdiff.samplers.path import Point
from fastdiff.samplers.sampler import Sampler
from fastdiff.samplers.schedule import NoiseSchedule
from fastdiff.samplers.sigma_path import sigma_path
from fastdiff.samplers.table import Step, StepTable
from fastdiff.samplers.x0_step import x0_step

__all__ = ["SAMPLERS", "dpm2_ancestral_steps", "dpm2_step"]


def dpm2_step(
    here: Point, sigma: float, at: Callable[[float], Point], noise: float | None = None
) -> list[Step]:
    """From ``here`` to the level ``sigma`` and then noise: x' = x + (σ' − σ)·d(x_mid, σ_mid).

    x_mid comes from Euler's method, and σ_mid halves the step in log σ. The step to σ = 0 is Euler's.
    """
    if sigma == 0:
        return [x0_step(here, 0.0, 1.0, noise_coef=noise)]
    middle = at(math.sqrt(here.sigma * sigma))
    share = (middle.sigma - here.sigma) / here.sigma
    whole = (sigma - here.sigma) / middle.sigma
    return [
        x0_step(here, 1 + share, -share, save_sample=0),
        x0_step(middle, whole, -whole, history=((0, 1.0),), noise_coef=noise),
    ]


def dpm2_ancestral_steps(
    points: Sequence[Point], at: Callable[[float], Point], eta: float = 1.0, s_noise: float = 1.0
) -> list[Step]:
    """k-diffusion's sample_dpm_2_ancestral: the midpoint method down to σ_down, then noise σ_up."""
    rows = []
    for here, there in pairwise(points):
        down, up = ancestral_step(here.sigma, there.sigma, eta)
        rows += dpm2_step(here, down, at, up * s_noise if eta and there.sigma else None)
    return rows


def dpm2(schedule: NoiseSchedule, steps: int) -> StepTable:
    """Reads what `sigma_path` reads, s_churn, s_tmin, s_tmax and s_noise.

    The defaults are those of diffusers' KDPM2DiscreteScheduler, which has no churn and
    rounds the timesteps of Karras' levels, but not those of the midpoints.
    """
    settings = schedule.settings("dpm2")
    path = sigma_path(schedule, settings, steps, round_karras=True)
    starts, noises = churned(path, Churn.read(settings))
    rows: list[Step] = []
    for here, there, noise in zip(starts, path.points[1:], noises[1:], strict=True):
        rows += dpm2_step(here, there.sigma, path.at, noise)
    return StepTable("dpm2", tuple(rows), path.init_noise_sigma, slots=1, start_noise=noises[0])


def dpm2_ancestral(schedule: NoiseSchedule, steps: int) -> StepTable:
    """Reads what `sigma_path` reads, eta (1) and s_noise (1).

    The other defaults are those of diffusers' KDPM2AncestralDiscreteScheduler: see `dpm2`.
    """
    settings = schedule.settings("dpm2_ancestral")
    path = sigma_path(schedule, settings, steps, round_karras=True)
    eta, s_noise = not_negative(settings, "eta", 1.0), not_negative(settings, "s_noise", 1.0)
    rows = dpm2_ancestral_steps(path.points, path.at, eta, s_noise)
    return StepTable("dpm2_ancestral", tuple(rows), path.init_noise_sigma, slots=1)


SAMPLERS = (
    Sampler(
        "dpm2",
        dpm2,
        order=2,
        evaluations=2,
        stochastic=False,
        paper="Lu et al., DPM-Solver; Crowson, k-diffusion",
        classes=("KDPM2DiscreteScheduler",),
    ),
    Sampler(
        "dpm2_ancestral",
        dpm2_ancestral,
        order=2,
        evaluations=2,
        stochastic=True,
        paper="Lu et al., DPM-Solver; Crowson, k-diffusion",
        classes=("KDPM2AncestralDiscreteScheduler",),
    ),
)
