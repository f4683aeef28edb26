"""attention beside PyTorch's scaled_dot_product_attention at the shapes of Stable Diffusion and of a VAE.

``python benchmarks/bench_attention.py [--threads N] [--rounds N]``

Each row is verified against the reference in float64 first. GFLOP/s counts the two matrix products alone,
4·B·H·N·M·d; "of sgemm" is their share of PyTorch's large matrix product in the same turns, which is
over 100 % where PyTorch's product leaves AVX-512 unused (MKL on AMD). With one thread, times are the thread's
CPU time.
"""

from __future__ import annotations

import argparse
import time

import numpy as np
import torch
from machine import alternate, describe, sgemm, verify

from fastdiff import _C
from fastdiff.kernels import attention, reference

# (batch, queries, keys, heads, head size)
SHAPES = [
    (1, 4096, 4096, 1, 64),
    (2, 4096, 4096, 1, 40),
    (2, 1024, 1024, 8, 80),
    (2, 256, 256, 8, 160),
    (2, 64, 64, 8, 160),
    (2, 4096, 77, 8, 40),
    (2, 1024, 77, 8, 80),
    (2, 77, 77, 12, 64),
    (1, 1024, 1024, 1, 512),
    (2, 256, 256, 4, 32),
]
# Relative L2 against float64: the tests' bound, and one for the baseline.
TOLERANCE = 1e-6
BASELINE_TOLERANCE = 1e-5


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=9)
    arguments = parser.parse_args()
    threads = arguments.threads
    torch.set_num_threads(threads)
    torch.set_grad_enabled(False)
    rng = np.random.default_rng(0)
    product, product_flop = sgemm()

    print(describe(threads))
    print(f"{'B, N, M, H, d':>24} {'what':>9} {'ms':>9} {'GFLOP/s':>8} {'of sgemm':>9} {'PyTorch /':>10}")
    for batch, n, m, heads, size in SHAPES:
        width = heads * size
        query, key, value = (
            rng.standard_normal((batch, length, width)).astype(np.float32) for length in (n, m, m)
        )
        out = np.empty_like(query)
        scale = size**-0.5
        tensors = [torch.from_numpy(x) for x in (query, key, value)]
        wanted = reference.attention(*(x.double() for x in tensors), heads, scale)

        def run(isa, query=query, key=key, value=value, heads=heads, scale=scale, out=out):
            return lambda: attention(query, key, value, heads, scale, out=out, threads=threads, isa=isa)

        functions = {}
        for isa in _C.available_isas():
            functions[isa] = run(isa)
            out.fill(np.nan)
            functions[isa]()
            verify(out, wanted, TOLERANCE, f"{(batch, n, m, heads, size)} on {isa}")

        def eager(tensors=tensors, heads=heads, scale=scale):
            split = (x.unflatten(2, (heads, -1)).transpose(1, 2) for x in tensors)
            y = torch.nn.functional.scaled_dot_product_attention(*split, scale=scale)
            return y.transpose(1, 2).flatten(2)

        verify(eager().numpy(), wanted, BASELINE_TOLERANCE, "PyTorch")
        seconds = alternate(
            {**functions, "PyTorch": eager, "sgemm": product},
            rounds=arguments.rounds,
            clock=time.thread_time if threads == 1 else time.perf_counter,
        )
        peak = product_flop / seconds.pop("sgemm")
        flop = 4 * batch * n * m * width
        for name, value_ in seconds.items():
            print(
                f"{f'{batch}, {n}, {m}, {heads}, {size}':>24} {name:>9} {value_ * 1e3:9.3f} "
                f"{flop / value_ / 1e9:8.1f} {flop / value_ / peak:9.0%} {seconds['PyTorch'] / value_:9.2f}x"
            )


if __name__ == "__main__":
    main()
