"""An opened module: single calls and whole loops, as CUDA graphs."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from functools import cache, cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from fastdiff.errors import EngineDamagedError, InputError
from fastdiff.manifest import ModuleEntry
from fastdiff.targets import parameters
from fastdiff.targets.cuda import file
from fastdiff.targets.cuda.adapters import PLACE, Adapters
from fastdiff.targets.cuda.backend import Backend, EagerBackend
from fastdiff.targets.cuda.call import GraphedCall
from fastdiff.targets.cuda.choices import Choices
from fastdiff.targets.cuda.executor import Executor
from fastdiff.targets.cuda.finite import check_finite
from fastdiff.targets.cuda.graphs import CudaBackend, GraphCache
from fastdiff.targets.cuda.loop import DeviceLoop, TableStep
from fastdiff.targets.cuda.stages import Stages, table_step_on
from fastdiff.targets.cuda.threshold import table_threshold
from fastdiff.targets.session import Array, Session

if TYPE_CHECKING:
    from fastdiff.lora.update import LowRank
    from fastdiff.samplers import Callback, NoiseSource, StepTable

__all__ = ["CHECK_FINITE", "CudaSession", "open_session"]

CHECK_FINITE = "FASTDIFF_CHECK_FINITE"
"""Environment variable: 1 looks at every layer's result for NaN and infinity and names the first that has
some. Nothing is captured then, and the host waits after every layer.
"""
_SHARE = 4
"""Captured shapes may take a quarter of a GPU's memory."""


class CudaSession(Session):
    """A module on one device. Sessions of a device share its cache of captured shapes."""

    waits_per_step = False

    def __init__(
        self,
        name: str,
        entry: ModuleEntry,
        stages: Stages,
        graphs: GraphCache,
        table_step: TableStep,
        adapters: Callable[[], Adapters],
    ) -> None:
        super().__init__(name, entry.inputs, entry.outputs, entry.shapes)
        self._graphs = graphs
        self._make_adapters = adapters
        self._call: GraphedCall | None = GraphedCall(graphs, stages.whole)
        self._loop = DeviceLoop(graphs, stages, table_step) if stages.has_steps else None
        self.has_loop = self._loop is not None

    def _run(self, arrays: dict[str, Array]) -> dict[str, Array]:
        if self._call is None:
            raise InputError(f"{self.name} has been closed: open the engine again")
        results = self._call(arrays)
        return {spec.name: results[spec.name] for spec in self.outputs}

    takes_tensors = True

    def run_tensors(self, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """A call on tensors that are on the device, of the declared dtypes and shapes, without waiting.

        The results are float32 and valid until the next call.
        """
        if self._call is None:
            raise InputError(f"{self.name} has been closed: open the engine again")
        results = self._call.run_tensors(tensors)
        return {spec.name: results[spec.name] for spec in self.outputs}

    def runs(self, table: StepTable, guidance: float) -> bool:
        """Also with one dynamic threshold, and where only some steps are guided: those that are not compute
        both halves, which costs less than a step from the host.
        """
        try:
            table_threshold(table)
        except InputError:
            return False
        return self.has_loop

    def sample(
        self,
        table: StepTable,
        latents: Array,
        inputs: dict[str, Array],
        guidance: float,
        noise: NoiseSource,
        callback: Callback | None,
        chunk: int = 1,
    ) -> Array:
        """All steps on the device; see `fastdiff.targets.cuda.loop.DeviceLoop.sample`."""
        if self._loop is None:
            raise InputError(f"{self.name} has been closed, or has no steps")
        return self._loop.sample(table, latents, inputs, guidance, noise, callback, chunk)

    def adaptable(self) -> Mapping[str, tuple[int, ...]]:
        """As of every session; of an engine that was built without, TargetError."""
        return {path: layer.shape for path, layer in self._adapters.layers.items()}

    def _set_adapters(self, updates: Mapping[str, Sequence[LowRank]]) -> None:
        """Weights are updated where they are, which captured graphs see."""
        if updates or "_adapters" in vars(self):
            with self._graphs.exclusive():
                self._adapters.set(updates)

    @cached_property
    def _adapters(self) -> Adapters:
        return self._make_adapters()

    def close(self) -> None:
        """Free what was captured; weights go with the session."""
        if self._call is not None:
            self._call.close()
        if self._loop is not None:
            self._loop.close()
        self._call = self._loop = None


def open_session(folder: Path, name: str, entry: ModuleEntry, device: torch.device) -> CudaSession:
    """Open a compiled module on a device. Raises EngineDamagedError."""
    module = file.read(folder, name, device)
    names = [module.graph.values[value].name for value in module.graph.inputs]
    if names != [spec.name for spec in entry.inputs]:
        raise EngineDamagedError(
            f"{folder}: {name} takes {', '.join(names)}, the manifest says otherwise; build the engine again"
        )
    try:
        choices = Choices.from_json(module.choices)
    except (KeyError, TypeError, ValueError) as error:
        raise EngineDamagedError(
            f"{folder}: the choices of {name} cannot be read ({error}); build the engine again"
        ) from error
    if module.kernels:
        from fastdiff.kernels.triton import binaries

        binaries.register(
            [binaries.Binary.from_json(item, module.code[str(item.get("code"))]) for item in module.kernels]
        )
    executor = Executor(module.graph, module.weights, module.dtypes, choices)
    checked = os.environ.get(CHECK_FINITE) == "1"
    if checked:
        executor.watch(check_finite(name))
    graphs = GraphCache(EagerBackend(device), 1 << 62) if checked else _graphs(device)

    def adapters() -> Adapters:
        return Adapters(executor, parameters.read(folder, name, entry, PLACE))

    return CudaSession(name, entry, Stages(executor), graphs, table_step_on(device), adapters)


@cache
def _graphs(device: torch.device) -> GraphCache:
    """The cache of a device, for all that this process opens on it."""
    if device.type != "cuda":
        return GraphCache(EagerBackend(device), 1 << 62)
    backend: Backend = CudaBackend(device.index or 0)
    return GraphCache(backend, torch.cuda.get_device_properties(device).total_memory // _SHARE)
