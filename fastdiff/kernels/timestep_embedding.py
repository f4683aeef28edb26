"""The sinusoidal embedding of timesteps."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from fastdiff import _C

__all__ = ["timestep_embedding"]

FloatArray = npt.NDArray[np.float32]


def timestep_embedding(
    timesteps: FloatArray,
    frequencies: FloatArray,
    sine_first: bool = False,
    *,
    out: FloatArray | None = None,
    threads: int = 1,
    isa: str | None = None,
) -> FloatArray:
    """Return cosines and sines of ``timesteps × frequencies`` (Ho et al. 2020, after Vaswani et al. 2017).

    ``timesteps``: (B,) float32, ``frequencies``: (half,) float32, in radians per timestep. Result:
    (B, 2·half), the cosines first or, with ``sine_first``, the sines. The product is rounded to float32, as
    PyTorch does.

    ``out`` is allocated when None, and returned; it shares no memory with an input. ``threads`` work on it.
    ``isa`` runs this call with another instruction set than the process's; tests and benchmarks use it.

    Raises :class:`fastdiff.errors.InputError` for another dtype, shape or layout.
    """
    if out is None:
        out = np.empty((np.size(timesteps), 2 * np.size(frequencies)), np.float32)
    _C.timestep_embedding(timesteps, frequencies, sine_first, out, threads, isa)
    return out
