"""LoRAs of an opened module: updates are merged on the GPU, and put into the engine as new weights.

The weights that change are copied to the GPU once, and stay there until no layer is updated; a switch moves
the low-rank matrices alone over the bus. The engine takes the merged weights from where they are.
"""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from numpy.typing import NDArray

from fastdiff.errors import EngineDamagedError, NumericError, TargetError
from fastdiff.manifest import ModuleEntry
from fastdiff.targets import parameters
from fastdiff.targets.parameters import Layer
from fastdiff.targets.tensorrt import originals
from fastdiff.targets.tensorrt.interface import Api, Engine, TensorRtError, Values
from fastdiff.targets.tensorrt.memory import SharedMemory
from fastdiff.targets.tensorrt.merge_network import SUFFIX, matrix_of
from fastdiff.targets.tensorrt.merger import Job, Merger, packed

if TYPE_CHECKING:
    from fastdiff.lora.update import LowRank

__all__ = ["PLACE", "Adapters", "open_adapters"]

PLACE = (str, bool)
"""Of a layer: the name of its weight in the plan, and whether it is stored as [in, out]."""


class Adapters:
    """The updates of an engine's weights, whose values as they were built are ``values``.

    Whoever calls holds the lock of ``memory``.
    """

    def __init__(
        self,
        engine: Engine,
        merger: Merger,
        memory: SharedMemory,
        layers: Mapping[str, Layer],
        values: Mapping[str, NDArray[Any]],
    ) -> None:
        self.layers = layers
        self._engine = engine
        self._merger = merger
        self._memory = memory
        self._device = memory.device
        self._values = values
        self._current: Mapping[str, Sequence[LowRank]] = {}
        self._uncertain: set[str] = set()
        self._copies: dict[str, int] = {}  # addresses on the device, of weights as they were built
        self._blocks: list[int] = []

    @property
    def whole(self) -> bool:
        """Whether the engine has the weights that it should have, not what a failure left of them."""
        return not self._uncertain

    def set(self, updates: Mapping[str, Sequence[LowRank]], stream: int) -> None:
        """Have these updates, by the path of their layer, in place of those that there are.

        Raises NumericError for one that takes a weight out of the range of its precision, and TensorRtError.
        The engine is then as it was; where it cannot be put back, it is not ``whole`` until a call succeeds.
        """
        self._memory.wait()
        try:
            self._apply({path: parts for path, parts in updates.items() if parts}, stream)
        except (TensorRtError, NumericError):
            if self._uncertain:
                with contextlib.suppress(TensorRtError, NumericError):
                    self._apply(self._current, stream)
            if self.whole and not self._current:
                self.free()
            raise

    def free(self) -> None:
        """Give the copies of weights back."""
        self._copies.clear()
        while self._blocks:
            self._device.free(self._blocks.pop())

    def _apply(self, updates: Mapping[str, Sequence[LowRank]], stream: int) -> None:
        weights = {name: path for path in updates for name, _ in self.layers[path].places}
        before = {name for path in self._current for name, _ in self.layers[path].places}
        restored = (before | self._uncertain) - weights.keys()
        if not weights and not restored:
            return
        self._copy(weights.keys() | restored, stream)
        jobs = [self._job(path, updates[path]) for path in weights.values()]
        with self._merger.merged(jobs, stream) as merged:
            places = {**dict(zip(weights, merged, strict=True)), **{n: self._copies[n] for n in restored}}
            self._uncertain.update(places)
            given = {name: self._on_device(name, address) for name, address in places.items()}
            self._engine.replace(given, self._as_built, stream)
            self._device.synchronize(stream)
        self._uncertain.clear()
        self._current = updates
        if not updates:
            self.free()

    def _job(self, path: str, parts: Sequence[LowRank]) -> Job:
        ((name, transposed),) = self.layers[path].places
        values = self._values[name]
        return Job(path, self._copies[name], values.dtype, matrix_of(values.shape), transposed, parts)

    def _copy(self, names: Collection[str], stream: int) -> None:
        """Have weights on the device as they were built."""
        missing = [name for name in names if name not in self._copies]
        if not missing:
            return
        offsets, size = packed(self._values[name].nbytes for name in missing)
        block = self._device.allocate(size)
        self._blocks.append(block)
        for name, offset in zip(missing, offsets, strict=True):
            self._device.upload(block + offset, self._values[name], stream)
            self._copies[name] = block + offset

    def _on_device(self, name: str, address: int) -> Values:
        values = self._values[name]
        return Values(address, values.dtype.name, values.size, on_device=True)

    def _as_built(self, name: str) -> Values:
        """A weight without an update that the engine must have along with one that has."""
        if name not in self._values:
            raise TensorRtError(f"the weight {name!r} is needed too, which the engine folder does not have")
        return Values.of(self._values[name])


def open_adapters(
    folder: Path, name: str, entry: ModuleEntry, api: Api, engine: Engine, memory: SharedMemory
) -> Adapters:
    """The adapters of a module. Raises TargetError where it was built for none, and EngineDamagedError."""
    if not entry.tactics.get("refittable"):
        raise TargetError(
            f"{folder}: the weights of {name} cannot be replaced, which a LoRA needs: build it again with"
            " --refit"
        )
    layers = parameters.read(folder, name, entry, PLACE)
    values = originals.read(folder, name)
    for path, layer in layers.items():
        if len(layer.places) != 1:
            raise EngineDamagedError(f"{folder}: {path} of {name} has {len(layer.places)} places, not 1")
        ((weight, transposed),) = layer.places
        if weight not in values or values[weight].shape != (layer.shape[::-1] if transposed else layer.shape):
            raise EngineDamagedError(
                f"{folder}: {name}{originals.SUFFIX} lacks the weight of {path}; build it again"
            )
    try:
        merge = api.load(folder / f"{name}{SUFFIX}")
    except TensorRtError as error:
        raise EngineDamagedError(
            f"{folder}: TensorRT refuses {name}{SUFFIX} ({error}); build it again"
        ) from error
    return Adapters(engine, Merger(merge, memory), memory, layers, values)
