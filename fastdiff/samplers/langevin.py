"""Annealed Langevin dynamics: Song and Ermon, "Generative Modeling by Estimating Gradients of the Data
Distribution" (NCSN), and "Improved Techniques for Training Score-Based Generative Models" (NCSNv2).

The state is x₀ plus noise of level σ (x/α of a process that scales the signal), and the score is −ε/σ.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from fastdiff.errors import InputError
from fastdiff.samplers.path import Point
from fastdiff.samplers.placement import given_sigmas, placed_sigmas, sigma_spacing
from fastdiff.samplers.prediction import Linear
from fastdiff.samplers.process_points import learned_variance, level_range, level_times, process_of, rescaled
from fastdiff.samplers.sampler import Sampler
from fastdiff.samplers.schedule import NoiseSchedule
from fastdiff.samplers.settings import Settings
from fastdiff.samplers.table import Step, StepTable, step_at

__all__ = ["SAMPLERS", "annealed_langevin", "level_count", "ncsnv2_step_size", "score"]


def score(point: Point) -> Linear:
    """∇ log p(x) = −ε/σ as a combination of the state and the model's output."""
    return -1 / point.sigma * point.epsilon


def annealed_langevin(
    points: Sequence[Point], inner_steps: int, step_size: float, *, denoise: bool
) -> list[Step]:
    """``inner_steps`` times x' = x + e·score + √(2e)·z at every level, with e = step_size·σ²/σ_L².

    ``step_size`` is e at the last level, σ_L: ε of NCSNv2's Algorithm 1, half the ε of NCSN's, which writes
    x + α/2·score + √α·z. ``denoise`` ends with x + σ_L²·score, the mean of x₀ given x.
    """
    rows: list[Step] = []
    for point in points:
        e = step_size * (point.sigma / points[-1].sigma) ** 2
        update = Linear(1.0, 0.0) + e * score(point)
        rows += [step_at(point, update, noise_coef=math.sqrt(2 * e))] * inner_steps
    if denoise:
        rows.append(step_at(points[-1], points[-1].x0))
    return rows


def ncsnv2_step_size(ratio: float, inner_steps: int) -> float:
    """ε/σ_L² by NCSNv2's technique 4, for levels whose neighbours' ``ratio`` is γ = σᵢ₋₁/σᵢ.

    Coming from the level above, ``inner_steps`` steps T leave the variance of a point's noise at σᵢ² times
    (1 − r)^2T·(γ² − v) + v, where r = ε/σ_L² and v = 2r/(1 − (1 − r)²) (Proposition 2). That is above 1 for
    every r; the result makes it least.
    """

    def variance(r: float) -> float:
        stationary = 1 / (1 - r / 2)
        return (1 - r) ** (2 * inner_steps) * (ratio**2 - stationary) + stationary

    grid = np.exp(np.linspace(math.log(1e-6), 0.0, 400))
    for _ in range(4):
        best = int(np.argmin([variance(float(r)) for r in grid]))
        low, high = grid[max(best - 1, 0)], grid[min(best + 1, len(grid) - 1)]
        grid = np.linspace(low, high, 40)
    return float(grid[np.argmin([variance(float(r)) for r in grid])])


def level_count(sigma_min: float, sigma_max: float, dims: int) -> int:
    """The number of levels by NCSNv2's technique 2, for data of ``dims`` numbers.

    A geometric progression in which neighbouring levels' noise overlaps:
    Φ(√(2·dims)·(γ − 1) + 3γ) − Φ(√(2·dims)·(γ − 1) − 3γ) is 0.5667. The paper says about 0.5; all its
    configurations have 0.567.
    """

    def overlap(ratio: float) -> float:
        centre, width = math.sqrt(2 * dims) * (ratio - 1), 3 * ratio
        return 0.5 * (math.erf((centre + width) / math.sqrt(2)) - math.erf((centre - width) / math.sqrt(2)))

    low, high = 1.0, 1e6
    while high - low > 1e-12 * high:
        middle = (low + high) / 2
        low, high = (middle, high) if overlap(middle) > 0.5667 else (low, middle)
    return 1 + round(math.log(sigma_max / sigma_min) / math.log(low))


