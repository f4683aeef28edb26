"""DPM-Solver++ for the SDE in two stages, k-diffusion's sample_dpmpp_sde."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise

from fastdiff.errors import InputError
from fastdiff.samplers.clipping import NO_CLIPPING, Clipping, read_clipping
from fastdiff.samplers.noise_options import ancestral_step, not_negative
from fastdiff.samplers.path import Point
from fastdiff.samplers.sampler import Sampler
from fastdiff.samplers.schedule import NoiseSchedule
from fastdiff.samplers.sigma_path import sigma_path
from fastdiff.samplers.table import Step, StepTable
from fastdiff.samplers.x0_step import x0_step

__all__ = ["SAMPLERS", "dpmpp_sde_steps"]

SAMPLE, X0 = 0, 1


def dpmpp_sde_steps(
    points: Sequence[Point],
    at: Callable[[float], Point],
    eta: float = 1.0,
    s_noise: float = 1.0,
    r: float = 0.5,
    brownian: bool = True,
    clip: Clipping = NO_CLIPPING,
) -> list[Step]:
    """The steps x' = (σ_down/σ)·x + (1 − σ_down/σ)·D̄ + σ_up·z with D̄ = (1 − 1/2r)·D(x) + D(u)/2r.

    Here u = (s_down/σ)·x + (1 − s_down/σ)·D(x) + s_up·z₁ lies at an inner level, which divides the step in
    log σ in the ratio of ``r`` to 1 − r; both parts are ancestral.

    ``brownian``: z₁ and z belong to one Brownian motion in σ, the first over the part of the interval down to
    the inner level, so z = c₁·z₁ + c₂·z₂, where z₁ is found in u. Otherwise z is independent of z₁.
    """
    rows = []
    for here, there in pairwise(points):
        if there.sigma == 0:
            rows.append(x0_step(here, 0.0, 1.0, clip))
            continue
        inner = at(here.sigma ** (1 - r) * there.sigma**r)
        down, up = ancestral_step(here.sigma, inner.sigma, eta)
        first = (down / here.sigma, 1 - down / here.sigma)  # of x and D(x) in u
        noise = up * s_noise if eta else None
        rows.append(x0_step(here, *first, clip, save=X0, save_sample=SAMPLE, noise_coef=noise))

        down, last_up = ancestral_step(here.sigma, there.sigma, eta)
        whole = down / here.sigma
        share = (here.sigma - inner.sigma) / (here.sigma - there.sigma) if brownian else 0.0
        same = last_up / up * math.sqrt(share) if up else 0.0  # of u − first·(x, D), which is σ_up·z₁
        history = (
            (SAMPLE, whole - same * first[0]),
            (X0, (1 - whole) * (1 - 1 / (2 * r)) - same * first[1]),
        )
        noise = last_up * s_noise * math.sqrt(1 - share) if eta else None
        rows.append(x0_step(inner, same, (1 - whole) / (2 * r), clip, history=history, noise_coef=noise))
    return rows


def dpmpp_sde(schedule: NoiseSchedule, steps: int) -> StepTable:
    """Reads what `sigma_path` and `read_clipping` read, eta (1), s_noise (1), r (½) and noise_sampler.

    ``noise_sampler`` is "brownian", as in k-diffusion and diffusers' DPMSolverSDEScheduler, or "independent".
    The defaults are those of the latter. Its noise_sampler_seed seeds a Brownian tree; the
    noise here comes from the call's seed.
    """
    settings = schedule.settings("dpmpp_sde")
    settings.refuse("noise_sampler_seed", None, "remove it and give the call a seed")
    path = sigma_path(schedule, settings, steps)
    eta, s_noise = not_negative(settings, "eta", 1.0), not_negative(settings, "s_noise", 1.0)
    r = settings.positive("r", 0.5)
    if r >= 1:
        raise InputError(f"r is {r:g}, wanted a number between 0 and 1")
    brownian = settings.choice("noise_sampler", "brownian", ("brownian", "independent")) == "brownian"
    rows = dpmpp_sde_steps(path.points, path.at, eta, s_noise, r, brownian, read_clipping(settings))
    return StepTable("dpmpp_sde", tuple(rows), path.init_noise_sigma, slots=2)


SAMPLERS = (
    Sampler(
        "dpmpp_sde",
        dpmpp_sde,
        order=2,
        evaluations=2,
        stochastic=True,
        paper="Lu et al., DPM-Solver++: Fast Solver for Guided Sampling of Diffusion Probabilistic Models",
        classes=("DPMSolverSDEScheduler",),
    ),
)
