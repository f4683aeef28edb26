"""The one comparison of arrays that the tests use."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["assert_close", "relative_l2"]


def as_array(value: Any) -> npt.NDArray[Any]:
    """A NumPy array of a NumPy array, a torch tensor or a nested list, without importing torch."""
    if hasattr(value, "detach"):
        value = value.detach().cpu().numpy()
    return np.asarray(value)


def relative_l2(found: Any, wanted: Any) -> float:
    """‖found - wanted‖₂ / ‖wanted‖₂ in double precision; the plain norm where ``wanted`` is zero."""
    f = as_array(found).astype(np.float64)
    w = as_array(wanted).astype(np.float64)
    norm = float(np.linalg.norm(w))
    return float(np.linalg.norm(f - w)) / (norm if norm > 0.0 else 1.0)


def assert_close(
    found: Any,
    wanted: Any,
    *,
    rel_l2: float | None = None,
    max_abs: float | None = None,
    label: str = "array",
) -> None:
    """Fail unless shapes are equal, NaN and infinities are in the same places, and errors are within bounds.

    ``rel_l2`` bounds the relative L2 error over the finite elements; ``max_abs`` the largest difference
    of one element; give at least one. The message names the worst element: a failing tail or channel shows.
    """
    if rel_l2 is None and max_abs is None:
        raise ValueError("assert_close without a bound checks nothing: give rel_l2 or max_abs")
    f, w = as_array(found), as_array(wanted)
    assert f.shape == w.shape, f"{label}: found shape {f.shape}, wanted {w.shape}"
    f64, w64 = f.astype(np.float64), w.astype(np.float64)
    finite = np.isfinite(w64)
    odd = ~finite | ~np.isfinite(f64)
    same = np.array_equal(f64[odd], w64[odd], equal_nan=True)
    where = "" if same else f", first at {tuple(int(i) for i in np.argwhere(odd)[0])}"
    assert same, (
        f"{label}: NaN or infinity in other places: found {f64[odd][:4]}, wanted {w64[odd][:4]}{where}"
    )
    if not finite.any():
        return
    difference = np.abs(np.where(finite, f64 - np.where(finite, w64, 0.0), 0.0))
    error = relative_l2(f64[finite], w64[finite])
    worst = np.unravel_index(int(difference.argmax()), difference.shape)
    largest = float(difference[worst])
    within = (rel_l2 is None or error <= rel_l2) and (max_abs is None or largest <= max_abs)
    assert within, (
        f"{label} {f.shape}: relative L2 {error:.3e} (allowed {rel_l2}), largest difference {largest:.3e} "
        f"(allowed {max_abs}) at {tuple(int(i) for i in worst)}: found {f64[worst]!r}, wanted {w64[worst]!r}"
    )
