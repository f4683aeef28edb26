"""Benchmarks of kernels that move more bytes than they compute, beside PyTorch eager and a plain copy."""

from __future__ import annotations

import argparse
import functools
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from machine import alternate, copier, describe, verify

from fastdiff import _C

__all__ = ["compare"]


def compare(
    description: str | None, cases: Sequence[tuple[Any, ...]], prepare: Callable[..., Any], tolerance: float
) -> None:
    """Print milliseconds, GB/s, the share of a copy and PyTorch's time over ours, for each instruction set.

    ``prepare(rng, threads, *case)`` gives the kernel by instruction set, PyTorch's function, the result in
    float64, and how many bytes are moved. Exits without figures where the relative L2 error of a result is
    over ``tolerance``.
    """
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=31)
    arguments = parser.parse_args()
    threads = arguments.threads
    torch.set_num_threads(threads)
    torch.set_grad_enabled(False)
    rng = np.random.default_rng(0)

    print(describe(threads))
    print(f"{'case':>40} {'what':>9} {'ms':>8} {'GB/s':>7} {'of copy':>8} {'PyTorch /':>10}")
    for case in cases:
        ours, eager, wanted, moved = prepare(rng, threads, *case)
        functions = {isa: functools.partial(ours, isa) for isa in _C.available_isas()}
        for name, function in {**functions, "PyTorch": eager}.items():
            found = function()
            verify(np.asarray(found), torch.from_numpy(wanted), tolerance, f"{case} on {name}")
            if isinstance(found, np.ndarray):
                found.fill(np.nan)  # the next kernel has the same memory to write to
        seconds = alternate(
            {**functions, "PyTorch": eager, "copy": copier(moved)},
            rounds=arguments.rounds,
            clock=time.thread_time if threads == 1 else time.perf_counter,
        )
        label = ", ".join(str(part) for part in case if part is not None)
        for name, value in seconds.items():
            print(
                f"{label:>40} {name:>9} {value * 1e3:8.3f} {moved / value / 1e9:7.1f} "
                f"{seconds['copy'] / value:8.0%} {seconds['PyTorch'] / value:9.2f}x"
            )
