"""Memory that a build gives back between its stages (docs/memory.md)."""

from __future__ import annotations

import ctypes
import gc

__all__ = ["release"]


def release() -> None:
    """Return what nobody refers to any more to the system.

    Modules refer to themselves in cycles, which only a collection ends; and the C library keeps freed pages
    between others that are in use, where it has ``malloc_trim`` to let go of them.
    """
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
