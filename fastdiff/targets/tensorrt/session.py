"""A TensorRT engine as a Session: static device buffers and a CUDA graph per shape, LoRAs."""

from __future__ import annotations

import contextlib
import math
import warnings
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from fastdiff.errors import FastdiffWarning, InputError, TargetError
from fastdiff.manifest import ModuleEntry
from fastdiff.targets.session import Array, Session
from fastdiff.targets.tensorrt.adapters import Adapters
from fastdiff.targets.tensorrt.interface import Context, DeviceMemoryError, Engine, TensorRtError
from fastdiff.targets.tensorrt.memory import SharedMemory
from fastdiff.targets.tensorrt.profiles import Profile, choose, shape_of

if TYPE_CHECKING:
    from fastdiff.lora.update import LowRank

__all__ = ["TensorRtSession"]

_SHAPES = 8
"""Shapes whose buffers and graphs are kept, the least recently used going first."""


@dataclass
class _Plan:
    """One shape: its context, the memory that it needs while it runs, its buffers and its graph.

    Buffers are empty where the tensors are the caller's. A graph must not outlive any change of its context,
    which is why every shape has a context of its own.
    """

    context: Context
    memory: int
    stream: int
    buffers: dict[str, int] = field(default_factory=dict)
    generation: int = -1
    runs: int = 0
    graph: int | None = None
    capturable: bool = True


