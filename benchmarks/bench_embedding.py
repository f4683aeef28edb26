"""embedding beside PyTorch eager at the sizes of text encoders.

``python benchmarks/bench_embedding.py [--threads N] [--rounds N]``

Each row is verified first. GB/s counts the rows read once and y written once;
"of copy" is the share of a plain copy by one thread that moves as much, from the same turns. With one thread,
times are the thread's CPU time.
"""

from __future__ import annotations

import argparse
import functools
import time

import numpy as np
import torch
from machine import alternate, copier, describe

from fastdiff import _C
from fastdiff.kernels import embedding

# ids, rows of the table, channels, dtype of the table
CASES = [(154, 49408, 768, "float32"), (154, 49408, 768, "float16"), (154, 49408, 1280, "float32")]
TOLERANCE = 0.0


def prepare(rng, threads, count, rows, channels, dtype):
    table = rng.standard_normal((rows, channels), np.float32).astype(dtype)
    ids = rng.integers(0, rows, count)
    tensor, indices = torch.from_numpy(table), torch.from_numpy(ids)
    out = np.empty((count, channels), np.float32)

    def ours(isa):
        return embedding(ids, table, out=out, threads=threads, isa=isa)

    def eager():
        return torch.nn.functional.embedding(indices, tensor).float()

    return ours, eager, table[ids].astype(np.float64), count * channels * table.itemsize + out.nbytes


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=31)
    arguments = parser.parse_args()
    threads = arguments.threads
    torch.set_num_threads(threads)
    torch.set_grad_enabled(False)
    rng = np.random.default_rng(0)

    print(describe(threads))
    print(f"{'case':>28} {'what':>9} {'ms':>8} {'GB/s':>7} {'of copy':>8} {'PyTorch /':>10}")
    for case in CASES:
        ours, eager, wanted, moved = prepare(rng, threads, *case)
        functions = {isa: functools.partial(ours, isa) for isa in _C.available_isas()}
        for name, function in {**functions, "PyTorch": eager}.items():
            error = np.abs(np.asarray(function(), np.float64) - wanted).max()
            if not error <= TOLERANCE:
                raise SystemExit(f"{case} on {name}: off by {error:.2e}, allowed {TOLERANCE:.0e}; no figures")
        seconds = alternate(
            {**functions, "PyTorch": eager, "copy": copier(moved)},
            rounds=arguments.rounds,
            clock=time.thread_time if threads == 1 else time.perf_counter,
        )
        label = ", ".join(map(str, case))
        for name, value in seconds.items():
            print(
                f"{label:>28} {name:>9} {value * 1e3:8.3f} {moved / value / 1e9:7.1f} "
                f"{seconds['copy'] / value:8.0%} {seconds['PyTorch'] / value:9.2f}x"
            )


if __name__ == "__main__":
    main()
