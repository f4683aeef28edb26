"""attention beside PyTorch's scaled_dot_product_attention at the shapes of Stable Diffusion and of a VAE.

``python benchmarks/bench_attention.py [--threads N] [--rounds N]``
``python benchmarks/bench_attention.py --device cuda [--json FILE]``: the Triton kernel in fp16, each of its
tilings, beside PyTorch's flash, cuDNN and memory-efficient kernels

Each row is verified against the reference in float64 first. GFLOP/s counts the two matrix products alone,
4·B·H·N·M·d; "of sgemm" is their share of PyTorch's large matrix product in the same turns, which is
over 100 % where PyTorch's product leaves AVX-512 unused (MKL on AMD). With one thread, times are the thread's
CPU time.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

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
# With guidance: SD 1.5 at 512² by level, SDXL at 1024², both with a prompt; CLIP; the VAE at 512² and 1024².
GPU_SHAPES = [
    (2, 4096, 4096, 8, 40),
    (2, 1024, 1024, 8, 80),
    (2, 256, 256, 8, 160),
    (2, 64, 64, 8, 160),
    (2, 4096, 77, 8, 40),
    (2, 1024, 77, 8, 80),
    (2, 256, 77, 8, 160),
    (2, 4096, 4096, 10, 64),
    (2, 1024, 1024, 20, 64),
    (2, 4096, 77, 10, 64),
    (2, 1024, 77, 20, 64),
    (2, 77, 77, 12, 64),
    (1, 4096, 4096, 1, 512),
    (1, 16384, 16384, 1, 512),
]
GPU_TOLERANCE = 5e-4
# Relative L2 against float64: the tests' bound, and one for the baseline.
TOLERANCE = 1e-6
BASELINE_TOLERANCE = 1e-5


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--json", type=Path, help="with --device cuda: write the rows there")
    arguments = parser.parse_args()
    torch.set_grad_enabled(False)
    if arguments.device == "cuda":
        on_gpu(arguments.json)
    else:
        on_cpu(arguments.threads, arguments.rounds)


def on_gpu(json: Path | None) -> None:
    import gpu
    from torch.nn.attention import SDPBackend, sdpa_kernel

    from fastdiff.kernels.cuda import attention as cuda
    from fastdiff.kernels.triton.attention import attention, configs
    from fastdiff.kernels.triton.launch import architecture

    backends = {
        "cuDNN": SDPBackend.CUDNN_ATTENTION,
        "efficient": SDPBackend.EFFICIENT_ATTENTION,
        "flash": SDPBackend.FLASH_ATTENTION,
    }
    gpu.describe_gpu()  # exits where there is no GPU
    torch.manual_seed(0)
    gpu.header()
    rows = []
    for batch, n, m, heads, size in GPU_SHAPES:
        width, scale = heads * size, size**-0.5

        def make(batch=batch, n=n, m=m, width=width):
            return tuple(torch.randn(batch, x, width, device="cuda").half() for x in (n, m, m))

        def triton(config, heads=heads, scale=scale):
            return lambda q, k, v: attention(q, k, v, heads, scale, config=config)

        def own(rows, heads=heads, scale=scale):
            return lambda q, k, v: cuda.attention(q, k, v, heads, scale, config=rows)

        def peer(backend, heads=heads, scale=scale):
            def run(*tensors):
                split = (x.unflatten(2, (heads, -1)).transpose(1, 2) for x in tensors)
                with sdpa_kernel(backend):
                    y = torch.nn.functional.scaled_dot_product_attention(*split, scale=scale)
                return y.transpose(1, 2).flatten(2)

            return run

        inputs = gpu.rotation(make)
        tilings = configs(size, size, n, m, torch.float16, architecture(inputs[0][0]))
        functions = {f"Triton {i}": triton(config) for i, config in enumerate(tilings)}
        functions |= {
            f"CUDA C++ {rows}": own(rows)
            for rows in cuda.TILINGS.get(size, ())  # the head sizes that it is compiled for
        }
        functions |= {name: peer(backend) for name, backend in backends.items()}
        wanted = reference.attention(*(x.double() for x in inputs[0]), heads, scale)
        rows += gpu.compare(
            f"{batch}, {n}, {m}, {heads}, {size}",
            functions,
            inputs,
            wanted,
            GPU_TOLERANCE,
            flop=4 * batch * n * m * width,
            moved=4 * batch * (n + m) * width,
            peers=tuple(backends),
        )
    gpu.save(json, rows)


def on_cpu(threads: int, rounds: int) -> None:
    torch.set_num_threads(threads)
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
            rounds=rounds,
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
