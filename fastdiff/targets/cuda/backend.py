"""What captured work needs of a device, and the device that captures nothing."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor

__all__ = ["Backend", "EagerBackend", "Event", "Graph"]

T = TypeVar("T")


class Graph(Protocol):
    """Work that was captured. Dropping the last reference frees it."""

    def replay(self) -> None:
        """Launch it again, after all that was launched before. The host does not wait."""

    def free(self) -> None:
        """Give its memory back to the pool; it cannot be replayed afterwards."""


class Event(Protocol):
    """A point in the order of what was launched."""

    def synchronize(self) -> None:
        """Wait until the device has reached it."""


class Backend(Protocol):
    """What the cache and the loop need of a device."""

    def active(self) -> contextlib.AbstractContextManager[object]:
        """The surroundings of every call: this device, no gradients."""

    def zeros(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """Device memory outside of the pool."""

    def host(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """Host memory that the device can copy from and to while the host goes on."""

    def copy(self, target: Tensor, source: Tensor) -> None:
        """Copy between ``host`` and device memory, after all that was launched before. The host goes on."""

    def warm_up(self, body: Callable[[], T]) -> T:
        """Run ``body`` where captures run, and wait: libraries load, choose and allocate here, not later."""

    def capture(self, body: Callable[[], None]) -> Graph:
        """``body``, run before by ``warm_up``, as a graph.

        It must not wait for the device, not let a value on the device decide what is launched, and keep no
        memory that it allocates: results go to static buffers.
        """

    def pool_bytes(self) -> int:
        """Device memory that the pool holds. It comes back when no graph is left in it."""

    def record(self) -> Event:
        """The point after all that was launched so far."""

    def trim(self) -> None:
        """Return memory that nothing uses to the device."""


class EagerBackend:
    """Runs bodies as they are, on the CPU or, to look at what a graph would hide, on a GPU."""

    def __init__(self, device: torch.device | str = "cpu") -> None:
        self.device = torch.device(device)

    def active(self) -> contextlib.AbstractContextManager[object]:
        """No gradients."""
        return torch.no_grad()

    def zeros(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """Zeros on the device."""
        return torch.zeros(shape, dtype=dtype, device=self.device)

    def host(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """Page-locked memory for a GPU, any for the CPU."""
        return torch.zeros(shape, dtype=dtype, pin_memory=self.device.type == "cuda")

    def copy(self, target: Tensor, source: Tensor) -> None:
        """A copy on the current stream."""
        target.copy_(source, non_blocking=True)

    def warm_up(self, body: Callable[[], T]) -> T:
        """What ``body`` returns."""
        return body()

    def capture(self, body: Callable[[], None]) -> Graph:
        """A graph whose replay calls ``body``."""
        return _EagerGraph(body)

    def pool_bytes(self) -> int:
        """There is no pool."""
        return 0

    def record(self) -> Event:
        """An event of the current stream."""
        if self.device.type != "cuda":
            return _Done()
        cuda: Any = torch.cuda  # typed only in part
        event: Event = cuda.Event()
        cuda.current_stream(self.device).record_event(event)
        return event

    def trim(self) -> None:
        """Return what PyTorch's allocator keeps."""
        if self.device.type == "cuda":
            torch.cuda.empty_cache()


class _EagerGraph:
    def __init__(self, body: Callable[[], None]) -> None:
        self.replay = body

    def free(self) -> None:
        """There is nothing to free."""


class _Done:
    """The CPU has done everything as soon as it was launched."""

    def synchronize(self) -> None:
        """There is nothing to wait for."""
