"""Euler's method with ancestral noise, k-diffusion's sample_euler_ancestral."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

from fastdiff.samplers.noise_options import ancestral_step, not_negative
from fastdiff.samplers.path import Point
from fastdiff.samplers.sampler import Sampler
from fastdiff.samplers.schedule import NoiseSchedule
from fastdiff.samplers.sigma_path import sigma_path
from fastdiff.samplers.table import Step, StepTable, step_at

__all__ = ["SAMPLERS", "euler_ancestral", "euler_ancestral_steps"]


def euler_ancestral_steps(points: Sequence[Point], eta: float = 1.0, s_noise: float = 1.0) -> list[Step]:
    """The steps x' = x + (σ_down − σ)·dx/dσ + σ_up·z: with η = 1 ancestral sampling of Ho et al., in x/α.

    Without η no noise is drawn; with it the last step, to σ = 0, draws some and does not use it, as in
    diffusers.
    """
    rows = []
    for here, there in pairwise(points):
        down, up = ancestral_step(here.sigma, there.sigma, eta)
        noise = up * s_noise if eta else None
        rows.append(step_at(here, here.to(replace(there, sigma=down)), noise_coef=noise))
    return rows


def euler_ancestral(schedule: NoiseSchedule, steps: int) -> StepTable:
    """Reads what `sigma_path` reads, eta (1) and s_noise (1); diffusers' class has none of these two."""
    settings = schedule.settings("euler_ancestral")
    path = sigma_path(schedule, settings, steps)
    eta, s_noise = not_negative(settings, "eta", 1.0), not_negative(settings, "s_noise", 1.0)
    rows = euler_ancestral_steps(path.points, eta, s_noise)
    return StepTable("euler_ancestral", tuple(rows), path.init_noise_sigma)


SAMPLERS = (
    Sampler(
        "euler_ancestral",
        euler_ancestral,
        order=1,
        evaluations=1,
        stochastic=True,
        paper="Ho, Jain and Abbeel, Denoising Diffusion Probabilistic Models; Crowson, k-diffusion",
        classes=("EulerAncestralDiscreteScheduler",),
    ),
)