class TensorRtSession(Session):
    """Runs a module on one GPU.

    ``session(**arrays)`` copies in, runs and copies out on a stream of its own. The first run of a shape is
    an ordinary one, the second is captured as a CUDA graph, all further ones replay it. ``enqueue`` runs on
    the caller's device memory and stream. Both raise TargetError when the GPU's memory is full or a run
    fails.
    """

    def __init__(
        self,
        name: str,
        entry: ModuleEntry,
        engine: Engine,
        memory: SharedMemory,
        profiles: Sequence[Profile],
        output_names: Sequence[str],
        adapters: Callable[[Engine], Adapters],
    ) -> None:
        super().__init__(name, entry.inputs, entry.outputs, entry.shapes)
        self._engine: Engine | None = engine
        self._memory = memory
        self._device = memory.device
        self._profiles = profiles
        self._tensors = {
            **{("in", spec.name): spec.name for spec in self.inputs},
            **{("out", spec.name): tensor for spec, tensor in zip(self.outputs, output_names, strict=True)},
        }
        self._plans: OrderedDict[tuple[object, ...], _Plan] = OrderedDict()
        self._make_adapters = adapters
        self._replaced = 0
        memory.attach()
        with self._ready():
            self._stream = self._device.create_stream()
            try:
                memory.reserve(engine.memory(0))  # so that the modules' first pictures need not move it
            except TensorRtError:
                self._device.destroy_stream(self._stream)
                memory.detach()
                raise

    def _run(self, arrays: dict[str, Array]) -> dict[str, Array]:
        sizes = self._sizes(arrays)
        results = {spec.name: np.empty(shape_of(spec, sizes), spec.dtype) for spec in self.outputs}
        with self._ready():
            plan = self._plan(sizes, self._stream)
            for name, array in arrays.items():
                self._device.upload(plan.buffers[self._tensors["in", name]], array, self._stream)
            self._start(plan)
            for name, array in results.items():
                self._device.download(array, plan.buffers[self._tensors["out", name]], self._stream)
            self._device.synchronize(self._stream)
            self._memory.settled(self._stream)
        return results

    def enqueue(
        self, inputs: Mapping[str, int], outputs: Mapping[str, int], sizes: Mapping[str, int], stream: int
    ) -> None:
        """Run on device addresses and a stream of the caller's, without waiting.

        Tensors are contiguous, of the dtypes of ``self.inputs`` and ``self.outputs`` and the shapes that
        follow from ``sizes``; they stay the caller's until the stream is done. May be captured into a graph
        of the caller's from the second call of a shape on; that graph is good while ``memory_generation``
        stays. Raises InputError for sizes or names that the module does not have.
        """
        for symbol, size in self.shapes.items():
            if sizes.get(symbol, 0) not in size:
                raise InputError(f"{self.name}: {symbol} is {sizes.get(symbol)}: it must be {size}")
        given = {("in", key): value for key, value in inputs.items()}
        given |= {("out", key): value for key, value in outputs.items()}
        if given.keys() != self._tensors.keys():
            wanted = [
                " and ".join(key for way, key in self._tensors if way == kind) for kind in ("in", "out")
            ]
            raise InputError(f"{self.name} takes the inputs {wanted[0]} and the outputs {wanted[1]}")
        with self._ready():
            plan = self._plan({symbol: sizes[symbol] for symbol in self.shapes}, stream, own=False)
            for key, tensor in self._tensors.items():
                plan.context.set_address(tensor, given[key])
            self._start(plan)

    @property
    def memory_generation(self) -> int:
        """Counts how often the memory that the engine's modules share has moved or the weights changed."""
        return self._memory.generation + self._replaced

    def adaptable(self) -> Mapping[str, tuple[int, ...]]:
        """As of every session; of an engine that was not built with ``--refit``, TargetError."""
        with self._ready():
            return {path: layer.shape for path, layer in self._adapters.layers.items()}

    def _set_adapters(self, updates: Mapping[str, Sequence[LowRank]]) -> None:
        """Put other weights into the engine. Graphs are captured anew: TensorRT does not say that they see
        them. Where that fails and cannot be undone, the session runs no more until a call succeeds.
        """
        if not updates and "_adapters" not in vars(self):
            return
        with self._ready("a LoRA takes twice the memory of the weights that it changes"):
            try:
                self._adapters.set(updates, self._stream)
            finally:
                self._replaced += 1
                for plan in self._plans.values():
                    self._device.synchronize(plan.stream)
                    self._forget_graph(plan)
                    plan.runs = 0

    @cached_property
    def _adapters(self) -> Adapters:
        if self._engine is None:
            raise TensorRtError("the session was closed")
        return self._make_adapters(self._engine)

    def close(self) -> None:
        """Free buffers, graphs, engine, and the shared memory with the last of the modules."""
        if self._engine is None:
            return
        with self._ready():
            while self._plans:
                self._drop(self._plans.popitem()[1])
            if "_adapters" in vars(self):
                self._adapters.free()
                del self._adapters
            self._device.destroy_stream(self._stream)
            self._engine = None
            self._memory.detach()

    def _sizes(self, arrays: Mapping[str, Array]) -> dict[str, int]:
        return {
            symbol: int(size // factor)
            for spec in self.inputs
            for size, (factor, symbol) in zip(arrays[spec.name].shape, spec.factors(), strict=True)
            if symbol is not None
        }

    @contextlib.contextmanager
    def _ready(self, full: str = "ask for smaller or fewer pictures") -> Iterator[None]:
        """The GPU is selected, the shared memory is ours, and failures are TargetErrors, which say ``full``
        where the GPU's memory is.
        """
        try:
            with self._memory.lock, self._device.active():
                yield
        except DeviceMemoryError as error:
            raise TargetError(f"{self.name}: {error}: {full}") from error
        except TensorRtError as error:
            raise TargetError(f"{self.name}: {error}; check the engine with fastdiff verify") from error

    def _plan(self, sizes: Mapping[str, int], stream: int, own: bool = True) -> _Plan:
        """The plan for a shape, made when it is first wanted; ``own`` ones have buffers."""
        if self._engine is None:
            raise TensorRtError("the session was closed")
        if "_adapters" in vars(self) and not self._adapters.whole:
            raise TargetError(
                f"{self.name}: a LoRA failed and left weights that are neither old nor new: open the engine"
                " again"
            )
        key = (own, None if own else stream, *sorted(sizes.items()))
        if key not in self._plans:
            while len(self._plans) >= _SHAPES:
                self._drop(self._plans.popitem(last=False)[1])
            self._plans[key] = self._make_plan(sizes, stream, own)
        self._plans.move_to_end(key)
        return self._plans[key]

    def _make_plan(self, sizes: Mapping[str, int], stream: int, own: bool) -> _Plan:
        index = choose(self._profiles, sizes)
        if index is None:
            raise TensorRtError(f"no profile has room for {dict(sizes)}")
        assert self._engine is not None
        context = self._engine.create_context(index, stream)
        memory = context.set_shapes({spec.name: shape_of(spec, sizes) for spec in self.inputs})
        plan = _Plan(context, memory, stream, capturable=own)
        try:
            for way, specs in (("in", self.inputs), ("out", self.outputs)) if own else ():
                for spec in specs:
                    tensor = self._tensors[way, spec.name]
                    size = math.prod(shape_of(spec, sizes)) * np.dtype(spec.dtype).itemsize
                    plan.buffers[tensor] = self._device.allocate(size)
                    context.set_address(tensor, plan.buffers[tensor])
        except TensorRtError:
            self._drop(plan)
            raise
        return plan

    def _start(self, plan: _Plan) -> None:
        """Put a run on the plan's stream: its graph, or its kernels one by one."""
        self._memory.reserve(plan.memory)
        if plan.generation != self._memory.generation:
            self._forget_graph(plan)
            plan.context.set_memory(self._memory.address, self._memory.size)
            plan.generation, plan.runs = self._memory.generation, 0
        self._memory.use(plan.stream)
        if plan.graph is None and plan.capturable and plan.runs:
            self._capture(plan)
        if plan.graph is None:
            plan.context.enqueue(plan.stream)
        else:
            self._device.launch(plan.graph, plan.stream)
        plan.runs += 1

    def _capture(self, plan: _Plan) -> None:
        """Record a run. The run before it has made all that TensorRT makes only once for a shape."""
        self._device.begin_capture(plan.stream)
        try:
            plan.context.enqueue(plan.stream)
            plan.graph = self._device.end_capture(plan.stream)
        except TensorRtError as error:
            self._device.abandon_capture(plan.stream)
            plan.capturable = False
            warnings.warn(
                f"{self.name}: runs without a CUDA graph, which is slower ({error})",
                FastdiffWarning,
                stacklevel=5,
            )

    def _forget_graph(self, plan: _Plan) -> None:
        if plan.graph is not None:
            self._device.destroy_graph(plan.graph)
            plan.graph = None

    def _drop(self, plan: _Plan) -> None:
        """Free what a plan holds, once its last run has ended."""
        self._device.synchronize(plan.stream)
        self._forget_graph(plan)
        while plan.buffers:
            self._device.free(plan.buffers.popitem()[1])
