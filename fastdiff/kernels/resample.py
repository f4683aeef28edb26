"""Nearest upsampling and average pooling by an integer factor."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from fastdiff import _C

__all__ = ["avg_pool2d", "upsample_nearest2d"]

FloatArray = npt.NDArray[np.float32]


def upsample_nearest2d(
    x: FloatArray,
    factor: int,
    *,
    out: FloatArray | None = None,
    threads: int = 1,
    isa: str | None = None,
) -> FloatArray:
    """Return ``x`` with each pixel repeated ``factor`` times in both directions.

    ``x``: (N, H, W, C) float32, with any one distance between pixels. Result: (N, factor·H, factor·W, C).

    ``out`` is allocated when None, and returned; it shares no memory with ``x``. ``threads`` work on it; the
    result does not depend on their number. ``isa`` runs this call with another instruction set than the
    process's; tests and benchmarks use it.

    Raises :class:`fastdiff.errors.InputError` for another dtype, shape or layout, or a factor under 1.
    """
    if out is None and np.ndim(x) == 4 and factor >= 1:
        n, h, w, c = np.shape(x)
        out = np.empty((n, factor * h, factor * w, c), np.float32)
    _C.resample(x, factor, False, out, threads, isa)
    assert out is not None  # the call has refused other shapes
    return out


def avg_pool2d(
    x: FloatArray,
    factor: int,
    *,
    out: FloatArray | None = None,
    threads: int = 1,
    isa: str | None = None,
) -> FloatArray:
    """Return the means of windows of ``factor`` × ``factor`` pixels that do not overlap.

    ``x``: (N, H, W, C) float32, with any one distance between pixels. Result: (N, H // factor, W // factor,
    C); rows and columns that fill no window are left out. Otherwise as :func:`upsample_nearest2d`.
    """
    if out is None and np.ndim(x) == 4 and factor >= 1:
        n, h, w, c = np.shape(x)
        out = np.empty((n, h // factor, w // factor, c), np.float32)
    _C.resample(x, factor, True, out, threads, isa)
    assert out is not None  # the call has refused other shapes
    return out
