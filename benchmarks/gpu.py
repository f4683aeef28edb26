"""How the benchmarks of GPU kernels time and compare; ``python benchmarks/gpu.py`` prints the GPU's ceilings.

A function is timed as engines run it: captured in a CUDA graph, here one that calls it once with each of
several sets of arguments, together larger than the L2 cache, so that every call reads device memory. Every
function is verified before its time is printed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from machine import commit
from torch import Tensor

from fastdiff.bench.report import write_json

__all__ = [
    "Ceilings",
    "Row",
    "ceilings",
    "compare",
    "describe_gpu",
    "header",
    "milliseconds",
    "rotation",
    "save",
]


@dataclass(frozen=True)
class Ceilings:
    """What this GPU reaches: a product of two 8192² fp16 matrices; a copy, with reads and writes counted."""

    tflops: float
    gbps: float


@dataclass(frozen=True)
class Row:
    """One function at one case: ``share`` of the nearer ceiling, ``speedup`` over the baseline."""

    case: str
    name: str
    ms: float
    tflops: float
    gbps: float
    share: float
    speedup: float
    error: float


def describe_gpu() -> str:
    """The GPU and the versions that a table of results names; exits where there is no GPU."""
    if not torch.cuda.is_available():
        raise SystemExit("GPU: found none that PyTorch can use, wanted one with CUDA; see --help")
    import triton

    name = torch.cuda.get_device_name()
    return (
        f"{name}, torch {torch.__version__}, CUDA {torch.version.cuda}, triton {triton.__version__}, "
        f"commit {commit()}"
    )


def milliseconds(function: Callable[..., object], arguments: Sequence[tuple[Any, ...]]) -> float:
    """Median milliseconds per call, from CUDA events around replays of a graph that calls it with each."""
    from triton.testing import do_bench

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):  # compiles and fills caches outside the capture
        for _ in range(2):
            function(*arguments[0])
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for each in arguments:
            function(*each)
    median = float(do_bench(graph.replay, warmup=20, rep=100, return_mode="median"))
    return median / len(arguments)


def rotation(make: Callable[[], tuple[Any, ...]], most: int = 64) -> list[tuple[Any, ...]]:
    """Results of ``make`` whose tensors are together three times the L2 cache, at most ``most`` of them."""
    first = make()
    size = sum(a.numel() * a.element_size() for a in first if isinstance(a, Tensor))
    cached = torch.cuda.get_device_properties(0).L2_cache_size
    count = min(most, max(2, math.ceil(3 * cached / max(size, 1))))
    return [first, *(make() for _ in range(count - 1))]


@cache
def ceilings() -> Ceilings:
    """Measured once per process."""
    size = 8192
    a, b, c = (torch.randn(size, size, device="cuda", dtype=torch.float16) for _ in range(3))
    product = milliseconds(lambda: torch.mm(a, b, out=c), [()])
    source, target = (torch.empty(1 << 29, device="cuda", dtype=torch.uint8) for _ in range(2))
    copy = milliseconds(lambda: target.copy_(source), [()])
    return Ceilings(2 * size**3 / product / 1e9, 2 * source.numel() / copy / 1e6)


def header() -> None:
    """Print the GPU and the columns of :func:`compare`."""
    limit = ceilings()
    print(describe_gpu())
    print(f"fp16 product {limit.tflops:.0f} TFLOP/s, copy {limit.gbps:.0f} GB/s")
    print(
        f"{'case':>32} {'what':>16} {'ms':>9} {'TFLOP/s':>8} {'GB/s':>7} {'of limit':>8} {'speed-up':>8} "
        f"{'error':>8}"
    )


def compare(
    case: str,
    functions: Mapping[str, Callable[..., Tensor | tuple[Tensor, ...]]],
    arguments: Sequence[tuple[Any, ...]],
    wanted: Tensor | tuple[Tensor, ...],
    tolerance: float,
    *,
    flop: float = 0.0,
    moved: float = 0.0,
    peers: Sequence[str] = (),
) -> list[Row]:
    """Verify, time and print functions of the same arguments.

    ``wanted``: the reference in float64 for the first arguments; ``tolerance``: relative L2, over which the
    program exits without figures; ``flop``, ``moved``: operations and bytes that the work needs. Speed-ups
    are over the last function. ``peers``, other libraries' functions, may refuse a shape and may have four
    times the error; a line says so where they get no figures.
    """
    rows: dict[str, Row] = {}
    limit = ceilings()
    best = max(flop / limit.tflops / 1e9, moved / limit.gbps / 1e6)  # milliseconds
    for name, function in functions.items():
        try:
            error = _error(function(*arguments[0]), wanted)
        except RuntimeError as refusal:
            if name not in peers:
                raise
            print(f"{case:>32} {name:>16} refused: {str(refusal).splitlines()[0][:60]}")
            continue
        allowed = tolerance * (4 if name in peers else 1)
        if not error <= allowed:
            message = f"{case}, {name}: relative L2 {error:.2e}, allowed {allowed:.0e}; no figures"
            if name not in peers:
                raise SystemExit(message)
            print(message)
            continue
        ms = milliseconds(function, arguments)
        rows[name] = Row(case, name, ms, flop / ms / 1e9, moved / ms / 1e6, best / ms, 0.0, error)
    if not rows:
        return []
    baseline = list(rows.values())[-1].ms
    finished = [Row(**{**asdict(row), "speedup": baseline / row.ms}) for row in rows.values()]
    for row in finished:
        print(
            f"{row.case:>32} {row.name:>16} {row.ms:9.4f} {row.tflops:8.1f} {row.gbps:7.0f} {row.share:8.0%} "
            f"{row.speedup:7.2f}x {row.error:8.1e}"
        )
    return finished


def _error(found: Tensor | tuple[Tensor, ...], wanted: Tensor | tuple[Tensor, ...]) -> float:
    """The largest relative L2 error of the results."""
    pairs = zip(
        (found,) if isinstance(found, Tensor) else found,
        (wanted,) if isinstance(wanted, Tensor) else wanted,
        strict=True,
    )
    return max(float((f.double() - w).norm() / w.norm()) for f, w in pairs)


def save(path: Path | None, rows: Sequence[Row]) -> None:
    """Write rows with the GPU's name, versions and ceilings as JSON; nothing where ``path`` is None."""
    if path is None:
        return
    result = {"gpu": describe_gpu(), "ceilings": asdict(ceilings()), "rows": [asdict(row) for row in rows]}
    write_json(path, result)


def main() -> None:
    print(describe_gpu())
    print(ceilings())


if __name__ == "__main__":
    main()
