"""Device memory that the modules of an engine share.

A run of TensorRT's needs memory for activations only while it is under way, and the modules of a pipeline run
one after the other: the text encoder, the U-Net in every step, the VAE decoder. So they share one block, as
large as the largest of them needs, where separate blocks would add up.
"""

from __future__ import annotations

import threading
import weakref
from pathlib import Path

from fastdiff.targets.tensorrt.interface import Device

__all__ = ["SharedMemory", "shared_memory"]


class SharedMemory:
    """A block that grows as needed, and the order of its users.

    Whoever runs with it holds ``lock`` until the run is on its stream, and calls ``use`` before.
    ``generation`` counts the times that the block has moved: a graph captured before holds an address that is
    no longer good.
    """

    def __init__(self, device: Device) -> None:
        self.device = device
        self.lock = threading.RLock()
        self.address = 0
        self.size = 0
        self.generation = 0
        self._last: int | None = None
        self._users = 0

    def attach(self) -> None:
        """One session more shares the block."""
        with self.lock:
            self._users += 1

    def detach(self) -> None:
        """One session less; the last one to go gives the block back."""
        with self.lock:
            self._users -= 1
            if self._users == 0:
                self.free()

    def reserve(self, size: int) -> None:
        """Make the block at least ``size`` bytes. Raises DeviceMemoryError, and then there is none."""
        if size <= self.size:
            return
        self.free()
        self.address = self.device.allocate(size)
        self.size = size

    def use(self, stream: int) -> None:
        """The next run is on ``stream``: it waits for the last one where that is on another stream."""
        if self._last not in (None, stream):
            assert self._last is not None
            self.device.order(self._last, stream)
        self._last = stream

    def settled(self, stream: int) -> None:
        """All runs on ``stream`` have ended: nobody needs to wait for it."""
        if self._last == stream:
            self._last = None

    def wait(self) -> None:
        """Wait for the runs under way. Each was put behind the one before it, so that the last one tells."""
        if self._last is not None:
            self.device.synchronize(self._last)
            self._last = None

    def free(self) -> None:
        """Give the block back, once the runs under way have ended."""
        self.wait()
        if self.size:
            self.device.free(self.address)
            self.address = self.size = 0
            self.generation += 1


_SHARED: weakref.WeakValueDictionary[tuple[Path, int], SharedMemory] = weakref.WeakValueDictionary()
_LOCK = threading.Lock()


def shared_memory(folder: Path, index: int, device: Device) -> SharedMemory:
    """The block of the engine in ``folder`` on GPU ``index``; it lives as long as somebody keeps it."""
    key = (folder.resolve(), index)
    with _LOCK:
        found = _SHARED.get(key)
        if found is None or found.device is not device:
            found = _SHARED[key] = SharedMemory(device)
        return found
