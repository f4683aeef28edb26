"""geglu in Triton beside PyTorch eager on a GPU, at the feed-forward layers of Stable Diffusion.

``python benchmarks/bench_geglu.py [--json FILE]``

Each row is verified against the reference in float64 first. GB/s counts x read once and the result written
once. The CPU computes geglu inside ``linear``, see bench_linear.py.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import gpu
import torch

from fastdiff.kernels import reference
from fastdiff.kernels.triton.geglu import configs, geglu
from fastdiff.kernels.triton.launch import architecture

# (rows, channels of the result): SD 1.5 at 512², SDXL at 1024², both with guidance
SHAPES = [(8192, 1280), (2048, 2560), (512, 5120), (8192, 2560), (2048, 5120)]
TOLERANCE = 4e-4


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    torch.manual_seed(0)
    torch.set_grad_enabled(False)
    gpu.describe_gpu()  # exits where there is no GPU

    def eager(x: torch.Tensor) -> torch.Tensor:
        a, b = x.chunk(2, -1)
        return a * torch.nn.functional.gelu(b)

    gpu.header()
    rows = []
    for count, channels in SHAPES:
        inputs = gpu.rotation(lambda s=(count, 2 * channels): (torch.randn(s, device="cuda").half(),))
        arch = architecture(inputs[0][0])
        functions = {
            f"Triton {n}": lambda x, config=config: geglu(x, config=config)
            for n, config in enumerate(configs(channels, arch))
        }
        wanted = reference.geglu(inputs[0][0].double())
        moved = 3 * count * channels * 2
        rows += gpu.compare(
            f"{count}, {channels}",
            {**functions, "PyTorch": eager},
            inputs,
            wanted,
            TOLERANCE,
            moved=moved,
            peers=["PyTorch"],
        )
    gpu.save(arguments.json, rows)


if __name__ == "__main__":
    main()
