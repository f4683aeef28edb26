"""Denoisers of Gaussian data in closed form at any point, and the exact moments of linear samplers."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np

from fastdiff.samplers import Point, Step, StepTable

MEAN, VARIANCE = 0.4, 0.36
"""Of the data, in every dimension."""


def output_for(point: Point, x: np.ndarray, x0: np.ndarray) -> np.ndarray:
    """The model output that means the clean sample ``x0``."""
    return (x0 - point.x0.sample * x) / point.x0.output


def posterior(point: Point, mean: float = MEAN, variance: float = VARIANCE) -> tuple[float, float]:
    """E[x₀ | x] = slope·x + offset of data from N(mean, variance)."""
    slope = point.alpha * variance / (point.alpha**2 * variance + point.sigma**2)
    return slope, mean - slope * point.alpha * mean


def marginal(point: Point, mean: float = MEAN, variance: float = VARIANCE) -> tuple[float, float]:
    """Mean and variance of x at a point."""
    return point.alpha * mean, point.alpha**2 * variance + point.sigma**2


def gaussian_model(
    mean: float = MEAN, variance: float = VARIANCE
) -> Callable[[Point, np.ndarray], np.ndarray]:
    """The output at a point for the state x, in whatever it predicts."""

    def model(point: Point, x: np.ndarray) -> np.ndarray:
        slope, offset = posterior(point, mean, variance)
        return output_for(point, x, slope * x + offset)

    return model


def affine(step: Step, mean: float = MEAN, variance: float = VARIANCE) -> tuple[float, float]:
    """x' = factor·x + offset plus noise, for a step without history or clip."""
    assert step.point is not None
    assert not step.history
    assert step.langevin is None
    assert step.estimate is None or step.estimate.weight == 0
    slope, offset = posterior(step.point, mean, variance)
    x0, update = step.point.x0, step.update
    return (
        update.sample + update.output * (slope - x0.sample) / x0.output,
        update.output * offset / x0.output,
    )


def moments(
    steps: Iterable[Step], start: tuple[float, float], mean: float = MEAN, variance: float = VARIANCE
) -> tuple[float, float]:
    """Mean and variance after ``steps`` from those of ``start``, exactly."""
    m, v = start
    for step in steps:
        factor, offset = affine(step, mean, variance)
        m, v = factor * m + offset, factor**2 * v + (step.noise_coef or 0.0) ** 2
    return m, v


def moment_error(table: StepTable, end: Point | None = None) -> float:
    """Of mean and variance, the larger, after starting from the exact marginal of the first point.

    The table ends at ``end``, or at the data where that is None.
    """
    first = table.steps[0].point
    assert first is not None
    m, v = moments(table.steps, marginal(first))
    mean, variance = (MEAN, VARIANCE) if end is None else marginal(end)
    return max(abs(m - mean), abs(v - variance))
