"""linear beside PyTorch's linear at the shapes of Stable Diffusion's transformer blocks.

``python benchmarks/bench_linear.py [--threads N] [--rounds N]``
``python benchmarks/bench_linear.py --device cuda [--json FILE]``: the Triton kernel in fp16 with bias, and
with a residual where there is no activation, its three first tilings, beside PyTorch's linear and what it
needs besides

Each row is verified against the reference in float64 first. "of sgemm" is the share of PyTorch's large matrix
product in the same turns; PyTorch's linear packs no weights, and adds the activation in a pass of its own.
With one thread, times are the thread's CPU time.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
import torch
from machine import alternate, describe, sgemm, verify

from fastdiff import _C
from fastdiff.kernels import linear, pack_linear, reference

# rows, inputs, outputs, activation
SHAPES = [
    (8192, 320, 960, "none"),
    (8192, 320, 2560, "geglu"),
    (2048, 640, 640, "none"),
    (512, 1280, 10240, "geglu"),
    (512, 5120, 1280, "none"),
    (128, 1280, 1280, "none"),
    (154, 768, 640, "none"),
    (2, 320, 1280, "silu"),
    (512, 96, 96, "none"),
]
TOLERANCE = 2e-6
BASELINE_TOLERANCE = 1e-5
# SD 1.5 at 512² and SDXL at 1024² with guidance; a VAE's attention at 1024²; a prompt
GPU_SHAPES = [
    *((8192, 320, out, "none") for out in (320, 960)),
    *((8192, 320, 1280, "geglu"), (8192, 1280, 320, "none")),
    *((2048, 640, 2560, "geglu"), (512, 1280, 5120, "geglu"), (128, 1280, 1280, "none")),
    *((8192, 640, 2560, "geglu"), (8192, 2560, 640, "none"), (2048, 1280, 5120, "geglu")),
    *((2048, 1280, 1280, "none"), (2048, 5120, 1280, "none"), (16384, 512, 512, "none")),
    *((154, 768, 640, "none"), (154, 2048, 2560, "none"), (2, 320, 1280, "silu")),
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

    from fastdiff.kernels.triton.launch import architecture
    from fastdiff.kernels.triton.linear import configs
    from fastdiff.kernels.triton.linear import linear as fused

    gpu.describe_gpu()  # exits where there is no GPU
    torch.manual_seed(0)
    gpu.header()
    rows = []
    for count, inner, outer, activation in GPU_SHAPES:
        wide = 2 * outer if activation == "geglu" else outer

        def make(count=count, inner=inner, outer=outer, wide=wide, plain=activation == "none"):
            shapes = ((count, inner), (wide, inner), (wide,), *(((count, outer),) if plain else ()))
            x, weight, *rest = (torch.randn(shape, device="cuda") for shape in shapes)
            return tuple(value.half() for value in (x, weight / inner**0.5, *rest))

        def run(config, activation=activation):
            def call(x, weight, bias, residual=None):
                return fused(x, weight, bias, residual, activation, config=config)

            return call

        def eager(x, weight, bias, residual=None, activation=activation):
            y = torch.nn.functional.linear(x, weight, bias)
            if activation == "geglu":
                a, b = y.chunk(2, -1)
                return a * torch.nn.functional.gelu(b)
            return torch.nn.functional.silu(y) if residual is None else y + residual

        inputs = gpu.rotation(make)
        tilings = configs(count, inner, outer, activation, architecture(inputs[0][0]), torch.float16)
        double = [value.double() for value in inputs[0]]
        added = double[3] if activation == "none" else None
        moved = sum(value.numel() for value in inputs[0]) + count * outer
        rows += gpu.compare(
            f"{count}, {inner}, {outer} {activation}",
            {**{f"Triton {i}": run(config) for i, config in enumerate(tilings[:3])}, "PyTorch": eager},
            inputs,
            reference.linear(*double[:3], added, activation),
            GPU_TOLERANCE,
            flop=2 * count * inner * wide,
            moved=2 * moved,
            peers=["PyTorch"],
        )
    gpu.save(json, rows)


def on_cpu(threads: int, rounds: int) -> None:
    torch.set_num_threads(threads)
    rng = np.random.default_rng(0)
    product, product_flop = sgemm()

    print(describe(threads))
    print(f"{'rows, in, out':>28} {'what':>9} {'ms':>9} {'GFLOP/s':>8} {'of sgemm':>9} {'PyTorch /':>10}")
    for rows, inputs, outputs, activation in SHAPES:
        x, weight, bias = (
            rng.standard_normal(shape).astype(np.float32)
            for shape in ((rows, inputs), (outputs, inputs), (outputs,))
        )
        tensors = [torch.from_numpy(array) for array in (x, weight, bias)]
        wanted = reference.linear(*(tensor.double() for tensor in tensors), None, activation)
        out = np.empty(tuple(wanted.shape), np.float32)
        label = f"{rows}, {inputs}, {outputs} {activation}"

        def run(isa, precision, x=x, weight=weight, bias=bias, activation=activation, out=out):
            packed = pack_linear(weight, precision)
            return lambda: linear(x, packed, bias, activation=activation, out=out, threads=threads, isa=isa)

        functions = {}
        for isa in _C.available_isas():
            functions[isa] = run(isa, "fp32")
            out.fill(np.nan)
            functions[isa]()
            verify(out, wanted, TOLERANCE, f"{label} on {isa}")
        functions["fp16"] = run(None, "fp16")

        def eager(tensors=tensors, activation=activation):
            y = torch.nn.functional.linear(*tensors)
            if activation == "geglu":
                a, b = y.chunk(2, -1)
                return a * torch.nn.functional.gelu(b)
            return torch.nn.functional.silu(y) if activation == "silu" else y

        verify(eager().numpy(), wanted, BASELINE_TOLERANCE, "PyTorch")
        seconds = alternate(
            {**functions, "PyTorch": eager, "sgemm": product},
            rounds=rounds,
            clock=time.thread_time if threads == 1 else time.perf_counter,
        )
        peak = product_flop / seconds.pop("sgemm")
        flop = 2 * rows * inputs * outputs
        for name, value in seconds.items():
            print(
                f"{label:>28} {name:>9} {value * 1e3:9.3f} {flop / value / 1e9:8.1f} "
                f"{flop / value / peak:9.0%} {seconds['PyTorch'] / value:9.2f}x"
            )


if __name__ == "__main__":
    main()
