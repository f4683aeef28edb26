"""Means of the tokens that become one."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from fastdiff import _C

__all__ = ["token_merge"]

FloatArray = npt.NDArray[np.float32]


def token_merge(
    x: FloatArray,
    plan: npt.NDArray[np.int64],
    rows: int,
    *,
    out: FloatArray | None = None,
    threads: int = 1,
    isa: str | None = None,
) -> FloatArray:
    """Return the means of the tokens with the same entry in ``plan``; zeros for a row that has none.

    ``x``: (N, T, C) float32, ``plan``: (N, T) int64 in [0, rows), both C-contiguous. Result: (N, rows, C).

    ``out`` is allocated when None, and returned; it shares no memory with ``x``. ``threads`` work on it; the
    result does not depend on their number. ``isa`` runs this call with another instruction set than the
    process's.

    Raises :class:`fastdiff.errors.InputError` for another dtype, shape or layout, or an entry out of range.
    """
    if out is None and np.ndim(x) == 3 and rows >= 0:
        out = np.empty((np.shape(x)[0], rows, np.shape(x)[2]), np.float32)
    _C.token_merge(x, plan, out, threads, isa)
    assert out is not None  # the call has refused other shapes
    return out
