"""Rows of a table, chosen by number: token and position embeddings."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from fastdiff import _C

__all__ = ["embedding"]

FloatArray = npt.NDArray[np.float32]


def embedding(
    ids: npt.NDArray[np.int64],
    table: npt.NDArray[np.float32] | npt.NDArray[np.float16],
    *,
    out: FloatArray | None = None,
    threads: int = 1,
    isa: str | None = None,
) -> FloatArray:
    """Return ``table[ids]`` in float32.

    ``ids``: int64 in [0, K), any shape; ``table``: (K, C) float32 or float16; both C-contiguous. Result:
    ``(*ids.shape, C)``.

    ``out`` is allocated when None, and returned; it shares no memory with an input. ``threads`` work on it.
    ``isa`` runs this call with another instruction set than the process's; tests and benchmarks use it.

    Raises :class:`fastdiff.errors.InputError` for another dtype, shape or layout, or an id out of range.
    """
    if out is None and np.ndim(table) == 2:
        out = np.empty((*np.shape(ids), np.shape(table)[1]), np.float32)
    _C.embedding(ids, table, out, threads, isa)
    assert out is not None  # the call has refused other shapes
    return out
