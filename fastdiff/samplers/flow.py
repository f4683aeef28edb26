"""Samplers of flow-matching models: Lipman et al., "Flow Matching for Generative Modeling"; Liu, Gong and
Liu, "Flow Straight and Fast: Learning to Generate and Transfer Data with Rectified Flow".
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

from fastdiff.samplers.flow_path import flow_points
from fastdiff.samplers.path import Point
from fastdiff.samplers.prediction import Linear
from fastdiff.samplers.sampler import Sampler
from fastdiff.samplers.schedule import NoiseSchedule
from fastdiff.samplers.settings import Settings
from fastdiff.samplers.table import Estimate, Step, StepTable, step_at

__all__ = [
    "SAMPLERS",
    "ancestral_steps",
    "euler_steps",
    "flow_ancestral",
    "flow_euler",
    "flow_heun",
    "flow_lcm",
    "heun_steps",
    "renoised_steps",
]

_FLOW_MATCHING = "Lipman et al., Flow Matching for Generative Modeling"


def euler_steps(points: Sequence[Point]) -> list[Step]:
    """Euler's method for dx/dσ = u with the velocity u = ε − x₀: x' = x + (σ' − σ)·u."""
    return [step_at(point, point.to(following)) for point, following in pairwise(points)]


def renoised_steps(points: Sequence[Point]) -> list[Step]:
    """Multistep consistency sampling on straight lines: x' = (1 − σ')·x₀ + σ'·z."""
    return [
        step_at(point, following.alpha * point.x0, noise_coef=following.sigma)
        for point, following in pairwise(points)
    ]


def heun_steps(
    points: Sequence[Point], churn: Sequence[float] | None = None, s_noise: float = 1.0
) -> list[Step]:
    """Algorithm 2 of Karras et al., "Elucidating the Design Space of Diffusion-Based Generative Models", on
    straight lines: an Euler step, then again with the mean of the velocities at both its ends; the step to
    σ = 0 is Euler's.

    ``churn`` has γ of each step. As diffusers has it, noise s_noise·√(σ̂² − σ²)·z with σ̂ = (1 + γ)·σ is added
    after the evaluation at σ, the velocity is then σ/σ̂ of the model's, and the second evaluation draws noise
    without using it.
    """
    rows = []
    gammas = churn if churn is not None else [0.0] * (len(points) - 1)
    for (point, following), gamma in zip(pairwise(points), gammas, strict=True):
        raised = (1 + gamma) * point.sigma
        velocity = (point.sigma / raised) * _velocity(point)
        h = following.sigma - raised
        update = Linear(1.0, 0.0) + h * velocity
        noise = s_noise * math.sqrt(raised**2 - point.sigma**2) if gamma else None
        if following.sigma == 0:
            rows.append(step_at(point, update, noise_coef=noise))
            continue
        # The output is kept if it is the velocity but for a factor, which then goes into the next row.
        factor = 1.0 if velocity.sample else velocity.output
        estimate = Estimate(velocity) if velocity.sample else None
        rows.append(step_at(point, update, noise_coef=noise, save_output=0, estimate=estimate))
        # From x + h·u₁ back by half of it and on by half of the second velocity.
        update = Linear(1.0, 0.0) + (h / 2) * _velocity(following)
        rows.append(
            step_at(following, update, history=((0, -h / 2 * factor),), noise_coef=0.0 if gamma else None)
        )
    return rows


def _velocity(point: Point) -> Linear:
    return point.epsilon + -1.0 * point.x0


def ancestral_steps(points: Sequence[Point], eta: float, s_noise: float) -> list[Step]:
    """Euler to a level below the next, then noise: x' = (α'/α↓)·x↓ + √(σ'² − (σ↓·α'/α↓)²)·z.

    σ↓ = σ'·(1 + η·(σ'/σ − 1)): Euler ancestral on straight lines, as ComfyUI and LTX-Video have it. The step
    to σ = 0 adds no noise.
    """
    rows = []
    for point, following in pairwise(points):
        if following.sigma == 0:
            rows.append(step_at(point, point.to(following)))
            continue
        down = following.sigma * (1 + eta * (following.sigma / point.sigma - 1))
        update = point.to(Point(point.timestep, 1 - down, down))
        noise = None
        if eta > 0 and s_noise > 0:
            kept = following.alpha / (1 - down)
            update = kept * update
            noise = s_noise * math.sqrt(max(following.sigma**2 - (kept * down) ** 2, 0.0))
        rows.append(step_at(point, update, noise_coef=noise))
    return rows


def flow_euler(schedule: NoiseSchedule, steps: int) -> StepTable:
    """`euler_steps` on the levels of `flow_points`, whose options it has.

    Reads stochastic_sampling with the default of diffusers' FlowMatchEulerDiscreteScheduler:
    `renoised_steps`.
    """
    settings = schedule.settings("flow_euler")
    stochastic = settings.flag("stochastic_sampling", False)
    if stochastic:
        _refuse_inverted(settings)
    points = flow_points(settings, steps)
    rows = renoised_steps(points) if stochastic else euler_steps(points)
    return StepTable("flow_euler", tuple(rows))


def flow_heun(schedule: NoiseSchedule, steps: int) -> StepTable:
    """`heun_steps` on the levels of `flow_points`, whose options it has.

    Reads s_churn (0), s_tmin (0), s_tmax (infinite) and s_noise (1), arguments of the steps of diffusers'
    FlowMatchHeunDiscreteScheduler: γ = min(s_churn/(evaluations of all steps), √2 − 1) where s_tmin ≤ σ ≤
    s_tmax.
    """
    settings = schedule.settings("flow_heun")
    s_churn = settings.within("s_churn", 0.0, 0.0, math.inf)
    s_noise = settings.within("s_noise", 1.0, 0.0, math.inf)
    s_tmin, s_tmax = settings.number("s_tmin", 0.0), settings.number("s_tmax", math.inf)
    points = flow_points(settings, steps)
    highest = min(s_churn / (2 * steps - 1), math.sqrt(2) - 1)
    churn = [highest if s_tmin <= point.sigma <= s_tmax else 0.0 for point in points[:-1]]
    return StepTable("flow_heun", tuple(heun_steps(points, churn, s_noise)), slots=1)


def flow_lcm(schedule: NoiseSchedule, steps: int) -> StepTable:
    """`renoised_steps` on the levels of `flow_points`, whose options it has: distilled flow-matching models.

    Reads scale_factors of diffusers' FlowMatchLCMScheduler, which would enlarge the latents between steps:
    not supported.
    """
    settings = schedule.settings("flow_lcm")
    settings.refuse("scale_factors", None, "set it to null: latents keep their size")
    settings.unused("upscale_mode")
    _refuse_inverted(settings)
    return StepTable("flow_lcm", tuple(renoised_steps(flow_points(settings, steps))))


def _refuse_inverted(settings: Settings) -> None:
    settings.refuse(
        "invert_sigmas", False, "with fresh noise in every step diffusers ends in noise; set it to false"
    )


def flow_ancestral(schedule: NoiseSchedule, steps: int) -> StepTable:
    """`ancestral_steps` on the levels of `flow_points`, whose options it has.

    Reads eta (1) and s_noise (1) with the defaults of diffusers' LTXEulerAncestralRFScheduler.
    """
    settings = schedule.settings("flow_ancestral")
    eta = settings.within("eta", 1.0, 0.0, 1.0)
    s_noise = settings.within("s_noise", 1.0, 0.0, math.inf)
    rows = ancestral_steps(flow_points(settings, steps), eta, s_noise)
    return StepTable("flow_ancestral", tuple(rows))


SAMPLERS = (
    Sampler(
        "flow_euler",
        flow_euler,
        order=1,
        evaluations=1,
        stochastic=False,
        paper=_FLOW_MATCHING,
        classes=("FlowMatchEulerDiscreteScheduler",),
        any_steps=True,
    ),
    Sampler(
        "flow_heun",
        flow_heun,
        order=2,
        evaluations=2,
        stochastic=False,
        paper="Karras et al., Elucidating the Design Space of Diffusion-Based Generative Models",
        classes=("FlowMatchHeunDiscreteScheduler",),
        any_steps=True,
    ),
    Sampler(
        "flow_lcm",
        flow_lcm,
        order=1,
        evaluations=1,
        stochastic=True,
        paper="Song, Dhariwal, Chen and Sutskever, Consistency Models",
        classes=("FlowMatchLCMScheduler",),
        any_steps=True,
    ),
    Sampler(
        "flow_ancestral",
        flow_ancestral,
        order=1,
        evaluations=1,
        stochastic=True,
        paper="HaCohen et al., LTX-Video: Realtime Video Latent Diffusion",
        classes=("LTXEulerAncestralRFScheduler",),
        any_steps=True,
    ),
)
