"""Whether two results agree: relative L2 error of a module's outputs, PSNR of pictures."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["LEAST_PSNR", "LIMIT_L2", "Agreement", "compare", "half_limit"]

LIMIT_L2 = 1e-3
"""Largest relative L2 error against PyTorch eager at which a contestant is timed, in float32."""

LEAST_PSNR = 45.0
"""Least PSNR in dB against diffusers' picture at which a contestant is timed."""


_EQUAL = 100.0


@dataclass(frozen=True)
class Agreement:
    """``measure`` is ``relative_l2`` or ``psnr`` (dB, at most 100, which equal pictures have).

    ``limit`` is the worst value at which a contestant is timed, None that of float32: in half precision it
    follows the error that PyTorch itself has (``half_limit``).
    """

    measure: str
    value: float
    limit: float | None = None

    @property
    def ok(self) -> bool:
        """Whether the results agree; NaN does not."""
        if self.measure == "psnr":
            return self.value >= (LEAST_PSNR if self.limit is None else self.limit)
        return self.value <= (LIMIT_L2 if self.limit is None else self.limit)

    def __str__(self) -> str:
        if self.measure == "psnr":
            least = LEAST_PSNR if self.limit is None else self.limit
            return f"PSNR {self.value:.1f} dB, wanted at least {least:.4g}"
        limit = f"{LIMIT_L2:.0e}" if self.limit is None else f"{self.limit:.1e}"
        return f"relative L2 error {self.value:.1e}, allowed {limit}"


def half_limit(own: Agreement) -> float:
    """The worst value allowed in a half precision where PyTorch's own there is ``own``: twice its error.

    Raises ValueError for one that is no number or infinite.
    """
    if not math.isfinite(own.value):
        raise ValueError(f"{own.measure} is {own.value}")
    if own.measure == "psnr":
        return min(LEAST_PSNR, own.value - 20 * math.log10(2))
    return 2 * own.value


def compare(
    found: Mapping[str, NDArray[Any]], expected: Mapping[str, NDArray[Any]], limit: float | None = None
) -> Agreement:
    """The worst over all outputs. uint8 arrays are pictures; another shape or output never agrees."""
    pictures = all(array.dtype == np.uint8 for array in expected.values())
    measure, never = ("psnr", -math.inf) if pictures else ("relative_l2", math.inf)
    if found.keys() != expected.keys() or any(found[name].shape != expected[name].shape for name in found):
        return Agreement(measure, never, limit)
    values = []
    for name, array in expected.items():
        wanted = np.asarray(array, np.float64)
        difference = np.asarray(found[name], np.float64) - wanted
        if pictures:
            error = float(np.mean(difference**2))
            values.append(min(_EQUAL, 10 * math.log10(255**2 / error)) if error > 0 else _EQUAL)
        else:
            norm = float(np.linalg.norm(wanted))
            error = float(np.linalg.norm(difference)) / max(norm, float(np.finfo(np.float32).tiny))
            values.append(math.inf if math.isnan(error) else error)
    return Agreement(measure, min(values) if pictures else max(values), limit)
