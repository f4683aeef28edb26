"""The noise that PyTorch's CPU generator makes, without PyTorch.

A seed gives the latents, and therefore the picture, that diffusers gives for
``torch.Generator().manual_seed(seed)``. ``csrc/kernels/randn.h`` says how the numbers come about.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from fastdiff import _C
from fastdiff.errors import InputError

__all__ = ["Generator", "NoiseSource"]


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
        if isinstance(seed, bool) or not hasattr(seed, "__index__"):
            raise InputError(f"seed is {seed!r}, wanted an integer")
        seed = operator.index(seed)
        if not -(2**63) <= seed < 2**64:
            raise InputError(f"seed is {seed}, wanted -2**63 to 2**64 - 1")
        self._seed = seed % 2**64
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
        shape = (shape,) if isinstance(shape, int) else tuple(shape)
        if any(size < 0 for size in shape):
            raise InputError(f"noise of shape {shape} has a negative dimension, wanted 0 or more")
        if out is None:
            out = np.empty(shape, dtype=np.float32)
        elif out.shape != shape:
            raise InputError(f"out has shape {out.shape}, wanted {shape}")
        self._state.fill(out)
        return out
