"""elementwise beside PyTorch eager: activations, a residual's addition and the broadcasts of a U-Net.

``python benchmarks/bench_elementwise.py [--threads N] [--rounds N]``

Each row is verified in float64 first. GB/s counts every input read once, a broadcast one at its own size, and
the output written once; "of copy" is the share of a plain copy by one thread that moves as much, from the
same turns. With one thread, times are the thread's CPU time.
"""

from __future__ import annotations

import argparse
import time

import numpy as np
import torch
from machine import alternate, copier, describe, verify

from fastdiff import _C
from fastdiff.kernels import elementwise

FUNCTIONS = {
    "silu": torch.nn.functional.silu,
    "gelu": torch.nn.functional.gelu,
    "sigmoid": torch.sigmoid,
    "add": torch.add,
    "multiply": torch.mul,
}
# function, a's shape, b's shape
CASES = [
    ("silu", (2, 1280), None),
    ("silu", (2, 4096, 320), None),
    ("gelu", (2, 4096, 1280), None),
    ("sigmoid", (2, 4096, 320), None),
    ("add", (2, 4096, 320), (2, 4096, 320)),
    ("add", (2, 4096, 320), (2, 1, 320)),
    ("multiply", (2, 4096, 320), (2, 4096, 1)),
    ("add", (2, 64, 1280), (2, 64, 1280)),
]
TOLERANCE = 5e-7


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
    print(f"{'case':>36} {'what':>9} {'ms':>8} {'GB/s':>7} {'of copy':>8} {'PyTorch /':>10}")
    for function, *shapes in CASES:
        inputs = [rng.standard_normal(s).astype(np.float32) for s in shapes if s is not None]
        tensors = [torch.from_numpy(x) for x in inputs]
        out = np.empty(shapes[0], np.float32)
        operation = FUNCTIONS[function]
        wanted = operation(*(x.double() for x in tensors))
        case = f"{function} " + " ".join(str(s).replace(" ", "") for s in shapes if s is not None)

        def run(isa, function=function, inputs=inputs, out=out):
            return lambda: elementwise(function, *inputs, out=out, threads=threads, isa=isa)

        functions = {}
        for isa in _C.available_isas():
            functions[isa] = run(isa)
            out.fill(np.nan)
            functions[isa]()
            verify(out, wanted, TOLERANCE, f"{case} on {isa}")

        def eager(operation=operation, tensors=tensors):
            return operation(*tensors)

        verify(eager().numpy(), wanted, TOLERANCE, "PyTorch")
        moved = out.nbytes + sum(x.nbytes for x in inputs)
        seconds = alternate(
            {**functions, "PyTorch": eager, "copy": copier(moved)},
            rounds=arguments.rounds,
            clock=time.thread_time if threads == 1 else time.perf_counter,
        )
        for name, value in seconds.items():
            print(
                f"{case:>36} {name:>9} {value * 1e3:8.3f} {moved / value / 1e9:7.1f} "
                f"{seconds['copy'] / value:8.0%} {seconds['PyTorch'] / value:9.2f}x"
            )


if __name__ == "__main__":
    main()
