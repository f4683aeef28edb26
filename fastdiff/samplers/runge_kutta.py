"""Embedded Runge–Kutta pairs with PI step-size control, for differential equations dy/du = f(u, y).

Hairer, Nørsett and Wanner, "Solving Ordinary Differential Equations I", sections II.4 and II.5. The PI
controller is Gustafsson's, from Hairer and Wanner, volume II, section IV.2, with the exponents of its DOPRI5.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from fastdiff.errors import InputError, NumericError

__all__ = [
    "BOGACKI_SHAMPINE",
    "DORMAND_PRINCE",
    "Integral",
    "Pair",
    "evaluations_spent",
    "fixed_steps",
    "integrate",
    "worst_rms",
]

Float64 = NDArray[np.float64]
Derivative = Callable[[float, Float64], Float64]
Norm = Callable[[Float64], float]


@dataclass(frozen=True)
class Pair:
    """A Runge–Kutta formula with the coefficients of an error estimate; the last stage is f at the result.

    order   p of the formula that the solution goes on with
    nodes   cᵢ, [stages]
    stages  aᵢⱼ, rows of increasing length; the last row is the formula
    error   bᵢ − b̂ᵢ, [stages]: the difference from the formula of order p − 1
    """

    name: str
    order: int
    nodes: tuple[float, ...]
    stages: tuple[tuple[float, ...], ...]
    error: tuple[float, ...]

    @property
    def evaluations(self) -> int:
        """Of f per accepted step: the first stage is the last of the step before."""
        return len(self.nodes) - 1


DORMAND_PRINCE = Pair(
    "Dormand–Prince 5(4)",
    5,
    (0, 1 / 5, 3 / 10, 4 / 5, 8 / 9, 1, 1),
    (
        (),
        (1 / 5,),
        (3 / 40, 9 / 40),
        (44 / 45, -56 / 15, 32 / 9),
        (19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729),
        (9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656),
        (35 / 384, 0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84),
    ),
    (71 / 57600, 0, -71 / 16695, 71 / 1920, -17253 / 339200, 22 / 525, -1 / 40),
)
"""Dormand and Prince, "A family of embedded Runge–Kutta formulae", Table 2: RK5(4)7M."""

BOGACKI_SHAMPINE = Pair(
    "Bogacki–Shampine 3(2)",
    3,
    (0, 1 / 2, 3 / 4, 1),
    ((), (1 / 2,), (0, 3 / 4), (2 / 9, 1 / 3, 4 / 9)),
    (-5 / 72, 1 / 12, 1 / 9, -1 / 8),
)
"""Bogacki and Shampine, "A 3(2) pair of Runge–Kutta formulas"."""


@dataclass(frozen=True)
class Integral:
    """What `integrate` returns: y at the end, the evaluations of f, and the steps accepted and rejected."""

    y: Float64
    evaluations: int
    accepted: int
    rejected: int


def worst_rms(error: Float64) -> float:
    """The root mean square over each row of [batch, …], the largest of the batch.

    One step size serves the batch, and every image of it is held to the tolerance.
    """
    return float(np.sqrt(np.mean(np.square(error.reshape(len(error), -1)), axis=1)).max())


def integrate(
    f: Derivative,
    y: Float64,
    start: float,
    end: float,
    pair: Pair,
    *,
    rtol: float,
    atol: float,
    max_evaluations: int,
    norm: Norm = worst_rms,
    observe: Callable[[float, Float64, int], None] | None = None,
) -> Integral:
    """Integrate dy/du = f(u, y) from ``start`` to ``end``, either way, float64 of ``y``'s shape.

    A step is accepted where ``norm`` of the estimated error, each element over atol + rtol·max(|y|, |y'|), is
    at most 1. ``observe`` is called after accepted steps with u, y and the evaluations so far.

    Raises `InputError` when ``max_evaluations`` do not suffice, `NumericError` for NaN or infinity.
    """
    order, h_sign = pair.order, math.copysign(1.0, end - start)
    evaluations = accepted = rejected = 0

    def evaluate(u: float, y: Float64) -> Float64:
        nonlocal evaluations
        if evaluations == max_evaluations:
            raise evaluations_spent(max_evaluations, (u - start) / (end - start))
        evaluations += 1
        return f(u, y)

    u, slope = start, evaluate(start, y)
    h = _first_step(evaluate, u, y, slope, end, order, rtol, atol, norm)
    previous_error, after_rejection = 1e-4, False
    while u != end:
        # A remainder that is a rounding error of a step belongs to the step.
        h = abs(end - u) if h > abs(end - u) * (1 - 1e-10) else h
        following_u = end if h == abs(end - u) else u + h_sign * h
        if following_u == u:
            raise NumericError(
                f"the step size fell to {h:.1g} at {u:g}: the tolerance rtol={rtol:g}, atol={atol:g} is "
                "below the rounding error of the model; loosen it"
            )
        following, slopes = _step(evaluate, pair, u, y, slope, following_u - u)
        scale = atol + rtol * np.maximum(np.abs(y), np.abs(following))
        estimate = sum((b * k for b, k in zip(pair.error, slopes, strict=True) if b), np.zeros_like(y))
        error = norm(h * estimate / scale)
        if not math.isfinite(error):
            raise NumericError(f"NaN or infinity in the solution at {u:g}; the model gave it or diverged")
        if error <= 1:
            # PI control; the step does not grow right after a rejection.
            factor = 0.9 * max(error, 1e-10) ** (-0.85 / order) * previous_error ** (0.2 / order)
            factor = min(1.0 if after_rejection else 10.0, max(0.2, factor))
            u, y, slope = following_u, following, slopes[-1]
            previous_error, after_rejection = max(error, 1e-4), False
            accepted += 1
            if observe is not None:
                observe(u, y, evaluations)
        else:
            factor = max(0.2, 0.9 * error ** (-1 / order))
            after_rejection = True
            rejected += 1
        h *= factor
    return Integral(y, evaluations, accepted, rejected)


def fixed_steps(f: Derivative, y: Float64, times: Iterable[float], pair: Pair) -> Float64:
    """The same formula with the steps between ``times``, without control."""
    slope = None
    for u, following in pairwise(times):
        slope = f(u, y) if slope is None else slope
        y, slopes = _step(f, pair, u, y, slope, following - u)
        slope = slopes[-1]
    return y


def evaluations_spent(limit: int, share: float) -> InputError:
    """The error of a run that would go past its evaluations after ``share`` of its way."""
    return InputError(
        f"{limit} model evaluations brought the adaptive sampler {100 * share:.0f} % of its way; loosen rtol "
        "and atol, or raise max_evaluations"
    )


def _step(
    f: Derivative, pair: Pair, u: float, y: Float64, slope: Float64, h: float
) -> tuple[Float64, list[Float64]]:
    """Y after a step of h, and the slopes of all stages."""
    slopes, following = [slope], y
    for c, row in zip(pair.nodes[1:], pair.stages[1:], strict=True):
        following = y + h * sum((a * k for a, k in zip(row, slopes, strict=True) if a), np.zeros_like(y))
        slopes.append(f(u + c * h, following))
    return following, slopes


def _first_step(
    f: Derivative,
    u: float,
    y: Float64,
    slope: Float64,
    end: float,
    order: int,
    rtol: float,
    atol: float,
    norm: Norm,
) -> float:
    """Hairer, Nørsett and Wanner's first step, which costs an evaluation."""
    scale = atol + rtol * np.abs(y)
    size, speed = norm(y / scale), norm(slope / scale)
    h = 1e-6 if min(size, speed) < 1e-5 else 0.01 * size / speed
    h = min(h, abs(end - u))
    step = math.copysign(h, end - u)
    curvature = norm((f(u + step, y + step * slope) - slope) / scale) / h
    largest = max(speed, curvature)
    ideal = max(1e-6, 1e-3 * h) if largest <= 1e-15 else float((0.01 / largest) ** (1 / order))
    return min(100 * h, ideal, abs(end - u))
