"""Samplers on data with a known denoiser: the exact trajectory, and exact moments without Monte Carlo."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
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
MEAN, STD = 0.7, 0.6
NORMAL = GaussianMixture(np.ones(1), np.array([[MEAN]]), np.array([STD]))
"""Data in one dimension, whose moments are propagated."""


def point_of(step: Step) -> Point:
    assert step.point is not None, "a step without its noise level"
    return step.point


def elementwise(data: GaussianMixture) -> Callable[[Point, np.ndarray], np.ndarray]:
    """The perfect denoiser of data in one dimension, for each element of a state of any shape."""
    return lambda point, x: data.output(x.reshape(-1, 1), point).reshape(x.shape)


def marginal(point: Point, mean: float = MEAN, std: float = STD) -> tuple[float, float]:
    """Mean and variance of the state at a point, for data N(mean, std²)."""
    return point.alpha * mean, (point.alpha * std) ** 2 + point.sigma**2


def states(
    table: StepTable, data: GaussianMixture, start: np.ndarray, saved: Mapping[int, np.ndarray] | None = None
) -> list[np.ndarray]:
    """The sample before each step and after the last, in float64, with the perfect denoiser and no noise.

    ``saved`` is what slots hold at the start.
    """
    x = start
    slots = dict(saved or {})
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
    """Where the probability-flow ODE takes ``x`` from ``begin`` to ``end``.

    With a single Gaussian it keeps quantiles. A mixture is solved to 13 digits: every process is a scaled
    straight line α = 1 − s, σ = s, on which dx/ds = ε − x₀ = (x − x₀)/s, also where no signal is left, s = 1.
    """
    if len(data.weights) == 1:
        (mean, variance), (to_mean, to_variance) = (
            marginal(point, data.means[0], data.stds[0]) for point in (begin, end)
        )
        return to_mean + (x - mean) * np.sqrt(to_variance / variance)

    def slope(log_s: float, flat: np.ndarray) -> np.ndarray:
        s = np.exp(log_s)
        state = flat.reshape(x.shape)
        return (state - data.denoise(state, 1 - s, s)).ravel()

    spans = [np.log(point.sigma / (point.alpha + point.sigma)) for point in (begin, end)]
    start = (x / (begin.alpha + begin.sigma)).ravel()
    solution = solve_ivp(slope, spans, start, "DOP853", rtol=3e-14, atol=1e-15)
    assert solution.success
    return (end.alpha + end.sigma) * solution.y[:, -1].reshape(x.shape)


@functools.cache
def trajectory(data: GaussianMixture, begin: Point, end: Point) -> tuple[np.ndarray, np.ndarray]:
    """Samples about as large as those at ``begin``, and where the ODE takes them."""
    start = np.hypot(begin.alpha * 0.9, begin.sigma) * START
    return start, flow(data, start, begin, end)


def error_of(table: StepTable, data: GaussianMixture) -> float:
    """The largest error at the last evaluation's noise level."""
    start, wanted = trajectory(data, point_of(table.steps[0]), point_of(table.steps[-1]))
    return float(np.abs(states(table, data, start)[-2] - wanted).max())


def order_of(counts: Sequence[int], errors: Sequence[float] | np.ndarray) -> float:
    """Minus the slope of log(error) over log(steps)."""
    return -float(np.polyfit(np.log(counts), np.log(errors), 1)[0])


def slope_of_error(make: Callable[[int], StepTable], counts: Sequence[int], data: GaussianMixture) -> float:
    """The measured order of convergence."""
    return order_of(counts, [error_of(make(count), data) for count in counts])


def affine(step: Step, slots: int, mean: float = MEAN, std: float = STD) -> tuple[np.ndarray, np.ndarray]:
    """A step with the perfect denoiser of N(mean, std²): (x, slots) ← matrix·(x, slots) + shift + noise."""
    assert step.linear, "not an affine map"
    point = point_of(step)
    pull = point.alpha * std**2 / marginal(point, mean, std)[1]
    x0 = point.x0
    gain = (pull - x0.sample) / x0.output  # m = gain·x + constant
    constant = mean * (1 - point.alpha * pull) / x0.output
    matrix, shift = np.eye(1 + slots), np.zeros(1 + slots)
    row = matrix[0]
    row[0] = step.update.sample + step.update.output * gain
    shift[0] = step.update.output * constant
    kept, kept_constant = gain, constant
    if step.estimate is not None:
        value = step.estimate.value
        kept, kept_constant = value.sample + value.output * gain, value.output * constant
        row[0] += step.estimate.weight * kept
        shift[0] += step.estimate.weight * kept_constant
    for slot, coef in step.history:
        row[1 + slot] += coef
    for saved, factor, offset in ((step.save_sample, 1.0, 0.0), (step.save_output, kept, kept_constant)):
        if saved is not None:
            matrix[1 + saved] = 0.0
            matrix[1 + saved, 0], shift[1 + saved] = factor, offset
    return matrix, shift


def moments(
    table: StepTable, mean: float = MEAN, std: float = STD, start: tuple[float, float] | None = None
) -> tuple[float, float]:
    """Mean and variance of the result for scalar data N(mean, std²), propagated exactly.

    ``start`` is that of the first sample, by default that of the data at the first evaluation's noise level.
    """
    count = 1 + table.slots
    mu, covariance = np.zeros(count), np.zeros((count, count))
    mu[0], covariance[0, 0] = start or marginal(point_of(table.steps[0]), mean, std)
    if start is None and table.start_noise is not None:
        covariance[0, 0] = table.init_noise_sigma**2 + table.start_noise**2
    for step in table.steps:
        matrix, shift = affine(step, table.slots, mean, std)
        mu = matrix @ mu + shift
        covariance = matrix @ covariance @ matrix.T
        covariance[0, 0] += (step.noise_coef or 0.0) ** 2
    return float(mu[0]), float(covariance[0, 0])


def marginal_error(table: StepTable, mean: float = MEAN, std: float = STD) -> tuple[float, float]:
    """How far mean and variance are off before the last evaluation, relative to the standard deviation there.

    Not after it: the jump from the last noise level to the clean sample shrinks the variance by a share that
    does not depend on the steps.
    """
    wanted, variance = marginal(point_of(table.steps[-1]), mean, std)
    found = moments(replace(table, steps=table.steps[:-1]), mean, std)
    return abs(found[0] - wanted) / np.sqrt(variance), abs(found[1] - variance) / variance
