"""Quantiles of the beta distribution, without SciPy: a runtime that draws pictures needs only NumPy."""

from __future__ import annotations

import functools
import math

import numpy as np
from numpy.typing import NDArray

from fastdiff.errors import InputError

__all__ = ["beta_quantiles"]

Float64 = NDArray[np.float64]

_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(48)
_GRID = 256
_ITERATIONS = 8


def beta_quantiles(p: Float64, a: float, b: float) -> Float64:
    """The x in [0, 1] with I_x(a, b) = ``p`` [n], I the regularised incomplete beta function.

    In θ with x = sin²(πθ/2), where I is nearly straight for a and b near ½: from a table, by Newton's method
    kept within the table's cell. Raises `InputError` unless 0 < a, b ≤ 1: densities that peak inside want
    another quadrature.
    """
    if not (0 < a <= 1 and 0 < b <= 1):
        raise InputError(f"the beta distribution has parameters {a:g}, {b:g}, wanted above 0 and at most 1")
    inner = np.clip(p, 1e-300, 1 - 1e-16)
    thetas, values = _table(a, b)
    cell = np.clip(np.searchsorted(values, inner) - 1, 0, _GRID - 1)
    low, high = thetas[cell], thetas[cell + 1]
    theta = low + (high - low) * (inner - values[cell]) / np.maximum(values[cell + 1] - values[cell], 1e-300)
    for _ in range(_ITERATIONS):
        x = np.sin(math.pi / 2 * theta) ** 2
        error = _cdf(x, a, b) - inner
        low, high = np.where(error < 0, theta, low), np.where(error > 0, theta, high)
        with np.errstate(divide="ignore", invalid="ignore"):
            slope = math.pi * x ** (a - 0.5) * (1 - x) ** (b - 0.5) / _whole(a, b)
            newton = theta - error / slope
        # Where Newton's step leaves what is known to hold the root, half of that is taken instead.
        theta = np.where((newton > low) & (newton < high), newton, (low + high) / 2)
    x = np.sin(math.pi / 2 * theta) ** 2
    return np.where(p <= 0, 0.0, np.where(p >= 1, 1.0, x))


@functools.lru_cache(maxsize=8)
def _table(a: float, b: float) -> tuple[Float64, Float64]:
    thetas = np.linspace(0, 1, _GRID + 1)
    return thetas, _cdf(np.sin(math.pi / 2 * thetas) ** 2, a, b)


def _whole(a: float, b: float) -> float:
    return math.exp(math.lgamma(a) + math.lgamma(b) - math.lgamma(a + b))


def _cdf(x: Float64, a: float, b: float) -> Float64:
    """I_x(a, b) from the nearer end, so that each integral is of a smooth function."""
    left = _lower(np.minimum(x, 0.5), a, b) / _whole(a, b)
    right = 1 - _lower(np.minimum(1 - x, 0.5), b, a) / _whole(a, b)
    return np.where(x <= 0.5, left, right)


def _lower(x: Float64, a: float, b: float) -> Float64:
    """∫₀ˣ t^(a−1)·(1 − t)^(b−1) dt for x ≤ ½, by Gauss and Legendre in u = t^a, which has no singularity."""
    top = x**a
    u = top[:, None] * (_NODES + 1) / 2
    return np.asarray(top / 2 * ((1 - u ** (1 / a)) ** (b - 1) @ _WEIGHTS) / a)
