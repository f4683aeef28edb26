"""What this machine can do, and how benchmarks time: every figure is a median beside its baseline.

``python benchmarks/machine.py`` prints the machine's name and its measured peaks.
"""

from __future__ import annotations

import platform
import statistics
import subprocess
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from fastdiff import _C

__all__ = ["Machine", "alternate", "copy_gbps", "describe", "sgemm", "sgemm_gflops", "verify"]


@dataclass(frozen=True)
class Machine:
    """Names for a results table."""

    cpu: str
    threads: int
    isa: str
    commit: str
    torch: str

    def __str__(self) -> str:
        return (
            f"{self.cpu}, {self.threads} thread{'s' if self.threads != 1 else ''}, "
            f"fastdiff kernels {self.isa}, commit {self.commit}, torch {self.torch}"
        )


def cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def commit() -> str:
    """Short hash of the checkout, with "+" when files differ from it; "unknown" outside a checkout."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty=+", "--exclude=*"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def describe(threads: int) -> Machine:
    return Machine(cpu_name(), threads, _C.isa(), commit(), torch.__version__)


def alternate(
    functions: Mapping[str, Callable[[], object]],
    *,
    rounds: int = 31,
    sample_seconds: float = 2e-3,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, float]:
    """Median seconds per call of each function, measured in turns.

    Turns, so that a change of clock or a busy neighbour meets all of them; each turn repeats a function for
    about ``sample_seconds``, so that the timer does not show. ``clock=time.thread_time`` counts the calling
    thread's CPU time instead of the wall's: right for functions of one thread, on a machine that others use
    too.
    """
    calls = {}
    for name, function in functions.items():
        function()
        start = clock()
        function()
        calls[name] = max(1, round(sample_seconds / max(clock() - start, 1e-9)))
    samples: dict[str, list[float]] = {name: [] for name in functions}
    for _ in range(rounds):
        for name, function in functions.items():
            start = clock()
            for _ in range(calls[name]):
                function()
            samples[name].append((clock() - start) / calls[name])
    return {name: statistics.median(values) for name, values in samples.items()}


def copier(working_set: int) -> Callable[[], object]:
    """Return a copy that reads half of ``working_set`` bytes and writes the other half: one thread's memory
    peak for arrays that are this large, and therefore in that cache.
    """
    source = np.ones(max(working_set // 8, 1), np.float32)
    target = np.empty_like(source)
    return lambda: np.copyto(target, source)


def copy_gbps(working_set: int) -> float:
    """GB/s that a copy moves, reads and writes counted."""
    seconds = alternate({"copy": copier(working_set)}, clock=time.thread_time)["copy"]
    return working_set / seconds / 1e9


def sgemm(size: int = 1536) -> tuple[Callable[[], object], int]:
    """PyTorch's float32 product of two square matrices, and its floating-point operations per call."""
    a, b, c = torch.rand(size, size), torch.rand(size, size), torch.empty(size, size)
    return lambda: torch.mm(a, b, out=c), 2 * size**3


def sgemm_gflops(size: int = 1536) -> float:
    """GFLOP/s of :func:`sgemm` with PyTorch's thread count."""
    product, flop = sgemm(size)
    clock = time.thread_time if torch.get_num_threads() == 1 else time.perf_counter
    return flop / alternate({"mm": product}, rounds=9, clock=clock)["mm"] / 1e9


def verify(found: np.ndarray, wanted: torch.Tensor, tolerance: float, label: str) -> None:
    """Exit without figures when the relative L2 error against ``wanted``, float64, is over ``tolerance``."""
    error = float((torch.from_numpy(found).double() - wanted).norm() / wanted.norm())
    if not error <= tolerance:
        raise SystemExit(f"{label}: relative L2 {error:.2e}, allowed {tolerance:.0e}; no figures")


def main() -> None:
    print(describe(torch.get_num_threads()))
    print(f"sgemm {sgemm_gflops():.0f} GFLOP/s with {torch.get_num_threads()} thread(s)")
    for label, size in (("32 KB", 1 << 15), ("1 MB", 1 << 20), ("16 MB", 1 << 24), ("512 MB", 1 << 29)):
        print(f"copy within {label}: {copy_gbps(size):.1f} GB/s with one thread")


if __name__ == "__main__":
    main()
