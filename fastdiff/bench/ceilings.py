"""What this machine can do at best, measured in the same run: a large matrix product and a large copy."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

__all__ = ["Ceilings", "measure_ceilings"]

_GEMM = 2048
_GPU_GEMM = 8192
_GPU_COPY_BYTES = 1 << 30
_COPY_BYTES = 1 << 28
"""256 MB read and as many written: more than any cache holds."""


@dataclass(frozen=True)
class Ceilings:
    """``gemm`` in FLOP/s of the float32 product of two matrices of 2048 × 2048, PyTorch's or that of our own
    kernel, whichever is faster (PyTorch's library uses half of some processors); on a GPU of the fp16 product
    of 8192 × 8192. ``copy`` in bytes/s, reads and writes counted; on a GPU within its memory.
    """

    gemm: float
    copy: float

    def best(self, other: Ceilings) -> Ceilings:
        """The higher of each."""
        return Ceilings(max(self.gemm, other.gemm), max(self.copy, other.copy))


def measure_ceilings(threads: int, rounds: int = 7, device: str = "cpu") -> Ceilings:
    """The fastest of ``rounds`` on ``threads`` threads: a ceiling is what was reached once.

    Sets PyTorch's thread count for the process.
    """
    import torch

    if device == "cuda":
        return _on_gpu(4 * rounds)

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


def _on_gpu(rounds: int) -> Ceilings:
    import torch

    a, b = (torch.randn(_GPU_GEMM, _GPU_GEMM, dtype=torch.float16, device="cuda") for _ in range(2))
    c = torch.empty_like(a)
    source = torch.ones(_GPU_COPY_BYTES // 4, device="cuda")
    target = torch.empty_like(source)

    def waited(function: Callable[[], object]) -> Callable[[], object]:
        def call() -> None:
            function()
            torch.cuda.synchronize()

        return call

    product = _fastest(waited(lambda: torch.mm(a, b, out=c)), rounds)
    copy = _fastest(waited(lambda: target.copy_(source)), rounds)
    return Ceilings(2 * _GPU_GEMM**3 / product, 2 * _GPU_COPY_BYTES / copy)


def _fastest(function: Callable[[], object], rounds: int) -> float:
    function()
    seconds = []
    for _ in range(rounds):
        start = time.perf_counter()
        function()
        seconds.append(time.perf_counter() - start)
    return min(seconds)
