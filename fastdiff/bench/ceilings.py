"""What this machine can do at best, measured in the same run: a large matrix product and a large copy."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

__all__ = ["Ceilings", "measure_ceilings"]

_GEMM = 2048
_COPY_BYTES = 1 << 28
"""256 MB read and as many written: more than any cache holds."""


@dataclass(frozen=True)
class Ceilings:
    """``gemm`` in FLOP/s of the float32 product of two matrices of 2048 × 2048, PyTorch's or that of our own
    kernel, whichever is faster (PyTorch's library uses half of some processors); ``copy`` in bytes/s, reads
    and writes counted.
    """

    gemm: float
    copy: float

    def best(self, other: Ceilings) -> Ceilings:
        """The higher of each."""
        return Ceilings(max(self.gemm, other.gemm), max(self.copy, other.copy))


def measure_ceilings(threads: int, rounds: int = 7) -> Ceilings:
    """The fastest of ``rounds`` on ``threads`` threads: a ceiling is what was reached once.

    Sets PyTorch's thread count for the process.
    """
    import torch

    from fastdiff import _C

    torch.set_num_threads(threads)
    a, b, c = torch.rand(_GEMM, _GEMM), torch.rand(_GEMM, _GEMM), torch.empty(_GEMM, _GEMM)
    source = torch.ones(_COPY_BYTES // 4)
    target = torch.empty_like(source)
    product = _fastest(lambda: torch.mm(a, b, out=c), rounds)
    ours = min(_C.measure_linear(_GEMM, _GEMM, _GEMM, "none", "fp32", threads, 0.0) for _ in range(rounds))
    product = min(product, ours)
    copy = _fastest(lambda: target.copy_(source), rounds)
    return Ceilings(2 * _GEMM**3 / product, 2 * _COPY_BYTES / copy)


def _fastest(function: Callable[[], object], rounds: int) -> float:
    function()
    seconds = []
    for _ in range(rounds):
        start = time.perf_counter()
        function()
        seconds.append(time.perf_counter() - start)
    return min(seconds)
