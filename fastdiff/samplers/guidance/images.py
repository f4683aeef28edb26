"""Sums over each image of a batch, in float64: what comes out for one never depends on the others."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["divided", "inner", "per_image", "std"]

Array = NDArray[Any]
Scalars = NDArray[np.float64]


def inner(a: Array, b: Array) -> Scalars:
    """⟨a, b⟩ of each image, float64 [batch]."""
    product = _rows(a) * _rows(b)
    return np.asarray(product.sum(axis=1), dtype=np.float64)


def std(a: Array) -> Scalars:
    """The standard deviation over all elements of each image, float64 [batch]."""
    return np.asarray(_rows(a).std(axis=1), dtype=np.float64)


def divided(numerator: Scalars, denominator: Scalars, otherwise: float) -> Scalars:
    """The quotient, and ``otherwise`` where the denominator is 0."""
    result = np.full(numerator.shape, otherwise)
    np.divide(numerator, denominator, out=result, where=denominator != 0)
    return result


def per_image(scalars: Scalars, images: Array) -> Array:
    """One factor for each of ``images``, in their dtype and with as many axes."""
    factors: Array = scalars.astype(images.dtype).reshape(-1, *(1,) * (images.ndim - 1))
    return factors


def _rows(a: Array) -> NDArray[np.float64]:
    return a.reshape(len(a), -1).astype(np.float64)
