"""Clipping of the predicted clean sample: static, to a fixed range, or dynamic thresholding."""

from __future__ import annotations

import math
from dataclasses import dataclass

from fastdiff.samplers.prediction import Linear
from fastdiff.samplers.settings import Settings
from fastdiff.samplers.table import Estimate, Threshold

__all__ = ["NO_CLIPPING", "Clipping", "read_clipping"]


@dataclass(frozen=True)
class Clipping:
    """What is done to x₀ before a step uses it: clipped to ±``limit``, then thresholded."""

    limit: float = math.inf
    threshold: Threshold | None = None

    @property
    def active(self) -> bool:
        """Whether anything is done to x₀."""
        return self.limit < math.inf or self.threshold is not None

    def split(self, x0: Linear, weight: float) -> tuple[Linear, Estimate | None]:
        """``weight·x₀`` as a linear term and an estimate: all of it is in one of them."""
        if self.active:
            return Linear(0.0, 0.0), Estimate(x0, weight, self.limit, self.threshold)
        return weight * x0, None


NO_CLIPPING = Clipping()


def read_clipping(settings: Settings, *, clip_sample: bool = False) -> Clipping:
    """The options of diffusers' schedulers, ``clip_sample`` being the default of the key of that name.

    Reads clip_sample, clip_sample_range, thresholding, dynamic_thresholding_ratio and sample_max_value.
    Thresholding takes the place of clipping.
    """
    clips = settings.flag("clip_sample", clip_sample)
    limit = settings.positive("clip_sample_range", 1.0)
    thresholds = settings.flag("thresholding", False)
    ratio = settings.within("dynamic_thresholding_ratio", 0.995, 0.0, 1.0)
    maximum = settings.positive("sample_max_value", 1.0)
    if thresholds:
        return Clipping(threshold=Threshold(ratio, maximum))
    return Clipping(limit) if clips else NO_CLIPPING
