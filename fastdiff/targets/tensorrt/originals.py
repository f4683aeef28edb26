"""``<module>.weights.safetensors``: weights of a plan as they were built, which TensorRT does not give back.

One weight at a time is in memory while the file is written; when it is read, pages come as they are used.
"""

from __future__ import annotations

import json
import mmap
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from fastdiff.errors import EngineDamagedError, OutputError

__all__ = ["SUFFIX", "read", "write"]

SUFFIX = ".weights.safetensors"

_NAMES = {"float32": "F32", "float16": "F16"}
_DTYPES = {"F32": "<f4", "F16": "<f2"}


def write(folder: Path, module: str, weights: Mapping[str, NDArray[Any]]) -> str:
    """Write float32 and float16 arrays by name into ``folder``; the file's name. Raises OutputError."""
    name, end = f"{module}{SUFFIX}", 0
    header: dict[str, Any] = {}
    for key, array in _ordered(weights):
        kind, shape = _NAMES[array.dtype.name], list(array.shape)
        header[key] = {"dtype": kind, "shape": shape, "data_offsets": [end, end + array.nbytes]}
        end += array.nbytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # so that all data is aligned
    try:
        with (folder / name).open("wb") as file:
            file.write(len(text).to_bytes(8, "little") + text)
            for _, array in _ordered(weights):
                array.tofile(file)
                if isinstance(array, np.memmap):
                    cast(Any, array)._mmap.madvise(mmap.MADV_DONTNEED)  # each is read once
    except OSError as error:
        raise OutputError(f"{folder / name} cannot be written: {error.strerror}") from error
    return name


def _ordered(weights: Mapping[str, NDArray[Any]]) -> Iterator[tuple[str, NDArray[Any]]]:
    """Wider types first: what follows them is aligned."""
    return iter(sorted(weights.items(), key=lambda item: -item[1].dtype.itemsize))


def read(folder: Path, module: str) -> dict[str, NDArray[Any]]:
    """The weights by name, mapped. Raises EngineDamagedError."""
    path = folder / f"{module}{SUFFIX}"
    try:
        with path.open("rb") as file:
            size = int.from_bytes(file.read(8), "little")
            length = path.stat().st_size - 8 - size
            if length < 0:
                raise ValueError(f"a header of {size} bytes does not fit into the file")
            header = json.loads(file.read(size))
        return {
            key: _mapped(path, 8 + size, length, item)
            for key, item in header.items()
            if key != "__metadata__"
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise EngineDamagedError(
            f"{folder}: {path.name} cannot be read ({reason}); build it again"
        ) from error


def _mapped(path: Path, start: int, length: int, item: Any) -> NDArray[Any]:
    dtype, shape = np.dtype(_DTYPES[item["dtype"]]), tuple(item["shape"])
    first, last = item["data_offsets"]
    if not 0 <= first <= last <= length or last - first != int(np.prod(shape)) * dtype.itemsize:
        raise ValueError(f"{shape} of {item['dtype']} is not in bytes {first} to {last} of {length}")
    return np.memmap(path, dtype, "r", start + first, shape)
