"""Functions of one element, or of two with broadcasting."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from fastdiff import _C
from fastdiff.errors import InputError

__all__ = ["elementwise"]

FloatArray = npt.NDArray[np.float32]


def elementwise(
    function: str,
    a: FloatArray,
    b: FloatArray | None = None,
    *,
    scalar: float = 0.0,
    low: float = -math.inf,
    high: float = math.inf,
    out: FloatArray | None = None,
    threads: int = 1,
    isa: str | None = None,
) -> FloatArray:
    """Return ``function`` of each element.

    Unary, ``b`` is None: ``copy``, ``silu``, ``gelu``, ``quick_gelu``, ``gelu_tanh``, ``relu``, ``sigmoid``,
    ``tanh``, ``exp``, ``sin``, ``cos``, ``sqrt``, ``negate``, ``clamp`` to [``low``, ``high``],
    ``add_scalar`` and ``mul_scalar``. Binary: ``add``, ``subtract``, ``multiply`` and ``divide``.

    ``a`` and ``b``: float32, at most four axes, any strides; they are broadcast as NumPy broadcasts.

    ``out`` is allocated when None, and returned; it may be ``a`` or ``b`` itself, a partial overlap is
    refused. ``threads`` work on it; the result does not depend on their number. ``isa`` runs this call with
    another instruction set than the process's; tests and benchmarks use it.

    Raises :class:`fastdiff.errors.InputError` for an unknown function, another dtype, or shapes that do not
    go together.
    """
    if b is not None:
        try:
            shape = np.broadcast_shapes(np.shape(a), np.shape(b))
        except ValueError as error:
            raise InputError(
                f"a, b: found shapes {np.shape(a)} and {np.shape(b)}, wanted shapes that broadcast"
            ) from error
        a, b = np.broadcast_to(a, shape), np.broadcast_to(b, shape)
    if out is None:
        out = np.empty(np.shape(a), np.float32)
    _C.elementwise(function, a, b, scalar, low, high, out, threads, isa)
    return out
