"""Scaled dot-product attention by online softmax: no queries × keys matrix in memory."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from fastdiff import _C

__all__ = ["attention"]

FloatArray = npt.NDArray[np.float32]


def attention(
    query: FloatArray,
    key: FloatArray,
    value: FloatArray,
    num_heads: int,
    scale: float,
    causal: bool = False,
    *,
    out: FloatArray | None = None,
    threads: int = 1,
    isa: str | None = None,
) -> FloatArray:
    """Return ``softmax(scale · Q Kᵀ) V`` (Vaswani et al. 2017, eq. 1) of ``num_heads`` heads, side by side.

    ``query``: (B, N, H·d), ``key``: (B, M, H·d), ``value``: (B, M, H·e), result: (B, N, H·e), all float32.
    The last axis is contiguous, the others may have any stride: parts of one projection need no copy.
    ``causal`` keeps position n from seeing key positions after n. With M = 0 the result is zero.

    ``out`` is allocated when None, and returned; it shares no memory with an input. ``threads`` work on it;
    the result does not depend on their number. ``isa`` runs this call with another instruction set than the
    process's; tests and benchmarks use it.

    Raises :class:`fastdiff.errors.InputError` for another dtype, shape or layout, or a number of heads that
    does not divide the widths.
    """
    if out is None and np.ndim(query) == np.ndim(value) == 3:
        out = np.empty((*np.shape(query)[:2], np.shape(value)[2]), np.float32)
    _C.attention(query, key, value, num_heads, scale, causal, out, threads, isa)
    assert out is not None  # the call has refused other shapes
    return out
