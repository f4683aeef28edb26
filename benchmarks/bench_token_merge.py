"""token_merge beside PyTorch eager at the sizes of SD 1.5.

``python benchmarks/bench_token_merge.py [--threads N] [--rounds N]``

Each row is verified first. GB/s counts x read once and the result written once; "of copy" is the share of a
plain copy by one thread that moves as much, from the same turns. With one thread, times are the thread's CPU
time.
"""

from __future__ import annotations

import argparse
import functools
import time

import numpy as np
import torch
from machine import alternate, copier, describe

from fastdiff import _C
from fastdiff.kernels import reference, token_merge

# pictures, tokens, channels; half of the tokens are merged
CASES = [(2, 1024, 320), (2, 4096, 320), (2, 4096, 640)]
TOLERANCE = 1e-5


def prepare(rng, threads, batch, tokens, channels):
    rows = tokens // 2
    plan = np.concatenate([np.arange(rows)[None], rng.integers(0, rows, (batch, rows))[:1]], 1)
    plan = np.ascontiguousarray(np.repeat(plan, batch, 0))
    x = rng.standard_normal((batch, tokens, channels), np.float32)
    out = np.empty((batch, rows, channels), np.float32)
    tensor, index = torch.from_numpy(x), torch.from_numpy(plan)

    def ours(isa):
        return token_merge(x, plan, rows, out=out, threads=threads, isa=isa)

    def eager():
        return reference.token_merge(tensor, index, 1, 2)

    return ours, eager, x.nbytes + out.nbytes


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
    print(f"{'case':>18} {'what':>9} {'ms':>8} {'GB/s':>7} {'of copy':>8} {'PyTorch /':>10}")
    for case in CASES:
        ours, eager, moved = prepare(rng, threads, *case)
        functions = {isa: functools.partial(ours, isa) for isa in _C.available_isas()}
        wanted = np.asarray(eager(), np.float64)
        for name, function in functions.items():
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
                f"{label:>18} {name:>9} {value * 1e3:8.3f} {moved / value / 1e9:7.1f} "
                f"{seconds['copy'] / value:8.0%} {seconds['PyTorch'] / value:9.2f}x"
            )


if __name__ == "__main__":
    main()
