"""Tensors of safetensors files as NumPy arrays, without PyTorch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["DTYPES", "to_float32"]

DTYPES = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2"}
"""Floating types by safetensors' names, as NumPy reads them."""


def to_float32(tensor: Mapping[str, Any]) -> NDArray[np.float32]:
    """An entry of ``safetensors.deserialize``, whose dtype is one of DTYPES, in its shape.

    NumPy has no bfloat16, which is the upper half of a float32. What float32 cannot hold becomes infinity.
    """
    array = np.frombuffer(tensor["data"], DTYPES[tensor["dtype"]])
    if tensor["dtype"] == "BF16":
        array = (array.astype(np.uint32) << 16).view(np.float32)
    with np.errstate(over="ignore"):
        return array.astype(np.float32).reshape(tensor["shape"])
