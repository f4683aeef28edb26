"""Where an ONNX file has the layers' weights, and a session with others in their place.

The exporter stores the weights of linear layers transposed, under names of its own, so that they are found by
their values when the engine is built. Initializers of equal values are one: a layer that shares its weight
with another takes no updates.
"""

from __future__ import annotations

import mmap
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from fastdiff.errors import EngineDamagedError
from fastdiff.targets.parameters import Layer

if TYPE_CHECKING:
    from fastdiff.build.capture import CapturedModule
    from fastdiff.lora.update import LowRank

__all__ = ["PLACE", "find_weights", "replace_initializers", "updated"]

PLACE = (str, bool, str, int)
"""Of a layer's weight: the initializer's name, whether it is transposed, its file and its offset there."""

_Stored = tuple[str, str, int, NDArray[Any]]
_Key = tuple[tuple[int, ...], bytes]
_SAMPLE = 64


def find_weights(captured: CapturedModule, folder: Path, model: str) -> dict[str, Layer]:
    """The layers of a captured module whose weights the file ``model`` in ``folder`` holds, each once."""
    from fastdiff.build.parameters import source_shapes

    shapes = source_shapes(captured)
    if not shapes:
        return {}
    stored = _initializers(folder, model)
    known: dict[_Key, list[_Stored]] = {}
    for name, file, offset, array in stored:
        known.setdefault(_key(array), []).append((name, file, offset, array))
    layers: dict[str, Layer] = {}
    for path, shape in shapes.items():
        weight = captured.source.get_submodule(path).weight.detach().float().numpy()
        for transposed in (False, True) if weight.ndim == 2 else (False,):
            wanted = np.ascontiguousarray(weight.T) if transposed else np.ascontiguousarray(weight)
            for name, file, offset, array in known.get(_key(wanted), ()):
                if path not in layers and np.array_equal(array, wanted):
                    layers[path] = Layer(shape, ((name, transposed, file, offset),))
    shared = Counter(layer.places[0][0] for layer in layers.values())
    return {path: layer for path, layer in layers.items() if shared[layer.places[0][0]] == 1}


def updated(
    folder: Path, layers: Mapping[str, Layer], updates: Mapping[str, Sequence[LowRank]]
) -> dict[str, NDArray[np.float32]]:
    """The initializers with their updates, by name. Raises EngineDamagedError."""
    values: dict[str, NDArray[np.float32]] = {}
    for path, parts in updates.items():
        layer = layers[path]
        ((name, transposed, file, offset),) = layer.places
        shape = layer.shape[::-1] if transposed else layer.shape
        try:
            stored = np.memmap(folder / file, "<f4", "r", offset, shape)
        except (OSError, ValueError) as error:
            raise EngineDamagedError(f"{folder}: {file} has no weight {name}; build it again") from error
        total = sum((part.matrix() for part in parts[1:]), parts[0].matrix())
        values[name] = np.ascontiguousarray(stored + (total.T if transposed else total), np.float32)
    return values


def replace_initializers(
    options: Any, values: Mapping[str, NDArray[np.float32]], external: bool
) -> list[Any]:
    """Let sessions that are opened with ``options`` have these initializers in place of the file's.

    ``external`` says that the file's weights are in a file of their own. Such are optimised when they are
    opened, which must see the new ones; others are taken as they are. Returns what must live as long as the
    sessions, besides the arrays.
    """
    import onnxruntime  # type: ignore[import-untyped, unused-ignore]

    made = [onnxruntime.OrtValue.ortvalue_from_numpy(array) for array in values.values()]
    if external and values:
        options.add_external_initializers(list(values), made)
    else:
        for name, value in zip(values, made, strict=True):
            options.add_initializer(name, value)
    return made


def _initializers(folder: Path, model: str) -> list[_Stored]:
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
