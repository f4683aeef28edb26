"""DPM-Solver++(2S) with ancestral noise, k-diffusion's sample_dpmpp_2s_ancestral."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise

from fastdiff.samplers.clipping import NO_CLIPPING, Clipping, read_clipping
from fastdiff.samplers.noise_options import ancestral_step, not_negative
from fastdiff.samplers.path import Point
from fastdiff.samplers.sampler import Sampler
from fastdiff.samplers.schedule import NoiseSchedule
from fastdiff.samplers.sigma_path import sigma_path
from fastdiff.samplers.table import Step, StepTable
from fastdiff.samplers.x0_step import x0_step

__all__ = ["SAMPLERS", "dpmpp_2s_ancestral_steps"]


def dpmpp_2s_ancestral_steps(
    points: Sequence[Point],
    at: Callable[[float], Point],
    eta: float = 1.0,
    s_noise: float = 1.0,
    clip: Clipping = NO_CLIPPING,
) -> list[Step]:
    """Algorithm 1 of Lu et al., "DPM-Solver++", with r = ½, from σ down to σ_down; then noise σ_up.

    u = (σ_mid/σ)·x + (1 − σ_mid/σ)·D(x), x' = (σ_down/σ)·x + (1 − σ_down/σ)·D(u), log σ_mid halfway.
    """
    rows = []
    for here, there in pairwise(points):
        down, up = ancestral_step(here.sigma, there.sigma, eta)
        noise = up * s_noise if eta and there.sigma else None
        if down == 0:
            rows.append(x0_step(here, 0.0, 1.0, clip, noise_coef=noise))
            continue
        middle = at(math.sqrt(here.sigma * down))
        half, whole = middle.sigma / here.sigma, down / here.sigma
        rows.append(x0_step(here, half, 1 - half, clip, save_sample=0))
        rows.append(x0_step(middle, 0.0, 1 - whole, clip, history=((0, whole),), noise_coef=noise))
    return rows


def dpmpp_2s_ancestral(schedule: NoiseSchedule, steps: int) -> StepTable:
    """Reads what `sigma_path` and `read_clipping` read, eta (1; 0 draws no noise) and s_noise (1)."""
    settings = schedule.settings("dpmpp_2s_ancestral")
    path = sigma_path(schedule, settings, steps)
    eta, s_noise = not_negative(settings, "eta", 1.0), not_negative(settings, "s_noise", 1.0)
    rows = dpmpp_2s_ancestral_steps(path.points, path.at, eta, s_noise, read_clipping(settings))
    return StepTable("dpmpp_2s_ancestral", tuple(rows), path.init_noise_sigma, slots=1)


SAMPLERS = (
    Sampler(
        "dpmpp_2s_ancestral",
        dpmpp_2s_ancestral,
        order=2,
        evaluations=2,
        stochastic=True,
        paper="Lu et al., DPM-Solver++: Fast Solver for Guided Sampling of Diffusion Probabilistic Models",
    ),
)
