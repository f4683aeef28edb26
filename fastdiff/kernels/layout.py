"""How tensors lie in memory, as far as kernels care. Importing this imports PyTorch alone."""

from __future__ import annotations

from itertools import pairwise

from torch import Tensor

__all__ = ["row_step"]


def row_step(x: Tensor) -> int | None:
    """Elements from one row of the last axis to the next; None where rows, over all other axes, are not
    evenly spaced, or are not contiguous themselves.

    Parts of a merged projection have evenly spaced rows, a slice of the middle axis has not.
    """
    if x.dim() and x.shape[-1] > 1 and x.stride(-1) != 1:
        return None
    axes = [(size, step) for size, step in zip(x.shape[:-1], x.stride()[:-1], strict=True) if size != 1]
    if x.numel() and any(outer != size * inner for (_, outer), (size, inner) in pairwise(axes)):
        return None
    return axes[-1][1] if axes else x.shape[-1]
