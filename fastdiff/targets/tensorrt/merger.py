"""Weights with their updates, computed on the GPU by the network of ``merge_network.py``."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from fastdiff.errors import NumericError
from fastdiff.targets.tensorrt.interface import Context, Engine, TensorRtError
from fastdiff.targets.tensorrt.memory import SharedMemory
from fastdiff.targets.tensorrt.merge_network import INPUTS, OUTPUTS

if TYPE_CHECKING:
    from fastdiff.lora.update import LowRank

__all__ = ["Job", "Merger", "packed"]

_ALIGNMENT = 256
"""Bytes to which TensorRT wants addresses aligned."""


@dataclass(frozen=True)
class Job:
    """One weight of a layer: its matrix as it is stored, transposed or not, at an address on the device,
    and the updates to be added to it.
    """

    path: str
    address: int
    dtype: np.dtype[np.generic]
    matrix: tuple[int, int]
    transposed: bool
    parts: Sequence[LowRank]

    @property
    def rank(self) -> int:
        """That of all updates together, which is the full one at most."""
        return min(sum(part.rank for part in self.parts), *self.matrix)

    def shapes(self) -> tuple[tuple[int, int], ...]:
        """Of the merge's inputs."""
        rows, columns = self.matrix
        return self.matrix, (self.rank, rows), (self.rank, columns)

    @np.errstate(over="ignore", invalid="ignore")
    def factors(self) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """``first`` and ``second`` of the merge, whose result shows what float32 cannot hold."""
        flat = [part.down.reshape(part.rank, -1) for part in self.parts]
        down = flat[0] if len(flat) == 1 else np.concatenate(flat)
        up = np.empty((len(down), len(self.parts[0].up)), np.float32)
        first = 0
        for part in self.parts:
            np.multiply(part.up.T, np.float32(part.scale), out=up[first : first + part.rank])
            first += part.rank
        if self.rank < len(down):
            product, narrow = up.T @ down, np.eye(self.rank, dtype=np.float32)
            up, down = (narrow, product) if len(product) == self.rank else (product.T, narrow)
        up, down = np.ascontiguousarray(up), np.ascontiguousarray(down)
        return (down, up) if self.transposed else (up, down)


class Merger:
    """Runs a module's merge on memory that ``memory`` shares, with its lock held."""

    def __init__(self, engine: Engine, memory: SharedMemory) -> None:
        self._engine = engine
        self._memory = memory
        self._device = memory.device
        self._context: Context | None = None

    @contextlib.contextmanager
    def merged(self, jobs: Sequence[Job], stream: int) -> Iterator[list[int]]:
        """Where each weight with its updates is on the device, inside the block.

        Raises NumericError for one that is out of the range of its dtype, and TensorRtError.
        """
        if not jobs:
            yield []
            return
        offsets, size = packed(size for job in jobs for size in _sizes(job))
        block = self._device.allocate(size)
        places = [[block + offset for offset in offsets[at : at + 5]] for at in range(0, len(offsets), 5)]
        try:
            before: tuple[tuple[int, int], ...] = ()
            for job, place in sorted(zip(jobs, places, strict=True), key=lambda each: each[0].shapes()):
                if job.shapes() != before:
                    before = job.shapes()
                    context = self._prepared(before, stream)
                self._put(job, place, context, stream)
            self._check(jobs, places, stream)
            yield [merged for merged, *_ in places]
        finally:
            with contextlib.suppress(TensorRtError):
                self._device.synchronize(stream)
            self._device.free(block)

    def _prepared(self, shapes: Sequence[tuple[int, int]], stream: int) -> Context:
        """The context for inputs of these shapes. One serves all: its runs are put on one stream."""
        if self._context is None:
            self._context = self._engine.create_context(0, stream)
        needed = self._context.set_shapes(dict(zip(INPUTS, shapes, strict=True)))
        if needed > self._memory.size:
            self._device.synchronize(stream)  # what is under way uses the block that a larger one replaces
        self._memory.reserve(needed)
        self._context.set_memory(self._memory.address, self._memory.size)
        return self._context

    def _put(self, job: Job, place: Sequence[int], context: Context, stream: int) -> None:
        merged, first, second, peak, total = place
        for address, factor in zip((first, second), job.factors(), strict=True):
            self._device.upload(address, factor, stream)
        addresses = (job.address, first, second, merged, peak, total)
        for tensor, address in zip((*INPUTS, *OUTPUTS), addresses, strict=True):
            context.set_address(tensor, address)
        context.enqueue(stream)

    def _check(self, jobs: Sequence[Job], places: Sequence[Sequence[int]], stream: int) -> None:
        """Raises NumericError. The device is waited for once, not for each weight."""
        found = np.empty((len(jobs), 2, 1), np.float32)
        for row, (_, _, _, *addresses) in zip(found, places, strict=True):
            for value, address in zip(row, addresses, strict=True):
                self._device.download(value, address, stream)
        self._device.synchronize(stream)
        for job, (peak, total) in zip(jobs, found[..., 0], strict=True):
            with np.errstate(over="ignore"):
                fits = np.isfinite(total) and np.isfinite(np.asarray(peak).astype(job.dtype))
            if not fits:
                other = ", or build the engine with --precision fp32" if job.dtype.itemsize < 4 else ""
                raise NumericError(
                    f"a LoRA takes the weight of {job.path} out of the range of {job.dtype.name}: give it a"
                    f" smaller scale{other}"
                )


def packed(sizes: Iterable[int]) -> tuple[list[int], int]:
    """Where things of these sizes in bytes begin, one behind the other, and the size of all."""
    offsets, end = [], 0
    for size in sizes:
        offsets.append(end)
        end += -(-size // _ALIGNMENT) * _ALIGNMENT
    return offsets, end


def _sizes(job: Job) -> tuple[int, ...]:
    """Bytes of the merged weight, both factors, peak and total."""
    rows, columns = job.matrix
    return rows * columns * job.dtype.itemsize, 4 * job.rank * rows, 4 * job.rank * columns, 4, 4
