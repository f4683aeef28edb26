"""Latents in another size, as ``torch.nn.functional.interpolate`` makes them (corners not aligned)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from fastdiff.errors import InputError

__all__ = ["LATENT_METHODS", "interpolate"]

Array = NDArray[np.float32]
LATENT_METHODS = ("nearest", "bilinear", "bicubic")
_A = -0.75
"""Of the cubic convolution kernel of Keys, "Cubic Convolution Interpolation for Digital Image Processing"."""


def interpolate(array: Array, height: int, width: int, method: str) -> Array:
    """``array`` [batch, channels, h, w] as float32 [batch, channels, height, width].

    ``method`` is one of `LATENT_METHODS`. Nothing is smoothed before it is made smaller. Raises InputError
    for another method.
    """
    if method not in LATENT_METHODS:
        raise InputError(f"interpolation {method!r} is unknown: use one of {', '.join(LATENT_METHODS)}")
    rows = _weights(array.shape[2], height, method)
    columns = _weights(array.shape[3], width, method)
    return np.ascontiguousarray(rows @ (array @ columns.T), np.float32)


def _weights(size: int, wanted: int, method: str) -> Array:
    """The matrix [wanted, size] of what each new element takes of the old ones."""
    scale = size / wanted
    matrix = np.zeros((wanted, size))
    at = np.arange(wanted)
    if method == "nearest":
        matrix[at, np.minimum((at * np.float32(scale)).astype(np.int64), size - 1)] = 1
        return matrix.astype(np.float32)
    place = (at + 0.5) * scale - 0.5
    if method == "bilinear":
        place = np.maximum(place, 0)
    first = np.floor(place).astype(np.int64)
    share = place - first
    taps = {0: 1 - share, 1: share}
    if method == "bicubic":
        taps = {-1: _outer(share + 1), 0: _inner(share), 1: _inner(1 - share), 2: _outer(2 - share)}
    for offset, weight in taps.items():
        np.add.at(matrix, (at, np.clip(first + offset, 0, size - 1)), weight)
    return matrix.astype(np.float32)


def _inner(x: NDArray[np.float64]) -> NDArray[np.float64]:
    return ((_A + 2) * x - (_A + 3)) * x * x + 1


def _outer(x: NDArray[np.float64]) -> NDArray[np.float64]:
    return ((_A * x - 5 * _A) * x + 8 * _A) * x - 4 * _A
