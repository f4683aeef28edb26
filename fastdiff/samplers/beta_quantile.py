"""Quantiles of the beta distribution, without SciPy: a runtime that draws pictures needs only NumPy."""

from __future__ import annotations

import math

import numpy as np

__all__ = ["beta_quantile"]

_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(64)


def beta_quantile(p: float, a: float, b: float) -> float:
    """The x in [0, 1] with I_x(a, b) = ``p``, I the regularised incomplete beta function; a, b > 0.

    Bisection to the last bit. I is the integral of t^(a−1)·(1 − t)^(b−1) up to x over that up to 1; with
    t = u^(1/a) the singularity at 0 is gone, and beyond the middle the other tail is taken.
    """
    if p <= 0 or p >= 1:
        return float(p >= 1)
    low, high = 0.0, 1.0
    while True:
        middle = (low + high) / 2
        if middle in (low, high):
            return middle
        if _cdf(middle, a, b) < p:
            low = middle
        else:
            high = middle


def _cdf(x: float, a: float, b: float) -> float:
    whole = math.exp(math.lgamma(a) + math.lgamma(b) - math.lgamma(a + b))
    if x <= 0.5:
        return _lower(x, a, b) / whole
    return 1 - _lower(1 - x, b, a) / whole


def _lower(x: float, a: float, b: float) -> float:
    """∫₀ˣ t^(a−1)·(1 − t)^(b−1) dt for x ≤ ½, by Gauss and Legendre in u = t^a."""
    top = x**a
    u = top * (_NODES + 1) / 2
    return float(top / 2 * (_WEIGHTS * (1 - u ** (1 / a)) ** (b - 1)).sum() / a)
