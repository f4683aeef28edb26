"""Euler's method in the noise level: Karras et al., "Elucidating the Design Space of Diffusion-Based
Generative Models".
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from fastdiff.samplers.noise_options import Churn, churned
from fastdiff.samplers.path import Point
from fastdiff.samplers.prediction import Linear, Prediction
from fastdiff.samplers.sampler import Sampler
from fastdiff.samplers.schedule import NoiseSchedule
from fastdiff.samplers.sigma_path import SigmaPath, sigma_path
from fastdiff.samplers.table import Step, StepTable, step_at

__all__ = ["SAMPLERS", "euler", "euler_steps", "euler_table", "euler_with_late_churn"]


def euler_steps(starts: Sequence[Point], ends: Sequence[Point], noises: Sequence[float | None]) -> list[Step]:
    """Algorithm 2 of the paper without its second-order correction: x' = x + (σ' − σ)·dx/dσ + noise.

    ``starts`` are raised above the ``ends`` of the steps before them by churn, whose ``noises`` follow each
    step.
    """
    return [
        step_at(here, here.to(there), noise_coef=noise)
        for here, there, noise in zip(starts, ends, noises, strict=True)
    ]


def euler_with_late_churn(path: SigmaPath, churn: Churn) -> list[Step]:
    """Churn as diffusers has it: the denoiser is evaluated before the noise is added, not after.

    The output for (x, σ) is then read as that for the raised sample x̂ at σ̂; for v-prediction with the
    factors of σ. What is left at the end of a path of ε-prediction is the noise of the last step.
    """
    rows = []
    for here, there in pairwise(path.points):
        sigma, noise = churn.lift(here.sigma, path.total)
        raised = here if noise is None else path.at(sigma)
        reading = here if here.denoised is None and here.prediction is Prediction.V else raised
        share = (there.sigma - sigma) / sigma
        update = Linear(1 + share, 0.0) + -share * reading.x0
        rows.append(step_at(here, update, noise_coef=None if noise is None else update.sample * noise))
    return rows


def euler(schedule: NoiseSchedule, steps: int) -> StepTable:
    """Here x = x₀ + σ·ε, and the denoiser sees x/√(σ² + 1), or what its preconditioning says.

    Reads what `sigma_path` reads and s_churn, s_tmin, s_tmax and s_noise. ``churn_noise`` "before" the
    evaluation is the paper's; "after" is what s_churn of EulerDiscreteScheduler.step does.
    """
    return euler_table("euler", schedule, sigma_path(schedule, schedule.settings("euler"), steps))


def euler_table(name: str, schedule: NoiseSchedule, path: SigmaPath) -> StepTable:
    """The table of `euler` for ``path``."""
    settings = schedule.settings(name)
    churn = Churn.read(settings)
    if settings.choice("churn_noise", "before", ("before", "after")) == "after":
        return StepTable(name, tuple(euler_with_late_churn(path, churn)), path.init_noise_sigma)
    starts, noises = churned(path, churn)
    rows = euler_steps(starts, path.points[1:], noises[1:])
    return StepTable(name, tuple(rows), path.init_noise_sigma, start_noise=noises[0])


SAMPLERS = (
    Sampler(
        "euler",
        euler,
        order=1,
        evaluations=1,
        stochastic=False,
        paper="Karras et al., Elucidating the Design Space of Diffusion-Based Generative Models",
        classes=("EulerDiscreteScheduler",),
    ),
)
