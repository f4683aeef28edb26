"""Linear layers: a GEMM with packed weights that finishes its sums before it stores them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from fastdiff import _C
from fastdiff.errors import InputError

__all__ = ["LinearWeight", "linear", "pack_linear"]

FloatArray = npt.NDArray[np.float32]


@dataclass(frozen=True)
class LinearWeight:
    """Packed weights of a linear layer: ``precision`` "fp32", or "fp16" for weights stored as halves."""

    outputs: int
    inputs: int
    precision: str
    packed: npt.NDArray[np.uint8]


def pack_linear(weight: FloatArray, precision: str = "fp32") -> LinearWeight:
    """Pack ``weight`` (outputs, inputs) into the order in which :func:`linear` reads it.

    Raises :class:`fastdiff.errors.InputError` for another dtype, shape or precision.
    """
    packed = _C.linear_pack(weight, precision)
    outputs, inputs = weight.shape
    return LinearWeight(outputs, inputs, precision, packed)


def linear(
    x: FloatArray,
    weight: LinearWeight,
    bias: FloatArray | None = None,
    residual: FloatArray | None = None,
    *,
    activation: str = "none",
    scale: float = 1.0,
    out: FloatArray | None = None,
    threads: int = 1,
    isa: str | None = None,
) -> FloatArray:
    """Return ``scale · (activation(x Wᵀ + bias) + residual)`` on the last axis.

    ``x``: (…, inputs), ``bias``: (outputs,), ``residual`` and result: (…, outputs), all float32.
    ``activation``: "none", "silu", "gelu", "quick_gelu", or "geglu", which multiplies the first half of the
    outputs by the gelu of the second, so that the result is (…, outputs / 2). The rows of ``x``, ``residual``
    and ``out`` may be apart in memory, as those of a slice of the last axis are. ``out`` is allocated when
    None, and returned; it may be ``residual`` itself. The result does not depend on ``threads``.

    Raises :class:`fastdiff.errors.InputError` for another dtype, shape or activation.
    """
    shape = np.shape(x)
    if not shape or shape[-1] != weight.inputs:
        raise InputError(f"x: found shape {shape}, wanted {weight.inputs} channels on the last axis")
    if activation == "geglu" and weight.outputs % 2:
        raise InputError(f"weight: found {weight.outputs} outputs, wanted an even number for geglu")
    if out is None:
        outputs = weight.outputs // 2 if activation == "geglu" else weight.outputs
        out = np.empty((*shape[:-1], outputs), np.float32)
    _C.linear(x, weight.packed, bias, residual, activation, scale, weight.precision, out, threads, isa)
    return out
