"""All CUDA-graph state: static buffers, capture, replay, one shared pool, an LRU of what was captured.

A captured graph reads and writes fixed addresses. What lives from one replay to the next is in static
buffers, which belong to one entry of the cache each; the pool holds temporaries alone, so that all graphs of
a device, which never run at the same time, use the same memory for them. Many shapes cost their static
buffers and the temporaries of the largest.
"""

from __future__ import annotations

import contextlib
import threading
import weakref
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass, field
from typing import Any, TypeVar, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fastdiff.errors import InputError
from fastdiff.targets.cuda.backend import Backend, EagerBackend, Graph
from fastdiff.targets.cuda.captures import ended

__all__ = ["Buffer", "Captured", "CudaBackend", "GraphCache", "Key", "capture"]

T = TypeVar("T")
C = TypeVar("C", bound="Captured")
Key = tuple[Hashable, ...]
"""What an entry of the cache is found by. The first item is its owner, whose entries are closed together."""


_CAPTURING = threading.Lock()
"""Held while a graph is captured and while memory is given back, which PyTorch does for all devices at once
and never while any of them captures: two threads may drive two GPUs.
"""


class CudaBackend(EagerBackend):
    """CUDA graphs of PyTorch, one pool and one side stream for captures per instance.

    Replays and copies go to the current stream. One instance per device, as the pool is shared through it.
    """

    def __init__(self, device: int = 0) -> None:
        super().__init__(torch.device("cuda", device))
        cuda: Any = torch.cuda  # typed only in part
        self._side: torch.cuda.Stream = cuda.Stream(
            self.device
        )  # PyTorch wants one for all captures of a pool
        self._pool: Any = torch.cuda.graph_pool_handle()
        self._graphs: weakref.WeakSet[_CudaGraph] = weakref.WeakSet()

    @contextlib.contextmanager
    def active(self) -> Iterator[None]:
        """The device made current, no gradients."""
        with torch.cuda.device(self.device), torch.no_grad():
            yield

    def warm_up(self, body: Callable[[], T]) -> T:
        """What ``body`` returns, run on the stream of the captures: cuBLAS keeps a workspace per stream,
        which must not come from the pool.
        """
        self._side.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(self._side):
            result = body()
        self._side.synchronize()
        return result

    def capture(self, body: Callable[[], None]) -> Graph:
        """``body`` as a CUDA graph in the shared pool."""
        if not self._in_use():
            # PyTorch refuses to use a pool again that has lost its last graph.
            self._pool = torch.cuda.graph_pool_handle()
        graph = torch.cuda.CUDAGraph()
        with (
            _CAPTURING,
            # A capture that fails leaves PyTorch on the side stream; this goes back.
            torch.cuda.stream(torch.cuda.current_stream(self.device)),
            ended(self.device.index, self._pool),
            # "thread_local": other threads, a data loader's say, may allocate meanwhile.
            torch.cuda.graph(graph, self._pool, self._side, capture_error_mode="thread_local"),
        ):
            body()
        captured = _CudaGraph(graph)
        self._graphs.add(captured)
        return captured

    def trim(self) -> None:
        """Return what PyTorch's allocator keeps."""
        with _CAPTURING:
            super().trim()

    def pool_bytes(self) -> int:
        """The pool's segments in PyTorch's allocator."""
        if not self._in_use():
            return 0
        pool = tuple(self._pool)
        cuda: Any = torch.cuda
        segments = cuda.memory_snapshot()
        return sum(s["total_size"] for s in segments if tuple(s["segment_pool_id"]) == pool)

    def _in_use(self) -> bool:
        return any(graph.held is not None for graph in self._graphs)


class _CudaGraph:
    def __init__(self, graph: torch.cuda.CUDAGraph) -> None:
        self.held: torch.cuda.CUDAGraph | None = graph

    def replay(self) -> None:
        if self.held is None:
            raise RuntimeError("a graph was replayed after it had been freed")
        self.held.replay()

    def free(self) -> None:
        if self.held is not None:
            self.held.reset()
        self.held = None


def capture(backend: Backend, body: Callable[[], None]) -> Graph:
    """``body`` as a graph, after two runs that load kernels, benchmark and allocate workspaces.

    The first run of a convolution may measure algorithms; the second runs what was chosen.
    """
    for _ in range(2):
        backend.warm_up(body)
    return backend.capture(body)


class Buffer:
    """A static tensor on the device, with host memory of the same shape that is copied to or from it.

    The host memory must not be written to while an upload from it is under way.
    """

    def __init__(self, backend: Backend, shape: tuple[int, ...], dtype: torch.dtype) -> None:
        self._backend = backend
        self.tensor = backend.zeros(shape, dtype)
        self.host = backend.host(shape, dtype)
        self.array: NDArray[Any] = self.host.numpy()

    @staticmethod
    def like(backend: Backend, array: NDArray[Any]) -> Buffer:
        """A buffer of the shape and dtype of ``array``."""
        return Buffer(backend, array.shape, torch.from_numpy(np.empty(0, array.dtype)).dtype)

    def upload(self, array: NDArray[Any]) -> None:
        """Copy ``array`` to the device; it may be shorter than the buffer along the first axis."""
        np.copyto(self.array[: len(array)], array)
        self.send(len(array))

    def send(self, count: int) -> None:
        """Copy the first ``count`` rows of ``array`` to the device. The host does not wait."""
        self._backend.copy(self.tensor[:count], self.host[:count])

    def fetch(self) -> None:
        """Copy the tensor to ``array``, which has it once an event recorded after this is reached."""
        self._backend.copy(self.host, self.tensor)


