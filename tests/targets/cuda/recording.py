"""A backend in place of CUDA's capture: bodies run on CPU tensors, and what a CUDA graph could not do fails.

At capture the body runs once and its operations are noted; a replay runs it again on the same static tensors.
A CUDA graph would repeat the noted kernels with the noted addresses and numbers, so every replay must consist
of exactly those. Temporaries of a body get new addresses and are told apart by the order of their birth.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from fastdiff.kernels.reference import TABLE_COLUMNS
from fastdiff.targets.cuda.backend import EagerBackend

__all__ = ["Misuse", "RecordingBackend", "table_step"]

# What makes the host wait for the device, or depends on values for its size.
_SYNCHRONISING = {
    "_local_scalar_dense",
    "_unique2",
    "equal",
    "is_nonzero",
    "item",
    "masked_select",
    "nonzero",
    "unique_dim",
}
# What on the CPU is no operation at all but waits for a GPU.
_TO_HOST = {"__array__", "__bool__", "__float__", "__index__", "__int__", "cpu", "item", "numpy", "tolist"}


class Misuse(AssertionError):  # noqa: N818 (not an error of the program under test)
    """A body did what would be wrong in a CUDA graph."""


class _NoHost(TorchFunctionMode):
    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if getattr(function, "__name__", "") in _TO_HOST:
            raise Misuse(f"Tensor.{function.__name__} in a body waits for the device")
        return function(*args, **(kwargs or {}))


class _Recorder(TorchDispatchMode):
    """The operations of one run of a body."""

    def __init__(self) -> None:
        super().__init__()
        self.operations: list[tuple[object, ...]] = []
        self.fixed: set[int] = set()  # addresses that exist outside of the body
        self._births: dict[int, int] = {}  # address of a temporary's storage -> number
        self._alive: list[Tensor] = []  # so that no address is used for two temporaries

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = function.overloadpacket.__name__
        if name in _SYNCHRONISING:
            raise Misuse(f"aten.{name} in a body waits for the device")
        described = tuple(self._describe(value) for value in (args, tuple(sorted(kwargs.items()))))
        result = function(*args, **kwargs)
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor):
                inputs = {t.device for t in tree_leaves((args, kwargs)) if _is_tensor(t)}
                if inputs and tensor.device not in inputs:
                    raise Misuse(f"aten.{name} in a body copies to {tensor.device}")
                address = tensor.untyped_storage()._cdata
                if address not in self.fixed and address not in self._births:
                    self._births[address] = len(self._births)
                    self._alive.append(tensor)
        self.operations.append((str(function), *described))
        return result

    def _describe(self, value: Any) -> object:
        if isinstance(value, Tensor):
            address = value.untyped_storage()._cdata
            if address not in self._births:
                self.fixed.add(address)
            place = ("temporary", self._births[address]) if address in self._births else value.data_ptr()
            return (place, tuple(value.shape), value.stride(), value.storage_offset(), value.dtype)
        if isinstance(value, list | tuple):
            return tuple(self._describe(item) for item in value)
        return value if isinstance(value, int | float | str | bool | type(None)) else str(value)

    def finish(self) -> tuple[int, list[StorageWeakRef]]:
        """Bytes of the temporaries, which the recorder lets go, and references that show who keeps them."""
        size = sum(tensor.untyped_storage().nbytes() for tensor in self._alive)
        references = [StorageWeakRef(tensor.untyped_storage()) for tensor in self._alive]
        self._alive.clear()
        return size, references


def _is_tensor(value: object) -> bool:
    return isinstance(value, Tensor)


class RecordingBackend(EagerBackend):
    """Notes the name of every call in ``log``. Its pool grows to the largest graph's temporaries, as CUDA's.

    lazy  replays and copies happen no sooner than somebody waits for them: a host that does not wait where it
          must finds old numbers. Without it they happen at once; a device does something in between
    full  so many captures fail as if memory had run out

    ``most_ahead`` is the most that the host ever had launched before the device. With ``interrupt_at`` n,
    Ctrl-C is pressed at the n-th replay from now.
    """

    def __init__(self, *, lazy: bool = True) -> None:
        super().__init__("cpu")
        self.lazy = lazy
        self.full = 0
        self.log: list[str] = []
        self.graphs: list[RecordedGraph] = []
        self._pool = 0
        self._launched: deque[Callable[[], None]] = deque()
        self.reached = 0
        self.most_ahead = 0
        self.interrupt_at: int | None = None

    def zeros(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        self.log.append("zeros")
        return super().zeros(shape, dtype)

    def host(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        self.log.append("host")
        return super().host(shape, dtype)

    def copy(self, target: Tensor, source: Tensor) -> None:
        self.log.append("copy")
        self.launch(lambda: super(RecordingBackend, self).copy(target, source))

    def warm_up(self, body: Callable[[], Any]) -> Any:
        self.log.append("warm_up")
        self.wait(self.position)
        return body()

    def capture(self, body: Callable[[], None]) -> RecordedGraph:
        self.log.append("capture")
        self.wait(self.position)
        if self.full:
            self.full -= 1
            raise torch.OutOfMemoryError("the recording device is full")
        graph = RecordedGraph(self, len(self.graphs), body)
        self._pool = max(self.pool_bytes(), graph.bytes)
        self.graphs.append(graph)
        return graph

    def pool_bytes(self) -> int:
        if not any(graph.alive for graph in self.graphs):
            self._pool = 0
        return self._pool

    def record(self) -> RecordedEvent:
        self.log.append("record")
        return RecordedEvent(self, self.position)

    def trim(self) -> None:
        self.log.append("trim")

    @property
    def position(self) -> int:
        """How much was launched so far."""
        return self.reached + len(self._launched)

    def launch(self, work: Callable[[], None]) -> None:
        self._launched.append(work)
        self.most_ahead = max(self.most_ahead, len(self._launched))
        if not self.lazy:
            self.wait(self.position)

    def wait(self, position: int) -> None:
        while self.reached < position:
            self.reached += 1
            self._launched.popleft()()


class RecordedGraph:
    def __init__(self, backend: RecordingBackend, number: int, body: Callable[[], None]) -> None:
        self._backend = backend
        self._body: Callable[[], None] | None = body
        self.number = number
        self.operations, self.bytes = self._run(body)

    @property
    def alive(self) -> bool:
        return self._body is not None

    def replay(self) -> None:
        self._backend.log.append("replay")
        if self._body is None:
            raise Misuse(f"graph {self.number} was replayed after it had been freed")
        if self._backend.interrupt_at is not None:
            self._backend.interrupt_at -= 1
            if self._backend.interrupt_at == 0:
                self._backend.interrupt_at = None
                raise KeyboardInterrupt
        self._backend.launch(self._again)

    def _again(self) -> None:
        if self._body is None:
            raise Misuse(f"graph {self.number} was freed before a replay of it had ended")
        operations, _ = self._run(self._body)
        for found, wanted in zip(operations, self.operations, strict=False):
            if found != wanted:
                raise Misuse(f"a replay of graph {self.number} did {found}, captured was {wanted}")
        if len(operations) != len(self.operations):
            counts = f"{len(operations)} operations, captured were {len(self.operations)}"
            raise Misuse(f"a replay of graph {self.number} had {counts}")

    def free(self) -> None:
        if self._body is not None:
            self._backend.log.append("free")
        self._body = None

    def _run(self, body: Callable[[], None]) -> tuple[list[tuple[object, ...]], int]:
        recorder = _Recorder()
        with _NoHost(), recorder:
            body()
        size, references = recorder.finish()
        kept = sum(not reference.expired() for reference in references)
        if kept:
            raise Misuse(f"{kept} temporaries of graph {self.number} outlive it: the pool will be used again")
        return recorder.operations, size


class RecordedEvent:
    def __init__(self, backend: RecordingBackend, position: int) -> None:
        self._backend, self._position = backend, position

    def synchronize(self) -> None:
        self._backend.log.append("synchronize")
        self._backend.wait(self._position)


def table_step(
    sample: Tensor,
    output: Tensor,
    slots: Tensor,
    rows: Tensor,
    saves: Tensor,
    counter: Tensor,
    guided: bool,
    noise: Tensor | None = None,
    rescale: Tensor | None = None,
    threshold: Tensor | None = None,
    *,
    model_input: Tensor,
) -> None:
    """`reference.table_step` in place and without a value that the host reads, as a kernel does it."""
    assert rescale is None
    row = rows.index_select(0, counter)[0]
    c = dict(zip(TABLE_COLUMNS, row.unbind(), strict=False))
    m = output.to(sample.dtype)
    if guided:
        uncond, cond = m.chunk(2)
        m = uncond + c["guidance"] * (cond - uncond)
    out = c["sample"] * sample + c["output"] * m
    for k, history in enumerate(slots):
        out = out + row[len(TABLE_COLUMNS) + k] * history
    if noise is not None:
        out = out + c["noise"] * noise.index_select(0, counter)[0]
    d = c["estimate_sample"] * sample + c["estimate_output"] * m
    limit = c["estimate_limit"] if threshold is None else threshold.view(-1, 1, 1, 1)
    d = torch.minimum(torch.maximum(d, -limit), limit)
    if threshold is not None:
        d = d / limit
    out = torch.where(c["estimate_weight"] != 0, out + c["estimate_weight"] * d, out)
    keep_sample, keep_output = saves.index_select(0, counter)[0].unbind()
    for k, slot in enumerate(slots):
        kept = torch.where(keep_sample == k, sample, slot)
        slot.copy_(torch.where(keep_output == k, d, kept))
    sample.copy_(out)
    scaled = (c["next_scale"] * out).to(model_input.dtype)
    model_input.copy_(torch.cat([scaled, scaled]) if guided else scaled)
