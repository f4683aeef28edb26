"""upsample_nearest2d and avg_pool2d beside PyTorch eager on channels_last tensors.

``python benchmarks/bench_resample.py [--threads N] [--rounds N]``

Each row is verified first. GB/s counts x read once and y written once;
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
from fastdiff.kernels import avg_pool2d, upsample_nearest2d

# what, N, H, W, C
CASES = [
    ("upsample", 2, 32, 32, 640),
    ("upsample", 2, 8, 8, 1280),
    ("upsample", 1, 128, 128, 256),
    ("pool", 2, 64, 64, 320),
]
TOLERANCE = 1e-6


def prepare(rng, threads, what, *shape):
    x = rng.standard_normal(shape).astype(np.float32)
    tensor = torch.from_numpy(x).permute(0, 3, 1, 2)
    if what == "upsample":
        function, operation = upsample_nearest2d, torch.nn.functional.interpolate
        options = {"scale_factor": 2, "mode": "nearest"}
    else:
        function, operation, options = avg_pool2d, torch.nn.functional.avg_pool2d, {"kernel_size": 2}
    wanted = operation(tensor.double(), **options).permute(0, 2, 3, 1).numpy()
    out = np.empty(wanted.shape, np.float32)

    def ours(isa):
        return function(x, 2, out=out, threads=threads, isa=isa)

    def eager():
        return operation(tensor, **options).permute(0, 2, 3, 1)

    return ours, eager, wanted, x.nbytes + out.nbytes


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