def ncsn(schedule: NoiseSchedule, steps: int) -> StepTable:
    """NCSN's Algorithm 1: αᵢ = ε·σᵢ²/σ_L².

    ``steps`` is the number of levels, ``inner_steps`` (100) the T evaluations at each, ``step_size`` is ε
    (0.2·σ_L², the paper's 0.00002 for its last level of 0.01). The levels are a geometric progression between
    the ends of the process (`process_of`) unless sigma_spacing or sigmas say otherwise. The sample is left at
    the last level unless final_sigmas_type is "zero".
    """
    settings = schedule.settings("ncsn")
    points = _levels(schedule, settings, steps)
    inner = settings.integer("inner_steps", 100, minimum=1)
    step_size = settings.positive("step_size", 1.0) if settings.is_set("step_size") else None
    epsilon = 0.2 * points[-1].sigma ** 2 if step_size is None else step_size
    step_size = _checked(epsilon / 2, points)
    denoise = settings.choice("final_sigmas_type", "sigma_min", ("zero", "sigma_min")) == "zero"
    return _table("ncsn", points, annealed_langevin(points, inner, step_size, denoise=denoise), settings)


def ncsnv2(schedule: NoiseSchedule, steps: int) -> StepTable:
    """NCSNv2's Algorithm 1, with the last denoising step of its technique 3.

    As `ncsn`, but ``inner_steps`` is 5, ``step_size``, e at the last level, follows technique 4 where it is
    not set, and final_sigmas_type is "zero" unless set to "sigma_min".
    """
    settings = schedule.settings("ncsnv2")
    points = _levels(schedule, settings, steps)
    inner = settings.integer("inner_steps", 5, minimum=1)
    if settings.is_set("step_size"):
        step_size = settings.positive("step_size", 1.0)
    else:
        ratio = (points[0].sigma / points[-1].sigma) ** (1 / (len(points) - 1)) if len(points) > 1 else 2.0
        step_size = ncsnv2_step_size(ratio, inner) * points[-1].sigma ** 2
    step_size = _checked(step_size, points)
    denoise = settings.choice("final_sigmas_type", "zero", ("zero", "sigma_min")) == "zero"
    return _table("ncsnv2", points, annealed_langevin(points, inner, step_size, denoise=denoise), settings)


def _levels(schedule: NoiseSchedule, settings: Settings, steps: int) -> list[Point]:
    """The points of ``steps`` levels, for the state x/α."""
    settings.refuse("thresholding", False, "set it to false or use another sampler")
    process = process_of(schedule, settings)
    spacing, levels = sigma_spacing(settings), given_sigmas(settings, steps)
    if levels is None:
        name = spacing or "exponential"
        levels = placed_sigmas(settings, name, *level_range(process, name), steps)
    elif spacing is not None:
        raise InputError("both sigma_spacing and sigmas are set; keep one")
    elif levels[-1] == 0:
        raise InputError("sigmas end with 0, wanted levels above 0, where there is a score")
    times = level_times(process, levels)
    return [rescaled(process.point(float(t), schedule.prediction)) for t in times]


def _checked(step_size: float, points: Sequence[Point]) -> float:
    """``step_size``; raises `InputError` where the noise of a single point already diverges."""
    limit = 2 * points[-1].sigma ** 2
    if step_size >= limit:
        raise InputError(
            f"a step size of {step_size:g} diverges at the last level, {points[-1].sigma:g}; wanted less "
            f"than {limit:g}, twice its square; set step_size"
        )
    return step_size


def _table(name: str, points: Sequence[Point], rows: Sequence[Step], settings: Settings) -> StepTable:
    return StepTable(name, tuple(rows), points[0].sigma, variance_channels=learned_variance(settings))


SAMPLERS = (
    Sampler(
        "ncsn",
        ncsn,
        order=1,
        evaluations=100,
        stochastic=True,
        paper="Song and Ermon, Generative Modeling by Estimating Gradients of the Data Distribution",
        any_steps=True,
    ),
    Sampler(
        "ncsnv2",
        ncsnv2,
        order=1,
        evaluations=5,
        stochastic=True,
        paper="Song and Ermon, Improved Techniques for Training Score-Based Generative Models",
        any_steps=True,
    ),
)
