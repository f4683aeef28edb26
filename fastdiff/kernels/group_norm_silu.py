"""Group normalisation with SiLU, in two passes over memory."""

from __future__ import annotations

from typing import Literal

import numpy as np
import numpy.typing as npt

from fastdiff import _C

__all__ = ["group_norm_silu"]

FloatArray = npt.NDArray[np.float32]


def group_norm_silu(
    x: FloatArray,
    weight: FloatArray | None,
    bias: FloatArray | None,
    num_groups: int,
    eps: float = 1e-5,
    *,
    silu: bool = True,
    layout: Literal["NHWC", "NCHW"] = "NHWC",
    out: FloatArray | None = None,
    threads: int = 1,
    isa: str | None = None,
) -> FloatArray:
    """Return ``silu((x - mean) / sqrt(var + eps) * weight + bias)`` (Wu and He 2018).

    ``mean`` and the biased ``var`` run over the channels of a group and all positions of one sample. Sums are
    taken in double precision: a mean of 1e4 standard deviations costs no digit of the result.

    ``x``: float32, (N, …, C) in layout "NHWC", with any one distance between pixels, or (N, C, …) in layout
    "NCHW", contiguous; any number of spatial dimensions. ``weight`` and ``bias``: (C,) float32, None for ones
    and zeros. ``num_groups`` divides C. Without ``silu`` the activation is left out.

    ``out`` is allocated when None, and returned; it may be ``x`` itself, a partial overlap is refused.
    ``threads`` work on it; the result does not depend on their number. ``isa`` runs this call
    with another instruction set than the process's; tests and benchmarks use it.

    Raises :class:`fastdiff.errors.InputError` for another dtype, shape or layout, a group count that does not
    divide C, or a negative ``eps``.
    """
    if out is None:
        out = np.empty(np.shape(x), np.float32)
    _C.group_norm_silu(x, weight, bias, num_groups, eps, silu, layout, out, threads, isa)
    return out
