"""RES: Zhang et al., "Improved Order Analysis and Design of Exponential Integrator for Diffusion Models
Sampling", in several steps, as ComfyUI's res_multistep and res_multistep_ancestral have it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

from fastdiff.samplers.clipping import NO_CLIPPING, Clipping, read_clipping
from fastdiff.samplers.noise_options import ancestral_step, not_negative
from fastdiff.samplers.path import Point
from fastdiff.samplers.sampler import Sampler
from fastdiff.samplers.schedule import NoiseSchedule
from fastdiff.samplers.sigma_path import sigma_path
from fastdiff.samplers.table import Step, StepTable
from fastdiff.samplers.x0_step import x0_step

__all__ = ["SAMPLERS", "res_steps"]

PAPER = "Zhang et al., Improved Order Analysis and Design of Exponential Integrator for Diffusion Models"


def res_steps(
    points: Sequence[Point], eta: float = 0.0, s_noise: float = 1.0, clip: Clipping = NO_CLIPPING
) -> list[Step]:
    """The steps x' = e^{−h}·x + h·(b₁·D + b₂·D_previous) + σ_up·z, with h = log(σ/σ_down).

    b₂ = φ₂(−h)/c₂ and b₁ = φ₁(−h) − b₂ of Table 2 of the paper, where c₂ is the previous evaluation's place
    in units of h, counted from where the step before came down to; φ₁(z) = (e^z − 1)/z and
    φ₂(z) = (φ₁(z) − 1)/z.
    """
    rows = []
    came_down = 0.0
    for i, (here, there) in enumerate(pairwise(points)):
        down, up = ancestral_step(here.sigma, there.sigma, eta)
        whole = down / here.sigma  # e^{−h}
        previous = 0.0
        if i and 0 < down < here.sigma:
            h = -math.log(whole)
            c2 = math.log(came_down / points[i - 1].sigma) / h
            phi2 = (1 - (1 - whole) / h) / h
            previous = h * phi2 / c2
        noise = up * s_noise if eta and there.sigma else None
        history = ((0, previous),) if previous else ()
        rows.append(
            x0_step(here, whole, 1 - whole - previous, clip, save=0, history=history, noise_coef=noise)
        )
        came_down = down
    return rows


def res_multistep(schedule: NoiseSchedule, steps: int) -> StepTable:
    """Deterministic, unless eta (0) is set: then as `res_multistep_ancestral`.

    Without noise c₂ is minus the ratio of the last two steps, and the solver is DPM-Solver++(2M) in the form
    that integrates the slope ("heun"). Reads what `sigma_path` and `read_clipping` read, eta and s_noise (1).
    """
    return _table("res_multistep", schedule, steps, 0.0)


def res_multistep_ancestral(schedule: NoiseSchedule, steps: int) -> StepTable:
    """With the noise of ancestral sampling: reads what `res_multistep` reads, with eta 1."""
    return _table("res_multistep_ancestral", schedule, steps, 1.0)


def _table(name: str, schedule: NoiseSchedule, steps: int, eta: float) -> StepTable:
    settings = schedule.settings(name)
    path = sigma_path(schedule, settings, steps)
    eta, s_noise = not_negative(settings, "eta", eta), not_negative(settings, "s_noise", 1.0)
    rows = res_steps(path.points, eta, s_noise, read_clipping(settings))
    return StepTable(name, tuple(rows), path.init_noise_sigma, slots=1)


SAMPLERS = (
    Sampler("res_multistep", res_multistep, order=2, evaluations=1, stochastic=False, paper=PAPER),
    Sampler(
        "res_multistep_ancestral",
        res_multistep_ancestral,
        order=2,
        evaluations=1,
        stochastic=True,
        paper=PAPER,
    ),
)
