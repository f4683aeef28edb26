"""layer_norm beside PyTorch eager, at the shapes of Stable Diffusion's transformers and text encoder.

``python benchmarks/bench_layer_norm.py [--threads N] [--rounds N]``
``python benchmarks/bench_layer_norm.py --device cuda [--json FILE]``: the Triton kernel in fp16, which adds
the residual too, each of its tilings, beside PyTorch's addition and layer_norm

Each row is verified in float64 first. GB/s counts x read once and y written once; "of copy" is the share of a
plain copy by one thread of arrays of that size, from the same turns. With one thread, times are the thread's
CPU time.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
import torch
from machine import alternate, copier, describe, verify

from fastdiff import _C
from fastdiff.kernels import layer_norm, reference

# (rows, channels)
SHAPES = [(8192, 320), (2048, 640), (512, 1280), (128, 1280), (154, 768)]
TOLERANCE = 5e-7
# SD 1.5 at 512² and SDXL at 1024² with guidance; CLIP
GPU_SHAPES = [(8192, 320), (2048, 640), (512, 1280), (8192, 640), (2048, 1280), (154, 768)]
GPU_TOLERANCE = 5e-4


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=31)
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

    from fastdiff.kernels.triton.launch import architecture
    from fastdiff.kernels.triton.layer_norm import configs
    from fastdiff.kernels.triton.layer_norm import layer_norm as fused

    gpu.describe_gpu()  # exits where there is no GPU
    torch.manual_seed(0)
    gpu.header()
    rows = []
    for count, channels in GPU_SHAPES:

        def make(count=count, channels=channels):
            shapes = ((count, channels), (count, channels), (channels,), (channels,))
            return tuple(torch.randn(shape, device="cuda").half() for shape in shapes)

        def run(config):
            return lambda *tensors: fused(*tensors, config=config)

        def eager(x, residual, weight, bias):
            total = x + residual
            return total, torch.nn.functional.layer_norm(total, x.shape[-1:], weight, bias)

        inputs = gpu.rotation(make)
        tilings = configs(channels, architecture(inputs[0][0]))
        rows += gpu.compare(
            f"{count}, {channels}",
            {**{f"Triton {i}": run(config) for i, config in enumerate(tilings)}, "PyTorch": eager},
            inputs,
            reference.layer_norm(*(x.double() for x in inputs[0])),
            GPU_TOLERANCE,
            moved=4 * count * channels * 2,
            peers=["PyTorch"],
        )
    gpu.save(json, rows)


def on_cpu(threads: int, rounds: int) -> None:
    torch.set_num_threads(threads)
    rng = np.random.default_rng(0)

    print(describe(threads))
    print(f"{'rows, C':>12} {'what':>9} {'ms':>8} {'GB/s':>7} {'of copy':>8} {'PyTorch /':>10}")
    for rows, channels in SHAPES:
        x = rng.standard_normal((rows, channels)).astype(np.float32)
        weight, bias = (rng.standard_normal(channels).astype(np.float32) for _ in range(2))
        out = np.empty_like(x)
        tensors = [torch.from_numpy(a) for a in (x, weight, bias)]
        wanted = torch.nn.functional.layer_norm(
            tensors[0].double(), (channels,), tensors[1].double(), tensors[2].double()
        )

        def run(isa, x=x, weight=weight, bias=bias, out=out):
            return lambda: layer_norm(x, weight, bias, out=out, threads=threads, isa=isa)

        functions = {}
        for isa in _C.available_isas():
            functions[isa] = run(isa)
            out.fill(np.nan)
            functions[isa]()
            verify(out, wanted, TOLERANCE, f"{(rows, channels)} on {isa}")

        def eager(x=tensors[0], weight=tensors[1], bias=tensors[2]):
            return torch.nn.functional.layer_norm(x, x.shape[-1:], weight, bias)

        verify(eager().numpy(), wanted, TOLERANCE, "PyTorch")
        moved = 2 * x.nbytes
        seconds = alternate(
            {**functions, "PyTorch": eager, "copy": copier(moved)},
            rounds=rounds,
            clock=time.thread_time if threads == 1 else time.perf_counter,
        )
        for name, value in seconds.items():
            print(
                f"{f'{rows}, {channels}':>12} {name:>9} {value * 1e3:8.3f} {moved / value / 1e9:7.1f} "
                f"{seconds['copy'] / value:8.0%} {seconds['PyTorch'] / value:9.2f}x"
            )


if __name__ == "__main__":
    main()
