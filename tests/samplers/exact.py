"""Samplers on data with a known denoiser: the exact trajectory, and exact moments without Monte Carlo."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
from scipy.integrate import solve_ivp

from fastdiff.samplers import Point, Step, StepTable
from fastdiff.zoo.mixture import GaussianMixture

MIXTURE = GaussianMixture(
    np.array([0.3, 0.45, 0.25]), np.array([[-1.2, 0.3], [0.8, 0.9], [0.5, -1.1]]), np.array([0.35, 0.5, 0.4])
)
"""Smooth enough that every solver is in its asymptotic range at the step counts of the tests."""
GAUSSIAN = GaussianMixture(np.array([1.0]), np.array([[0.7, -0.4]]), np.array([0.6]))
START = np.random.default_rng(5).standard_normal((7, 2))


def point_of(step: Step) -> Point:
    assert step.point is not None, "a step without its noise level"
    return step.point


def states(table: StepTable, data: GaussianMixture, start: np.ndarray) -> list[np.ndarray]:
    """The sample before each step and after the last, in float64, with the perfect denoiser and no noise."""
    x = start
    slots: dict[int, np.ndarray] = {}
    found = [x]
    for step in table.steps:
        m = data.output(x, point_of(step))
        following = step.update.sample * x + step.update.output * m
        kept = m
        if step.estimate is not None:
            value = step.estimate.value
            assert step.estimate.limit == np.inf
            kept = value.sample * x + value.output * m
            following = following + step.estimate.weight * kept
        for slot, coef in step.history:
            following = following + coef * slots[slot]
        if step.save_sample is not None:
            slots[step.save_sample] = x
        if step.save_output is not None:
            slots[step.save_output] = kept
        x = following
        found.append(x)
    return found


def flow(data: GaussianMixture, x: np.ndarray, begin: Point, end: Point) -> np.ndarray:
    """The probability-flow ODE from ``begin`` to ``end``, to 1e-11.

    Every process is a scaled straight line α = 1 − s, σ = s, on which dx/ds = ε − x₀ = (x − x₀)/s, also where
    no signal is left (s = 1).
    """

    def slope(log_s: float, flat: np.ndarray) -> np.ndarray:
        s = np.exp(log_s)
        state = flat.reshape(x.shape)
        return (state - data.denoise(state, 1 - s, s)).ravel()

    spans = [np.log(point.sigma / (point.alpha + point.sigma)) for point in (begin, end)]
    start = (x / (begin.alpha + begin.sigma)).ravel()
    solution = solve_ivp(slope, spans, start, "DOP853", rtol=1e-11, atol=1e-13)
    assert solution.success
    return (end.alpha + end.sigma) * solution.y[:, -1].reshape(x.shape)


def slope_of_error(make: Callable[[int], StepTable], counts: tuple[int, ...], data: GaussianMixture) -> float:
    """Minus the slope of log(global error) over log(steps), at the last evaluation's noise level."""
    errors = []
    for count in counts:
        table = make(count)
        first, last = point_of(table.steps[0]), point_of(table.steps[-1])
        scale = np.hypot(first.alpha * 0.9, first.sigma)
        exact = flow(data, scale * START, first, last)
        errors.append(np.abs(states(table, data, scale * START)[-2] - exact).max())
    return -float(np.polyfit(np.log(counts), np.log(errors), 1)[0])


def moments(table: StepTable, mean: float, std: float) -> tuple[float, float]:
    """Mean and variance of the result for scalar data N(mean, std²), propagated exactly.

    With this data the perfect denoiser is affine, so that a sampler is x, slots ← A·(x, slots, 1) + c·z.
    """
    count = 1 + table.slots
    first = point_of(table.steps[0])
    mu, covariance = np.zeros(count), np.zeros((count, count))
    mu[0] = first.alpha * mean
    covariance[0, 0] = (first.alpha * std) ** 2 + first.sigma**2
    if table.start_noise is not None:
        covariance[0, 0] = table.init_noise_sigma**2 + table.start_noise**2
    for step in table.steps:
        assert step.linear, "not an affine map"
        point = point_of(step)
        variance = (point.alpha * std) ** 2 + point.sigma**2
        pull = point.alpha * std**2 / variance
        x0 = point.x0
        gain = (pull - x0.sample) / x0.output  # m = gain·x + shift
        shift = mean * (1 - point.alpha * pull) / x0.output
        row, constant = np.zeros(count), step.update.output * shift
        row[0] = step.update.sample + step.update.output * gain
        kept, kept_constant = gain, shift
        if step.estimate is not None:
            value = step.estimate.value
            kept, kept_constant = value.sample + value.output * gain, value.output * shift
            row[0] += step.estimate.weight * kept
            constant += step.estimate.weight * kept_constant
        for slot, coef in step.history:
            row[1 + slot] += coef
        matrix, shifts = np.eye(count), np.zeros(count)
        matrix[0], shifts[0] = row, constant
        if step.save_sample is not None:
            matrix[1 + step.save_sample] = np.eye(count)[0]
        if step.save_output is not None:
            matrix[1 + step.save_output] = kept * np.eye(count)[0]
            shifts[1 + step.save_output] = kept_constant
        mu = matrix @ mu + shifts
        covariance = matrix @ covariance @ matrix.T
        covariance[0, 0] += (step.noise_coef or 0.0) ** 2
    return float(mu[0]), float(covariance[0, 0])


def marginal_error(table: StepTable, mean: float, std: float) -> tuple[float, float]:
    """How far mean and variance are off before the last evaluation, relative to the standard deviation there.

    Not after it: the jump from the last noise level to the clean sample shrinks the variance by a share that
    does not depend on the steps.
    """
    last = point_of(table.steps[-1])
    found = moments(replace(table, steps=table.steps[:-1]), mean, std)
    variance = (last.alpha * std) ** 2 + last.sigma**2
    return abs(found[0] - last.alpha * mean) / np.sqrt(variance), abs(found[1] - variance) / variance
