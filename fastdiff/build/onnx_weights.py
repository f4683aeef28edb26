"""Where an ONNX file has the layers' weights.

The exporter stores the weights of linear layers transposed, the optimiser for CUDA those of convolutions
channels-last, under names of their own, so that they are found by their values when the engine is built, in a
graph of halves by their values rounded to halves, and where fusing passes have put those of several layers
with one input beside each other, as columns of one. Initializers of equal values are one: a layer that shares
its weight with another takes no updates.
"""

from __future__ import annotations

import mmap
from collections import Counter
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from fastdiff.build.capture import CapturedModule

__all__ = ["CHANNELS_LAST", "Located", "find_weights", "initializers"]

CHANNELS_LAST = (0, 2, 3, 1)
"""Axes of a convolution's weight that is stored [out, height, width, in]."""


@dataclass(frozen=True)
class Located:
    """Shape of a layer's weight, and the initializer that holds it: its name, file and offset there, its
    dtype, and ``axes``, by which the weight was transposed. One that holds several linear layers has
    ``columns``, and this layer's from ``first`` on; of any other, ``columns`` is 0.
    """

    shape: tuple[int, ...]
    initializer: str
    file: str
    offset: int
    dtype: str = "float32"
    axes: tuple[int, ...] = ()
    first: int = 0
    columns: int = 0


_Stored = tuple[str, str, int, NDArray[Any]]
_Key = tuple[str, tuple[int, ...], bytes]
_SAMPLE = 64
_DTYPES = {1: "<f4", 10: "<f2"}
"""Of ONNX's types those that weights are looked for in: FLOAT and FLOAT16."""
_AXES: dict[int, tuple[tuple[int, ...], ...]] = {2: ((0, 1), (1, 0)), 4: ((0, 1, 2, 3), CHANNELS_LAST)}
"""By the number of a weight's axes, the orders that they may be stored in."""


def find_weights(
    captured: CapturedModule, folder: Path, model: str, merged: bool = False
) -> dict[str, Located]:
    """The layers of a captured module whose weights the file ``model`` in ``folder`` holds, each once.

    With ``merged`` also those that share an initializer with others.
    """
    from fastdiff.build.parameters import source_shapes

    shapes = source_shapes(captured)
    if not shapes:
        return {}
    stored = initializers(folder, model)
    known: dict[_Key, list[_Stored]] = {}
    dtypes = sorted({array.dtype.str for _, _, _, array in stored})
    for name, file, offset, array in stored:
        known.setdefault(_key(array), []).append((name, file, offset, array))
    layers: dict[str, Located] = {}
    for path, shape in shapes.items():
        weight = captured.source.get_submodule(path).weight.detach().float().numpy()
        for dtype, axes in product(dtypes, _AXES.get(weight.ndim, (tuple(range(weight.ndim)),))):
            if path in layers:
                break
            with np.errstate(over="ignore"):  # what halves cannot hold is in no file of them
                wanted = np.ascontiguousarray(weight.astype(dtype, copy=False).transpose(axes))
            for name, file, offset, array in known.get(_key(wanted), ()):
                if path not in layers and np.array_equal(array, wanted):
                    layers[path] = Located(shape, name, file, offset, str(wanted.dtype), axes)
                _forget(array)
        if merged and weight.ndim == 2 and path not in layers:
            found = _find_merged(shape, weight, stored)
            if found is not None:
                layers[path] = found
    shared = Counter((layer.initializer, layer.first) for layer in layers.values())
    return {path: layer for path, layer in layers.items() if shared[layer.initializer, layer.first] == 1}


def _find_merged(
    shape: tuple[int, ...], weight: NDArray[np.float32], stored: list[_Stored]
) -> Located | None:
    """The initializer [in, columns] that has a weight [out, in] transposed as some of its columns."""
    out, inner = shape
    for name, file, offset, array in stored:
        if array.ndim != 2 or array.shape[0] != inner or array.shape[1] <= out:
            continue
        with np.errstate(over="ignore"):
            row = weight[:, 0].astype(array.dtype)
        first = _aligned(array[0].tobytes(), row.tobytes(), array.itemsize)
        if first is None:
            continue
        with np.errstate(over="ignore"):
            wanted = weight.T.astype(array.dtype)
        equal = np.array_equal(array[:, first : first + out], wanted)
        _forget(array)
        if equal:
            return Located(shape, name, file, offset, str(wanted.dtype), (1, 0), first, array.shape[1])
    return None


def _aligned(whole: bytes, part: bytes, size: int) -> int | None:
    """The element of ``whole`` where ``part`` begins, both being of elements of some size."""
    at = whole.find(part)
    while at >= 0 and at % size:
        at = whole.find(part, at + 1)
    return at // size if at >= 0 else None


def _forget(array: NDArray[Any]) -> None:
    """Let the pages of a mapped array go, when they have been read."""
    cast(Any, array)._mmap.madvise(mmap.MADV_DONTNEED)


def initializers(folder: Path, model: str) -> list[_Stored]:
    """Name, file, offset and values of each float32 or float16 initializer of two axes or more."""
    import onnx

    graph = onnx.load(str(folder / model), load_external_data=False).graph
    found: list[_Stored] = []
    with (folder / model).open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as raw:
        end = 0
        for tensor in graph.initializer:
            if tensor.data_type not in _DTYPES or len(tensor.dims) < 2:
                continue
            external = {entry.key: entry.value for entry in tensor.external_data}
            if external:
                file, offset = external["location"], int(external.get("offset", 0))
            else:
                file, offset = model, _position(raw, tensor.raw_data, end)
                if offset < 0:
                    continue
                end = offset + len(tensor.raw_data)
            dtype, shape = _DTYPES[tensor.data_type], tuple(tensor.dims)
            found.append((tensor.name, file, offset, np.memmap(folder / file, dtype, "r", offset, shape)))
    return found


def _position(raw: Any, data: bytes, start: int) -> int:
    """Where ``data`` is in the file, from ``start`` on if it can be: tensors mostly are in their order."""
    found = int(raw.find(data, start)) if data else -1
    return found if found >= 0 or not data else int(raw.find(data))


def _key(array: NDArray[Any]) -> _Key:
    """The same for equal arrays, different for most others."""
    flat = array.reshape(-1)
    return array.dtype.str, array.shape, flat[:_SAMPLE].tobytes() + flat[-_SAMPLE:].tobytes()
