"""conv2d's algorithms beside PyTorch's convolution (channels last) at the shapes of Stable Diffusion.

``python benchmarks/bench_conv2d.py [--threads N] [--rounds N]``
``python benchmarks/bench_conv2d.py --device cuda [--json FILE]``: the Triton kernel in fp16 with bias and
residual, its three first tilings, beside cuDNN's convolution and PyTorch's addition

Each row is verified against the reference in float64 first. GFLOP/s counts what a direct convolution does,
whatever an algorithm saves of it, so Winograd's may be over the peak; "of sgemm" is the share of
PyTorch's large matrix product in the same turns. Weights stay in the caches where they fit. With one thread,
times are the thread's CPU time.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
import torch
from machine import alternate, describe, sgemm, verify

from fastdiff.kernels import conv2d, pack_conv2d, reference
from fastdiff.kernels.conv2d import ALGORITHMS

# batch, side, in, out, upsample
SHAPES = [
    (2, 64, 320, 320, 1),
    (2, 32, 960, 320, 1),
    (2, 32, 640, 640, 1),
    (2, 16, 1280, 1280, 1),
    (2, 8, 1280, 1280, 2),
    (2, 8, 1280, 1280, 1),
    (2, 4, 2560, 1280, 1),
    (2, 32, 4, 320, 1),
    (2, 32, 320, 4, 1),
    (1, 128, 256, 256, 1),
    (2, 16, 96, 96, 1),
    (2, 8, 160, 160, 1),
]
TOLERANCE = 5e-6
BASELINE_TOLERANCE = 1e-5
PADDING = (1, 1, 1, 1)
# SD 1.5 at 512² and SDXL at 1024² with guidance; a VAE's decoder at 1024²
GPU_SHAPES = [
    *((2, 64, 4, 320, 1), (2, 64, 320, 320, 1), (2, 64, 960, 320, 1), (2, 64, 320, 4, 1)),
    *((2, 32, 640, 640, 1), (2, 32, 640, 640, 2), (2, 16, 1280, 1280, 1), (2, 8, 2560, 1280, 1)),
    *((2, 128, 320, 320, 1), (2, 64, 640, 640, 1), (2, 32, 1280, 1280, 1), (2, 32, 2560, 1280, 1)),
    *((1, 128, 512, 512, 1), (1, 256, 512, 512, 2), (1, 512, 512, 256, 1), (1, 1024, 128, 128, 1)),
    (1, 1024, 128, 3, 1),
]
GPU_TOLERANCE = 5e-4


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

    from fastdiff.kernels.triton.conv2d import configs, pack_weight
    from fastdiff.kernels.triton.conv2d import conv2d as fused
    from fastdiff.kernels.triton.launch import architecture

    gpu.describe_gpu()  # exits where there is no GPU
    torch.manual_seed(0)
    torch.backends.cudnn.benchmark = True
    gpu.header()
    rows = []
    for batch, side, inner, outer, up in GPU_SHAPES:
        pixels = batch * (side * up) ** 2

        def make(batch=batch, side=side, inner=inner, outer=outer, up=up):
            x = torch.randn(batch, side, side, inner, device="cuda")
            weight = torch.randn(outer, inner, 3, 3, device="cuda") / (9 * inner) ** 0.5
            bias = torch.randn(outer, device="cuda")
            residual = torch.randn(batch, side * up, side * up, outer, device="cuda")
            return x.half(), pack_weight(weight.half()), bias.half(), residual.half()

        def run(config, up=up):
            return lambda x, weight, bias, residual: fused(
                x, weight, bias, None, residual, 1, PADDING, up, config=config
            )

        def eager(x, weight, bias, residual, up=up):
            picture = x.permute(0, 3, 1, 2)  # the same memory, as PyTorch sees it
            if up > 1:
                picture = torch.nn.functional.interpolate(picture, scale_factor=up, mode="nearest")
            y = torch.nn.functional.conv2d(picture, weight, bias, padding=1)
            return y.permute(0, 2, 3, 1) + residual

        inputs = gpu.rotation(make)
        tilings = configs(pixels, inner, outer, 9 * inner, architecture(inputs[0][0]), torch.float16)
        double = [value.double() for value in inputs[0]]
        moved = sum(value.numel() for value in inputs[0]) + pixels * outer
        rows += gpu.compare(
            f"{batch}, {side}, {inner}, {outer}" + (" up" if up > 1 else ""),
            {**{f"Triton {i}": run(config) for i, config in enumerate(tilings[:3])}, "cuDNN": eager},
            inputs,
            reference.conv2d(*double[:3], None, double[3], 1, PADDING, up),
            GPU_TOLERANCE,
            flop=2 * 9 * pixels * inner * outer,
            moved=2 * moved,
            peers=["cuDNN"],
        )
    gpu.save(json, rows)


def on_cpu(threads: int, rounds: int) -> None:
    torch.set_num_threads(threads)
    rng = np.random.default_rng(0)
    product, product_flop = sgemm()

    print(describe(threads))
    print(f"{'B, side, in, out':>24} {'what':>10} {'ms':>9} {'GFLOP/s':>8} {'of sgemm':>9} {'PyTorch /':>10}")
    for batch, side, inner, outer, up in SHAPES:
        x, bias = (
            rng.standard_normal(shape).astype(np.float32) for shape in ((batch, side, side, inner), (outer,))
        )
        weight = (rng.standard_normal((outer, inner, 3, 3)) / (9 * inner) ** 0.5).astype(np.float32)
        tensors = [torch.from_numpy(array) for array in (x, weight, bias)]
        wanted = reference.conv2d(*(t.double() for t in tensors), None, None, 1, PADDING, up)
        out = np.empty(tuple(wanted.shape), np.float32)
        label = f"{batch}, {side}, {inner}, {outer}" + (" up" if up > 1 else "")

        def run(algorithm, x=x, weight=weight, bias=bias, up=up, out=out):
            packed = pack_conv2d(weight, algorithm)
            return lambda: conv2d(x, packed, bias, padding=PADDING, upsample=up, out=out, threads=threads)

        functions = {}
        for algorithm in ALGORITHMS:
            functions[algorithm] = run(algorithm)
            out.fill(np.nan)
            functions[algorithm]()
            verify(out, wanted, TOLERANCE, f"{label} {algorithm}")

        picture = tensors[0].permute(0, 3, 1, 2)  # the same memory, as PyTorch sees it
        kernel = tensors[1].contiguous(memory_format=torch.channels_last)

        def eager(picture=picture, kernel=kernel, bias=tensors[2], up=up):
            if up > 1:
                picture = torch.nn.functional.interpolate(picture, scale_factor=up, mode="nearest")
            return torch.nn.functional.conv2d(picture, kernel, bias, padding=1)

        verify(eager().permute(0, 2, 3, 1).numpy(), wanted, BASELINE_TOLERANCE, "PyTorch")
        seconds = alternate(
            {**functions, "PyTorch": eager, "sgemm": product},
            rounds=rounds,
            clock=time.thread_time if threads == 1 else time.perf_counter,
        )
        peak = product_flop / seconds.pop("sgemm")
        flop = 2 * 9 * out.size * inner
        for name, value in seconds.items():
            print(
                f"{label:>24} {name:>10} {value * 1e3:9.3f} {flop / value / 1e9:8.1f} "
                f"{flop / value / peak:9.0%} {seconds['PyTorch'] / value:9.2f}x"
            )


if __name__ == "__main__":
    main()
