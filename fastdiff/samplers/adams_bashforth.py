"""Linear multistep in the slope ε with constant weights: the core of PNDM and iPNDM."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from fastdiff.samplers.path import Point
from fastdiff.samplers.prediction import Linear, Prediction
from fastdiff.samplers.table import Estimate, Step, step_at

__all__ = ["ADAMS_BASHFORTH", "RING", "Transfer", "extrapolate", "slope", "slope_fields"]

# Weights of the current and the earlier slopes: Eq. 12 of the PNDM paper and the lower orders.
ADAMS_BASHFORTH = {
    1: (1.0,),
    2: (3 / 2, -1 / 2),
    3: (23 / 12, -16 / 12, 5 / 12),
    4: (55 / 24, -59 / 24, 37 / 24, -9 / 24),
}
RING = 3
"""Slots 0 to 2 keep the last three slopes in turn."""


@dataclass(frozen=True)
class Transfer:
    """φ of Eq. 11 of the PNDM paper, its "transfer part": x' = along·x + across·e moves x from one level to
    another on a slope e. The same as DDIM's step with e = ε.
    """

    along: float
    across: float

    @classmethod
    def between(cls, begin: Point, end: Point, *, raw: bool = False) -> Transfer:
        """From ``begin`` to ``end`` with e = ε; ``raw`` takes the model's output v in its place.

        Then ε = α·e + σ·x at ``begin``, which is right for the current output only. That is what diffusers
        does with v, and it leaves the method with order 1.
        """
        along = end.alpha / begin.alpha
        across = end.sigma - along * begin.sigma
        if raw and begin.prediction is Prediction.V:
            return cls(along + across * begin.sigma, across * begin.alpha)
        return cls(along, across)


def slope(point: Point, *, raw: bool = False) -> Linear:
    """The slope at ``point`` as a combination of x and the output: ε, or the output itself if ``raw``."""
    return Linear(0.0, 1.0) if raw else point.epsilon


def slope_fields(point: Point, slot: int, *, raw: bool = False) -> dict[str, object]:
    """The fields of a Step that keep its slope in ``slot``."""
    e = slope(point, raw=raw)
    if e == Linear(0.0, 1.0):
        return {"save_output": slot}
    return {"save_output": slot, "estimate": Estimate(e)}


def extrapolate(
    points: Sequence[Point], transfers: Sequence[Transfer], known: int, order: int = 4, *, raw: bool = False
) -> list[Step]:
    """Eq. 12: each of ``transfers`` along the slopes extrapolated from ``points``, at which they start.

    The slopes of the first ``known`` points are in the ring already; their steps are left out. Up to
    ``order`` slopes are used, as many as there are.
    """
    rows = []
    for i, (point, transfer) in enumerate(zip(points[known:], transfers[known:], strict=True), start=known):
        weights = ADAMS_BASHFORTH[min(i + 1, order)]
        update = Linear(transfer.along, 0.0) + transfer.across * weights[0] * slope(point, raw=raw)
        history = tuple(((i - k) % RING, transfer.across * weights[k]) for k in range(1, len(weights)))
        rows.append(step_at(point, update, history=history, **slope_fields(point, i % RING, raw=raw)))
    return rows
