"""Nearest upsampling and average pooling by an integer factor."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from fastdiff import _C
from fastdiff.errors import InputError

__all__ = ["avg_pool2d", "cropped", "upsample_nearest2d"]

FloatArray = npt.NDArray[np.float32]


def upsample_nearest2d(
    x: FloatArray,
    factor: int,
    *,
    size: tuple[int, int] | None = None,
    out: FloatArray | None = None,
    threads: int = 1,
    isa: str | None = None,
) -> FloatArray:
    """Return ``x`` with each pixel repeated ``factor`` times in both directions.

    ``x``: (N, H, W, C) float32, with any one distance between pixels. Result: (N, factor·H, factor·W, C), or
    the first ``size`` (rows, columns) of it, fewer by less than ``factor``.

    ``out`` is allocated when None, and returned; it shares no memory with ``x``. ``threads`` work on it; the
    result does not depend on their number. ``isa`` runs this call with another instruction set than the
    process's; tests and benchmarks use it.

    Raises :class:`fastdiff.errors.InputError` for another dtype, shape, size or layout, or a factor under 1.
    """
    crop = (0, 0)
    if np.ndim(x) == 4 and factor >= 1:
        n, h, w, c = np.shape(x)
        crop = cropped((h, w), factor, size)
        if out is None:
            out = np.empty((n, factor * h - crop[0], factor * w - crop[1], c), np.float32)
    _C.resample(x, factor, crop, False, out, threads, isa)
    assert out is not None  # the call has refused other shapes
    return out


def cropped(given: tuple[int, int], factor: int, size: tuple[int, int] | None) -> tuple[int, int]:
    """Rows and columns that ``size`` leaves out of an enlarged picture of ``given``. Raises InputError."""
    if size is None:
        return 0, 0
    crop = given[0] * factor - size[0], given[1] * factor - size[1]
    if not (0 <= crop[0] < factor and 0 <= crop[1] < factor):
        whole = [side * factor for side in given]
        raise InputError(
            f"size: found {list(size)}, wanted rows and columns of {whole}, each less by under {factor}"
        )
    return crop


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
    _C.resample(x, factor, (0, 0), True, out, threads, isa)
    assert out is not None  # the call has refused other shapes
    return out
