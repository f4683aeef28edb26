"""Tokens that became one, apart again."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from fastdiff import _C

__all__ = ["token_unmerge"]

FloatArray = npt.NDArray[np.float32]


def token_unmerge(
    x: FloatArray,
    plan: npt.NDArray[np.int64],
    *,
    out: FloatArray | None = None,
    threads: int = 1,
    isa: str | None = None,
) -> FloatArray:
    """Return ``x[:, plan]``, each picture with its own plan.

    ``x``: (N, R, C) float32, ``plan``: (N, T) int64 in [0, R), both C-contiguous. Result: (N, T, C).

    ``out`` is allocated when None, and returned; it shares no memory with ``x``. ``threads`` work on it.
    ``isa`` runs this call with another instruction set than the process's.

    Raises :class:`fastdiff.errors.InputError` for another dtype, shape or layout, or an entry out of range.
    """
    if out is None and np.ndim(x) == 3 and np.ndim(plan) == 2:
        out = np.empty((np.shape(x)[0], np.shape(plan)[1], np.shape(x)[2]), np.float32)
    _C.token_unmerge(x, plan, out, threads, isa)
    assert out is not None  # the call has refused other shapes
    return out
