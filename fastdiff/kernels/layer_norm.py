"""Layer normalisation over the last axis."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from fastdiff import _C

__all__ = ["layer_norm"]

FloatArray = npt.NDArray[np.float32]


def layer_norm(
    x: FloatArray,
    weight: FloatArray | None,
    bias: FloatArray | None,
    eps: float = 1e-5,
    *,
    out: FloatArray | None = None,
    threads: int = 1,
    isa: str | None = None,
) -> FloatArray:
    """Return ``(x - mean) / sqrt(var + eps) * weight + bias`` over the last axis (Ba et al. 2016).

    ``x``: (…, C) float32, rows contiguous, with any one distance between them. ``weight`` and ``bias``: (C,)
    float32, None for ones and zeros. ``var`` is biased, and of the differences from the mean.

    ``out`` is allocated when None, and returned; it may be ``x`` itself, a partial overlap is refused.
    ``threads`` work on it; the result does not depend on their number. ``isa`` runs this call with another
    instruction set than the process's; tests and benchmarks use it.

    Raises :class:`fastdiff.errors.InputError` for another dtype, shape or layout, or a negative ``eps``.
    """
    if out is None:
        out = np.empty(np.shape(x), np.float32)
    _C.layer_norm(x, weight, bias, eps, out, threads, isa)
    return out
