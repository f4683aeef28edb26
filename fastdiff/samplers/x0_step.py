"""Steps of solvers that are written in the predicted clean sample, and its clipping."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from fastdiff.samplers.path import Point
from fastdiff.samplers.prediction import Linear
from fastdiff.samplers.settings import Settings
from fastdiff.samplers.table import Estimate, Step, Threshold, step_at

__all__ = ["UNCLIPPED", "Clipping", "clipping", "x0_step"]


@dataclass(frozen=True)
class Clipping:
    """What happens to a predicted clean sample before a solver uses it: see `Estimate`."""

    limit: float = math.inf
    threshold: Threshold | None = None

    @property
    def active(self) -> bool:
        """Whether it changes anything."""
        return self.limit < math.inf or self.threshold is not None


UNCLIPPED = Clipping()


def clipping(settings: Settings) -> Clipping:
    """From clip_sample and clip_sample_range (1), or thresholding, dynamic_thresholding_ratio (0.995) and
    sample_max_value (1). As in diffusers, thresholding wins where both are set.
    """
    limit = settings.positive("clip_sample_range", 1.0) if settings.flag("clip_sample", False) else math.inf
    return thresholding(settings) or Clipping(limit)


def thresholding(settings: Settings) -> Clipping | None:
    """Dynamic thresholding, where it is asked for."""
    ratio = settings.positive("dynamic_thresholding_ratio", 0.995)
    maximum = settings.positive("sample_max_value", 1.0)
    return Clipping(threshold=Threshold(ratio, maximum)) if settings.flag("thresholding", False) else None


def x0_step(
    point: Point,
    sample: float,
    x0: float,
    clip: Clipping = UNCLIPPED,
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
