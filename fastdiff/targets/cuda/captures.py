"""What PyTorch leaves undone when CUDA refuses a capture."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch

__all__ = ["ended"]


@contextlib.contextmanager
def ended(device: int, pool: Any) -> Iterator[None]:
    """A capture into the block's ``pool``; one that fails is over for PyTorch's allocator as well.

    ``CUDAGraph.capture_end`` tells the allocator only after CUDA has ended the capture. Where CUDA refuses,
    because the body waited for the device, say, the allocator goes on believing that a capture is under way,
    and from then on every ``empty_cache``, so every further capture, fails with an internal error.
    """
    try:
        yield
    except BaseException:
        private: Any = torch._C
        # RuntimeError: the capture had ended, and another thing failed. Then the graph gives the pool back.
        with contextlib.suppress(RuntimeError):
            private._cuda_endAllocateToPool(device, pool)
            private._cuda_releasePool(device, pool)
        raise
