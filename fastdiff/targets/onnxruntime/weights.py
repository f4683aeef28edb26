"""Where an ONNX file has the layers' weights.

The exporter stores the weights of linear layers transposed, under names of its own, so that they are found by
their values when the engine is built. Initializers of equal values are one: a layer that shares its weight
with another takes no updates.
"""

from __future__ import annotations

import mmap
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from fastdiff.build.capture import CapturedModule

__all__ = ["Located", "find_weights", "initializers"]


@dataclass(frozen=True)
class Located:
    """Shape of a layer's weight, and the initializer that holds it: its name, file and offset there."""

    shape: tuple[int, ...]
    initializer: str
    file: str
    offset: int


_Stored = tuple[str, str, int, NDArray[Any]]
_Key = tuple[tuple[int, ...], bytes]
_SAMPLE = 64


def find_weights(captured: CapturedModule, folder: Path, model: str) -> dict[str, Located]:
    """The layers of a captured module whose weights the file ``model`` in ``folder`` holds, each once."""
    from fastdiff.build.parameters import source_shapes

    shapes = source_shapes(captured)
    if not shapes:
        return {}
    stored = initializers(folder, model)
    known: dict[_Key, list[_Stored]] = {}
    for name, file, offset, array in stored:
        known.setdefault(_key(array), []).append((name, file, offset, array))
    layers: dict[str, Located] = {}
    for path, shape in shapes.items():
        weight = captured.source.get_submodule(path).weight.detach().float().numpy()
        for transposed in (False, True) if weight.ndim == 2 else (False,):
            wanted = np.ascontiguousarray(weight.T) if transposed else np.ascontiguousarray(weight)
            for name, file, offset, array in known.get(_key(wanted), ()):
                if path not in layers and np.array_equal(array, wanted):
                    layers[path] = Located(shape, name, file, offset)
                cast(Any, array)._mmap.madvise(mmap.MADV_DONTNEED)  # all pages have been read
    shared = Counter(layer.initializer for layer in layers.values())
    return {path: layer for path, layer in layers.items() if shared[layer.initializer] == 1}


def initializers(folder: Path, model: str) -> list[_Stored]:
    """Name, file, offset and values of each float32 initializer of two axes or more."""
    import onnx

    graph = onnx.load(str(folder / model), load_external_data=False).graph
    found: list[_Stored] = []
    with (folder / model).open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as raw:
        end = 0
        for tensor in graph.initializer:
            if tensor.data_type != onnx.TensorProto.FLOAT or len(tensor.dims) < 2:
                continue
            external = {entry.key: entry.value for entry in tensor.external_data}
            if external:
                file, offset = external["location"], int(external.get("offset", 0))
            else:
                file, offset = model, _position(raw, tensor.raw_data, end)
                if offset < 0:
                    continue
                end = offset + len(tensor.raw_data)
            shape = tuple(tensor.dims)
            found.append((tensor.name, file, offset, np.memmap(folder / file, "<f4", "r", offset, shape)))
    return found


def _position(raw: Any, data: bytes, start: int) -> int:
    """Where ``data`` is in the file, from ``start`` on if it can be: tensors mostly are in their order."""
    found = int(raw.find(data, start)) if data else -1
    return found if found >= 0 or not data else int(raw.find(data))


def _key(array: NDArray[Any]) -> _Key:
    """The same for equal arrays, different for most others."""
    flat = array.reshape(-1)
    return array.shape, flat[:_SAMPLE].tobytes() + flat[-_SAMPLE:].tobytes()
