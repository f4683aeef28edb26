"""Heun's method in the noise level: Karras et al., "Elucidating the Design Space of Diffusion-Based
Generative Models", Algorithms 1 and 2.
"""

from __future__ import annotations

from collections.abc import Sequence

from fastdiff.samplers.clipping import NO_CLIPPING, Clipping, read_clipping
from fastdiff.samplers.noise_options import Churn, churned
from fastdiff.samplers.path import Point
from fastdiff.samplers.sampler import Sampler
from fastdiff.samplers.schedule import NoiseSchedule
from fastdiff.samplers.sigma_path import SigmaPath, sigma_path
from fastdiff.samplers.table import Step, StepTable
from fastdiff.samplers.x0_step import x0_step

__all__ = ["SAMPLERS", "heun", "heun_step", "heun_table"]


def heun_step(
    here: Point, there: Point, noise: float | None = None, clip: Clipping = NO_CLIPPING
) -> list[Step]:
    """From ``here`` to ``there`` and then noise: lines 6 to 11 of Algorithm 2 of the paper.

    x_2 = x + (σ' − σ)·d with d = (x − D)/σ, and x' = x + (σ' − σ)·(d + d_2)/2, which is
    ½·x + ½·x_2 + ½·(σ' − σ)·d_2. The step to σ = 0 is Euler's.
    """
    share = (there.sigma - here.sigma) / here.sigma
    if there.sigma == 0:
        return [x0_step(here, 0.0, 1.0, clip, noise_coef=noise)]
    second = (there.sigma - here.sigma) / (2 * there.sigma)
    return [
        x0_step(here, 1 + share, -share, clip, save_sample=0),
        x0_step(there, 0.5 + second, -second, clip, history=((0, 0.5),), noise_coef=noise, carried=0.5),
    ]


def heun_steps(
    starts: Sequence[Point],
    ends: Sequence[Point],
    noises: Sequence[float | None],
    clip: Clipping = NO_CLIPPING,
) -> list[Step]:
    """All steps, with churn as in `fastdiff.samplers.euler.euler_steps`."""
    steps = zip(starts, ends, noises, strict=True)
    return [row for here, there, noise in steps for row in heun_step(here, there, noise, clip)]


def heun_table(
    name: str, path: SigmaPath, churn: Churn, clip: Clipping = NO_CLIPPING, *, always_draw: bool = False
) -> StepTable:
    """Algorithm 2 of the paper along ``path``; without churn it is Algorithm 1.

    ``always_draw``: noise is drawn for steps without churn too, and not used.
    """
    starts, noises = churned(path, churn)
    if always_draw:
        noises = [*(noise or 0.0 for noise in noises[:-1]), None]
    rows = heun_steps(starts, path.points[1:], noises[1:], clip)
    return StepTable(name, tuple(rows), path.init_noise_sigma, slots=1, start_noise=noises[0])


def heun(schedule: NoiseSchedule, steps: int) -> StepTable:
    """Reads what `sigma_path` reads, s_churn, s_tmin, s_tmax and s_noise, clip_sample and clip_sample_range.

    The defaults are those of diffusers' HeunDiscreteScheduler, which has no churn.
    """
    settings = schedule.settings("heun")
    path = sigma_path(schedule, settings, steps)
    return heun_table("heun", path, Churn.read(settings), read_clipping(settings))


SAMPLERS = (
    Sampler(
        "heun",
        heun,
        order=2,
        evaluations=2,
        stochastic=False,
        paper="Karras et al., Elucidating the Design Space of Diffusion-Based Generative Models",
        classes=("HeunDiscreteScheduler",),
    ),
)
