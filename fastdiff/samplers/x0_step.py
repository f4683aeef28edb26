"""Steps of solvers that are written in the predicted clean sample."""

from __future__ import annotations

from typing import Any

from fastdiff.samplers.clipping import NO_CLIPPING, Clipping
from fastdiff.samplers.path import Point
from fastdiff.samplers.prediction import Linear
from fastdiff.samplers.table import Estimate, Step, step_at

__all__ = ["x0_step"]


def x0_step(
    point: Point,
    sample: float,
    x0: float,
    clip: Clipping = NO_CLIPPING,
    *,
    save: int | None = None,
    **fields: Any,
) -> Step:
    """The step to ``sample``·x + ``x0``·D, where D is the clean sample that is predicted at ``point``.

    ``save`` is the slot that keeps D, or None; ``fields`` are further fields of the Step.
    """
    if save is None and not clip.active:
        return step_at(point, Linear(sample, 0.0) + x0 * point.x0, **fields)
    estimate = Estimate(point.x0, x0, clip.limit, clip.threshold)
    return step_at(point, Linear(sample, 0.0), estimate=estimate, save_output=save, **fields)
