"""The noise that PyTorch's generators make, without PyTorch.

A seed gives the latents, and therefore the picture, that diffusers gives for
``torch.Generator().manual_seed(seed)``, or for ``torch.Generator("cuda")`` on a GPU of which two numbers
are known. ``csrc/kernels/randn.h`` and ``csrc/cuda/philox.h`` say how the numbers come about.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from fastdiff import _C
from fastdiff.errors import InputError

__all__ = [
    "BatchRows",
    "CudaGenerator",
    "Generator",
    "NoiseSource",
    "philox_increment",
    "philox_threads",
]


class NoiseSource(Protocol):
    """Where a stochastic sampler takes its noise from."""

    def randn(
        self, shape: int | Sequence[int], *, out: NDArray[np.float32] | None = None
    ) -> NDArray[np.float32]:
        """Independent normal numbers of mean 0 and variance 1, float32, of ``shape``, in ``out`` if given."""


class Generator:
    """A random generator with the state and the output of ``torch.Generator("cpu")``.

    The state carries over from call to call as PyTorch's does: the latents of several pictures are one call
    with the batch as first dimension, and noise that a sampler draws later continues the sequence.

    ``seed`` is an integer from −2⁶³ to 2⁶⁴ − 1; a negative one stands for 2⁶⁴ + seed. As in PyTorch, only its
    low 32 bits select the sequence. Raises `InputError` for anything else.

    ``box_muller`` is "cephes" or "libm", the two ways in which PyTorch computes; they agree to 3e-6. None is
    the way that PyTorch takes on this machine: "cephes" on x86 with AVX2.

    Not safe for concurrent use by several threads.
    """

    def __init__(self, seed: int, *, box_muller: str | None = None) -> None:
        self._seed = _checked_seed(seed)
        self._state = _C.Randn(self._seed, box_muller)

    @property
    def seed(self) -> int:
        """The seed, 0 to 2⁶⁴ − 1, as ``torch.Generator.initial_seed`` gives it."""
        return self._seed

    @property
    def state(self) -> _C.Randn:
        """The compiled generator, for a loop that draws from it without Python."""
        return self._state

    def randn(
        self, shape: int | Sequence[int], *, out: NDArray[np.float32] | None = None
    ) -> NDArray[np.float32]:
        """What ``torch.randn(shape, generator=g)`` returns next: float32 of ``shape``.

        ``out``, float32, C-contiguous and of ``shape``, is filled and returned instead of a new array. Raises
        `InputError` when it is not that, and for a negative dimension.
        """
        out = _checked_out(shape, out)
        self._state.fill(out)
        return out


class CudaGenerator:
    """A random generator with the state and the output of ``torch.Generator("cuda")``, on the CPU.

    PyTorch shares the numbers out over the threads that a GPU can run at once, so that a seed's noise
    depends on the GPU: ``multiprocessors`` and ``threads_per_multiprocessor`` are its
    ``multi_processor_count`` and ``max_threads_per_multi_processor`` (132 and 2048 for H100 and H200). A
    draw of up to their product, 270,336 numbers there, is the same on every GPU that is no smaller.

    The words are PyTorch's bit for bit. The normals differ from the GPU's by about 1e-6, since its sine and
    cosine are approximations in hardware; kernels that draw on the GPU have those too
    (``fastdiff/kernels/cuda/scheduler_step.py``).

    ``seed`` as for :class:`Generator`, but all 64 bits count. Not safe for concurrent use by several threads.
    """

    def __init__(self, seed: int, multiprocessors: int, threads_per_multiprocessor: int) -> None:
        self._seed = _checked_seed(seed)
        if multiprocessors < 1 or threads_per_multiprocessor < 256:
            raise InputError(
                f"GPU: found {multiprocessors} multiprocessors of {threads_per_multiprocessor} threads, "
                "wanted at least one of at least 256"
            )
        self._gpu = (multiprocessors, threads_per_multiprocessor)
        self._offset = 0

    @property
    def seed(self) -> int:
        """The seed, 0 to 2⁶⁴ − 1, as ``torch.Generator.initial_seed`` gives it."""
        return self._seed

    @property
    def offset(self) -> int:
        """How far the generator has moved, as ``torch.Generator.get_offset`` gives it."""
        return self._offset

    def randn(
        self, shape: int | Sequence[int], *, out: NDArray[np.float32] | None = None
    ) -> NDArray[np.float32]:
        """What ``torch.randn(shape, device="cuda", generator=g)`` returns next: float32 of ``shape``.

        ``out`` and errors as for :meth:`Generator.randn`.
        """
        out = _checked_out(shape, out)
        if out.size >= 2**31:
            raise InputError(f"noise of {out.size} numbers, wanted fewer than 2**31: PyTorch splits those")
        if out.size:
            threads = philox_threads(out.size, *self._gpu)
            _C.philox_normal(self._seed, self._offset, threads, out)
            self._offset += philox_increment(out.size, threads)
        return out


class BatchRows:
    """The noise that some rows of a batch get when the whole batch is drawn at once.

    A call for ``shape`` draws ``batch`` rows of ``shape[1:]`` from ``source`` and returns ``shape[0]`` of
    them from ``begin`` on: pictures that are computed apart see the noise that they would see together.
    Raises `InputError` where the batch has no such rows.
    """

    def __init__(self, source: NoiseSource, batch: int, begin: int) -> None:
        self._source = source
        self._batch = batch
        self._begin = begin

    def randn(
        self, shape: int | Sequence[int], *, out: NDArray[np.float32] | None = None
    ) -> NDArray[np.float32]:
        """Rows of the next draw, float32 of ``shape``, in ``out`` if given."""
        rows, *rest = (shape,) if isinstance(shape, int) else shape
        end = self._begin + rows
        if end > self._batch:
            raise InputError(f"noise for rows {self._begin} to {end}, wanted within a batch of {self._batch}")
        drawn = self._source.randn((self._batch, *rest))[self._begin : end]
        if out is None:
            return drawn.copy()
        out = _checked_out(shape, out)
        np.copyto(out, drawn)
        return out


def philox_threads(size: int, multiprocessors: int, threads_per_multiprocessor: int) -> int:
    """How many threads PyTorch takes on a GPU for a draw of ``size`` > 0 normals."""
    return 256 * min(-(-size // 256), multiprocessors * (threads_per_multiprocessor // 256))


def philox_increment(size: int, threads: int) -> int:
    """By how much a draw of ``size`` > 0 normals moves a CUDA generator's offset."""
    return ((size - 1) // (4 * threads) + 1) * 4


def _checked_seed(seed: int) -> int:
    if isinstance(seed, bool) or not hasattr(seed, "__index__"):
        raise InputError(f"seed is {seed!r}, wanted an integer")
    seed = operator.index(seed)
    if not -(2**63) <= seed < 2**64:
        raise InputError(f"seed is {seed}, wanted -2**63 to 2**64 - 1")
    return seed % 2**64


def _checked_out(shape: int | Sequence[int], out: NDArray[np.float32] | None) -> NDArray[np.float32]:
    shape = (shape,) if isinstance(shape, int) else tuple(shape)
    if any(size < 0 for size in shape):
        raise InputError(f"noise of shape {shape} has a negative dimension, wanted 0 or more")
    if out is None:
        return np.empty(shape, dtype=np.float32)
    if out.shape != shape:
        raise InputError(f"out has shape {out.shape}, wanted {shape}")
    return out
