"""Whether two results agree: relative L2 error of a module's outputs, PSNR of pictures."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["LEAST_PSNR", "LIMIT_L2", "Agreement", "compare"]

LIMIT_L2 = 1e-3
"""Largest relative L2 error against PyTorch eager at which a contestant is timed."""

LEAST_PSNR = 45.0
"""Least PSNR in dB against diffusers' picture at which a contestant is timed."""


_EQUAL = 100.0


@dataclass(frozen=True)
class Agreement:
    """``measure`` is ``relative_l2`` or ``psnr`` (dB, at most 100, which equal pictures have)."""

    measure: str
    value: float

    @property
    def ok(self) -> bool:
        """Whether the results agree; NaN does not."""
        if self.measure == "psnr":
            return self.value >= LEAST_PSNR
        return self.value <= LIMIT_L2

    def __str__(self) -> str:
        if self.measure == "psnr":
            return f"PSNR {self.value:.1f} dB, wanted at least {LEAST_PSNR:g}"
        return f"relative L2 error {self.value:.1e}, allowed {LIMIT_L2:.0e}"


def compare(found: Mapping[str, NDArray[Any]], expected: Mapping[str, NDArray[Any]]) -> Agreement:
    """The worst over all outputs. uint8 arrays are pictures; another shape or output never agrees."""
    pictures = all(array.dtype == np.uint8 for array in expected.values())
    measure, never = ("psnr", -math.inf) if pictures else ("relative_l2", math.inf)
    if found.keys() != expected.keys() or any(found[name].shape != expected[name].shape for name in found):
        return Agreement(measure, never)
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
    return Agreement(measure, min(values) if pictures else max(values))
