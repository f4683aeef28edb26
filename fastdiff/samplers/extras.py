"""What a step may have that is not linear: dynamic thresholding, learned variance, Langevin's step size.

Arrays are float32 with the batch first. Each function is one field of `fastdiff.samplers.table`.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from fastdiff.samplers.table import Langevin, Threshold, Variance

__all__ = ["add_langevin", "apply_threshold", "deviation"]

Array = NDArray[np.float32]


def apply_threshold(d: Array, threshold: Threshold) -> None:
    """`Threshold` of ``d`` (B, …), in place.

    The quantile lies between the two nearest elements in linear interpolation, as in ``torch.quantile``.
    """
    if not d.size:
        return
    sizes = np.abs(d).reshape(len(d), -1)
    position = threshold.ratio * (sizes.shape[1] - 1)
    low, high = math.floor(position), math.ceil(position)
    sizes.partition((low, high), axis=1)
    limit = sizes[:, low] + np.float32(position - low) * (sizes[:, high] - sizes[:, low])
    limit = limit.clip(1, threshold.maximum).reshape(-1, *(1,) * (d.ndim - 1))
    np.clip(d, -limit, limit, out=d)
    d /= limit


def deviation(v: Array, variance: Variance) -> Array:
    """The standard deviation that `Variance` makes of the model's ``v``, of any shape."""
    if variance.low is None or variance.high is None:
        return np.sqrt(v)
    share = (v + np.float32(1)) / np.float32(2)
    log_variance = share * np.float32(variance.high) + (np.float32(1) - share) * np.float32(variance.low)
    return np.asarray(np.exp(np.float32(0.5) * log_variance))


def add_langevin(score: Array, noise: Array, langevin: Langevin) -> Array:
    """e·score + √(2e)·noise of `Langevin`, for ``score`` and ``noise`` (B, …)."""
    norms = [np.linalg.norm(array.reshape(len(array), -1), axis=1) for array in (noise, score)]
    if langevin.batch_mean:
        norms = [norm.mean(keepdims=True) for norm in norms]
    with np.errstate(divide="ignore", invalid="ignore"):
        size = 2 * langevin.alpha * np.square(langevin.snr * norms[0] / norms[1])
        size = size.reshape(-1, *(1,) * (score.ndim - 1)).astype(np.float32)
        return np.asarray(size * score + np.sqrt(2 * size) * noise)
