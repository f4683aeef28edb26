"""group_norm_silu beside PyTorch eager, at the shapes of Stable Diffusion's U-Net and VAE.

``python benchmarks/bench_group_norm_silu.py [--layout NHWC|NCHW] [--rounds N]``: one thread each
``python benchmarks/bench_group_norm_silu.py --device cuda [--json FILE]``: the Triton kernels in fp16, each
of their tilings, beside PyTorch on a channels-last tensor; then add_group_norm_silu, which adds bias, vector
and residual and keeps the sum, beside the same in PyTorch

Each row is verified against the reference in float64 first. GB/s counts x read once and y written once, the
least that any implementation moves; "of copy" is its share of a plain copy of the same arrays, from the same
turns. Times are the thread's CPU time.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from machine import alternate, copier, describe, verify

from fastdiff import _C
from fastdiff.kernels import group_norm_silu, reference

# (N, H, W, C), groups
SHAPES = [
    ((2, 64, 64, 320), 32),
    ((2, 32, 32, 640), 32),
    ((2, 16, 16, 1280), 32),
    ((2, 8, 8, 1280), 32),
    ((1, 256, 256, 128), 32),
    ((2, 16, 16, 96), 32),
]
# Relative L2 against float64: the tests' bound, and one for the baseline, whose statistics are in float32.
TOLERANCE = 5e-7
BASELINE_TOLERANCE = 1e-4
# With 32 groups: SD 1.5 at 512² and SDXL at 1024² with guidance; a VAE's decoder at 1024²
GPU_SHAPES = [
    *((2, side, side, c) for side, c in ((64, 320), (64, 960), (32, 640), (32, 1920), (16, 1280), (8, 2560))),
    *((2, side, side, c) for side, c in ((128, 320), (64, 1280), (32, 1280), (32, 1920))),
    *((1, side, side, c) for side, c in ((128, 512), (512, 512), (1024, 256), (1024, 128))),
]
GPU_TOLERANCE = 6e-4  # the sum is rounded to fp16 before the norm, and the result after it


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--layout", choices=["NHWC", "NCHW"], default="NHWC")
    parser.add_argument("--rounds", type=int, default=31)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--json", type=Path, help="with --device cuda: write the rows there")
    arguments = parser.parse_args()
    torch.set_grad_enabled(False)
    if arguments.device == "cuda":
        on_gpu(arguments.json)
    else:
        on_cpu(arguments.layout, arguments.rounds)


def on_gpu(json: Path | None) -> None:
    import gpu

    from fastdiff.kernels.cuda import group_norm_silu as cuda
    from fastdiff.kernels.triton.group_norm_silu import add_group_norm_silu, configs
    from fastdiff.kernels.triton.group_norm_silu import group_norm_silu as fused

    gpu.describe_gpu()  # exits where there is no GPU
    torch.manual_seed(0)
    gpu.header()

    def eager(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        y = torch.nn.functional.group_norm(x.permute(0, 3, 1, 2), 32, weight, bias, 1e-5)
        return torch.nn.functional.silu(y, inplace=True).permute(0, 2, 3, 1)

    def eager_sum(
        x: torch.Tensor, bias: torch.Tensor, vector: torch.Tensor, residual: torch.Tensor, *norm: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        total = x + (bias + vector)[:, None, None] + residual
        return total, eager(total, *norm)

    rows = []
    for n, h, w, c in GPU_SHAPES:
        shape = (n, h, w, c)
        tilings = configs(h * w, c, 32)

        def make(*shapes: tuple[int, ...]) -> Callable[[], tuple[torch.Tensor, ...]]:
            return lambda: tuple(torch.randn(each, device="cuda").half() for each in shapes)

        def run(config):
            return lambda *tensors: fused(*tensors, 32, config=config)

        def own(plan):
            return lambda *tensors: cuda.group_norm_silu(*tensors, 32, config=plan)

        def run_sum(config):
            return lambda *tensors: add_group_norm_silu(*tensors, 32, config=config)

        picture = n * h * w * c * 2
        for name, wrap, peer, inputs, wanted, pictures in (
            ("", run, eager, make(shape, (c,), (c,)), reference.group_norm_silu, 2),
            (
                " with sum",
                run_sum,
                eager_sum,
                make(shape, (c,), (n, c), shape, (c,), (c,)),
                reference.add_group_norm_silu,
                4,
            ),
        ):
            sets = gpu.rotation(inputs)
            functions = {f"Triton {i}": wrap(config) for i, config in enumerate(tilings)}
            if not name:
                plans = cuda.configs(n, h * w, c, 32, 2, True, cuda.gpu_of(torch.cuda.current_device()))
                functions |= {f"CUDA C++ {i} {plan.kind}": own(plan) for i, plan in enumerate(plans)}
            rows += gpu.compare(
                f"{n}, {h}, {w}, {c}{name}",
                {**functions, "PyTorch": peer},
                sets,
                wanted(*(x.double() for x in sets[0]), 32),
                GPU_TOLERANCE,
                moved=pictures * picture,
                peers=["PyTorch"],
            )
            del sets
    gpu.save(json, rows)


def on_cpu(layout: str, rounds: int) -> None:
    torch.set_num_threads(1)
    rng = np.random.default_rng(0)

    print(describe(threads=1))
    memory_format = "channels_last" if layout == "NHWC" else "contiguous"
    print(f"layout {layout}; PyTorch eager: silu(group_norm(x)) on a {memory_format} tensor")
    print(f"{'N, H, W, C':>20} {'what':>9} {'ms':>8} {'GB/s':>7} {'of copy':>8} {'PyTorch /':>10}")
    for (n, h, w, c), groups in SHAPES:
        shape = (n, h, w, c) if layout == "NHWC" else (n, c, h, w)
        x = rng.standard_normal(shape).astype(np.float32)
        weight, bias = (rng.standard_normal(c).astype(np.float32) for _ in range(2))
        out = np.empty_like(x)
        tx, tweight, tbias = map(torch.from_numpy, (x, weight, bias))
        # The same memory, as PyTorch sees it: NHWC is a channels_last tensor.
        eager_x = tx.permute(0, 3, 1, 2) if layout == "NHWC" else tx
        wanted = reference.group_norm_silu(
            tx.double(), tweight.double(), tbias.double(), groups, layout=layout
        )

        def run(isa, x=x, weight=weight, bias=bias, groups=groups, out=out):
            return lambda: group_norm_silu(x, weight, bias, groups, layout=layout, out=out, isa=isa)

        functions = {}
        for isa in _C.available_isas():
            functions[isa] = run(isa)
            out.fill(np.nan)
            functions[isa]()
            verify(out, wanted, TOLERANCE, f"{shape} on {isa}")

        def eager(x=eager_x, weight=tweight, bias=tbias, groups=groups):
            return torch.nn.functional.silu(
                torch.nn.functional.group_norm(x, groups, weight, bias, 1e-5), inplace=True
            )

        eager_out = eager().permute(0, 2, 3, 1) if layout == "NHWC" else eager()
        verify(eager_out.numpy(), wanted, BASELINE_TOLERANCE, "PyTorch")

        moved = 2 * x.nbytes
        seconds = alternate(
            {**functions, "PyTorch": eager, "copy": copier(moved)},
            rounds=rounds,
            clock=time.thread_time,
        )
        for name, value in seconds.items():
            print(
                f"{f'{n}, {h}, {w}, {c}':>20} {name:>9} {value * 1e3:8.3f} {moved / value / 1e9:7.1f} "
                f"{seconds['copy'] / value:8.0%} {seconds['PyTorch'] / value:9.2f}x"
            )


if __name__ == "__main__":
    main()
