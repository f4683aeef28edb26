"""Which tokens of a picture become one."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from fastdiff import _C

__all__ = ["token_match"]

FloatArray = npt.NDArray[np.float32]


def token_match(
    x: FloatArray,
    merged: int,
    *,
    out: npt.NDArray[np.int64] | None = None,
    threads: int = 1,
    isa: str | None = None,
) -> npt.NDArray[np.int64]:
    """Return the row in which each token is found when ``merged`` of them are merged into others.

    ``x``: (N, H, W, C) float32, C-contiguous, H and W at least 2. Result: (N, H·W) int64, each entry below
    H·W - ``merged``. `reference.token_match` says how the tokens are chosen.

    ``out`` is allocated when None, and returned. ``threads`` work on it; the result does not depend on their
    number. ``isa`` runs this call with another instruction set than the process's.

    Raises :class:`fastdiff.errors.InputError` for another dtype, shape or layout, or a count out of range.
    """
    if out is None and np.ndim(x) == 4:
        n, h, w, _ = np.shape(x)
        out = np.empty((n, h * w), np.int64)
    _C.token_match(x, merged, out, threads, isa)
    assert out is not None  # the call has refused other shapes
    return out