@dataclass(eq=False)
class Captured:
    """An entry of the cache: graphs by name and all static buffers that they read and write.

    ``inputs`` and ``outputs`` are those that the host fills and reads; ``others`` stay on the device.
    """

    key: Key
    graphs: dict[str, Graph]
    inputs: dict[str, Buffer] = field(default_factory=dict)
    outputs: dict[str, Buffer] = field(default_factory=dict)
    others: list[Tensor] = field(default_factory=list)

    @property
    def bytes(self) -> int:
        """Device memory of the static buffers."""
        buffers = {id(buffer): buffer for buffer in (*self.inputs.values(), *self.outputs.values())}
        tensors = [*(buffer.tensor for buffer in buffers.values()), *self.others]
        return sum(tensor.numel() * tensor.element_size() for tensor in tensors)

    def free(self) -> None:
        """Free graphs and buffers."""
        for graph in self.graphs.values():
            graph.free()
        for held in (self.graphs, self.inputs, self.outputs, self.others):
            held.clear()


class GraphCache:
    """What was captured, least recently used first, within ``limit_bytes`` of device memory.

    The bound is over static buffers and pool. When a new entry exceeds it, the others go, the oldest first,
    but for those that are running; when it still is exceeded and the pool holds memory of graphs that are
    gone, the new one is captured again into a pool of its own. An entry larger than the bound runs alone.

    One run at a time: another thread waits until it has ended. ``captures``, ``hits`` and ``evictions`` are
    counted.
    """

    def __init__(self, backend: Backend, limit_bytes: int) -> None:
        self.backend = backend
        self.limit_bytes = limit_bytes
        self.captures = self.hits = self.evictions = 0
        self._entries: OrderedDict[Key, Captured] = OrderedDict()
        self._running: list[Key] = []
        self._lock = threading.RLock()

    @property
    def keys(self) -> tuple[Key, ...]:
        """Keys of the entries, the least recently used first."""
        return tuple(self._entries)

    @property
    def bytes(self) -> int:
        """Device memory of all entries and the pool."""
        return sum(entry.bytes for entry in self._entries.values()) + self.backend.pool_bytes()

    @contextlib.contextmanager
    def running(
        self, key: Key, capture: Callable[[], C], fits: Callable[[C], bool] | None = None
    ) -> Iterator[C]:
        """The entry as ``get`` gives it, kept for as long as the context lasts; the device is current.

        Raises InputError when it is running already: a callback has called what calls it.
        """
        with self._lock, self.backend.active():
            if key in self._running:
                raise InputError("a loop was started from its own callback; start it when it has ended")
            self._running.append(key)
            try:
                yield self.get(key, capture, fits)
            finally:
                self._running.remove(key)

    @contextlib.contextmanager
    def exclusive(self) -> Iterator[None]:
        """No graph of the device runs meanwhile, and the device is current.

        Raises InputError from the callback of a loop.
        """
        with self._lock, self.backend.active():
            if self._running:
                raise InputError("weights cannot change from the callback of a loop; do it when it has ended")
            self.backend.record().synchronize()
            yield
            self.backend.record().synchronize()

    def get(self, key: Key, capture: Callable[[], C], fits: Callable[[C], bool] | None = None) -> C:
        """The entry with ``key``; from ``capture`` when there is none, or none that ``fits``.

        ``capture`` may be called twice, the first result being dropped, and again after it ran out of memory.
        """
        with self._lock:
            found = cast(C | None, self._entries.get(key))
            if found is not None and (fits is None or fits(found)):
                self.hits += 1
                self._entries.move_to_end(key)
                return found
            if found is not None:
                del found
                self._remove(key)
            if self.bytes > self.limit_bytes:  # one entry, larger than the bound
                self._evict_others(key)
            entry = self._captured(key, capture)
            shared = len(self._entries) > 1
            if self._shrink(key) and shared and len(self._entries) == 1:
                # The rest of what evicted graphs took leaves with the last graph in the pool.
                del entry
                self._remove(key)
                entry = self._captured(key, capture)
            return entry

    def close(self, owner: Hashable = None) -> None:
        """Free all entries, or those of one owner. Raises InputError while one of them is running."""
        with self._lock:
            keys = [key for key in self._entries if owner is None or key[0] == owner]
            if any(key in self._running for key in keys):
                raise InputError("a loop was closed from its own callback; close it when it has ended")
            for key in keys:
                self._remove(key)

    def _captured(self, key: Key, capture: Callable[[], C]) -> C:
        entry = None
        try:
            entry = capture()
        except torch.OutOfMemoryError:
            if not self._idle(key):
                raise
        if entry is None:
            # Not in the handler, whose traceback keeps alive what the capture had allocated.
            self._evict_others(key)
            entry = capture()
        self.captures += 1
        self._entries[key] = entry
        return entry

    def _shrink(self, kept: Key) -> bool:
        """Evict others until the bound is met; whether it still is exceeded."""
        for key in self._idle(kept):
            if self.bytes <= self.limit_bytes:
                break
            self._evict(key)
        return self.bytes > self.limit_bytes

    def _evict_others(self, kept: Key) -> None:
        for key in self._idle(kept):
            self._evict(key)

    def _idle(self, kept: Key) -> list[Key]:
        return [key for key in self._entries if key != kept and key not in self._running]

    def _evict(self, key: Key) -> None:
        self.evictions += 1
        self._remove(key)

    def _remove(self, key: Key) -> None:
        self.backend.record().synchronize()
        self._entries.pop(key).free()
        self.backend.trim()
