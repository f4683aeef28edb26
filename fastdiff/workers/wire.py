"""Messages between a process and its workers: a JSON header, then arrays as they lie in memory.

::

    8 bytes     length of the header, little-endian
    header      {"body": …, "arrays": [[name, dtype, shape], …]}
    arrays      C order, one after the other

Reading creates nothing but JSON values and arrays of the dtypes below.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Mapping
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

__all__ = ["Message", "receive", "send"]

Message = tuple[dict[str, Any], dict[str, NDArray[Any]]]
"""Body and arrays by name."""

_LENGTH = struct.Struct("<Q")
_DTYPES = ("float32", "uint8")


def send(stream: BinaryIO, body: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]] | None = None) -> None:
    """Write a message. Raises ValueError for an array of another dtype, OSError when nobody reads."""
    contiguous = {name: np.asarray(array, order="C") for name, array in (arrays or {}).items()}
    described = [[name, _dtype(str(array.dtype)).name, array.shape] for name, array in contiguous.items()]
    header = json.dumps({"body": body, "arrays": described}).encode()
    stream.write(_LENGTH.pack(len(header)) + header)
    for array in contiguous.values():
        stream.write(array.reshape(-1).view(np.uint8).data)
    stream.flush()


def receive(stream: BinaryIO) -> Message | None:
    """The next message; None when there is none, or only a part of one: whoever wrote it has ended."""
    length = stream.read(_LENGTH.size)
    if len(length) < _LENGTH.size:
        return None
    size = _LENGTH.unpack(length)[0]
    text = stream.read(size)
    if len(text) < size:
        return None
    header = json.loads(text)
    arrays = {}
    for name, dtype, shape in header["arrays"]:
        size = _dtype(dtype).itemsize * math.prod(shape)
        data = bytearray(size)
        view, filled = memoryview(data), 0
        while filled < size:
            count = stream.readinto(view[filled:])  # type: ignore[attr-defined]
            if not count:
                return None
            filled += count
        arrays[name] = np.frombuffer(data, dtype=dtype).reshape(shape)
    return header["body"], arrays


def _dtype(name: str) -> np.dtype[Any]:
    if name not in _DTYPES:
        raise ValueError(f"an array of {name} in a message, wanted {' or '.join(_DTYPES)}")
    return np.dtype(name)
