"""epilogue in Triton beside PyTorch eager on a GPU, after the convolutions and GEMMs of Stable Diffusion.

``python benchmarks/bench_epilogue.py [--json FILE]``

Each row is verified against the reference in float64 first. GB/s counts x and the residual read once and the
result written once. On the CPU every kernel has its epilogue inside.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import gpu
import torch

from fastdiff.kernels import reference
from fastdiff.kernels.triton.epilogue import configs, epilogue

# (shape, activation, what is added): SD 1.5 at 512², SDXL at 1024² with guidance, a VAE at 1024²
CASES = [
    ((2, 64, 64, 320), "none", "bias vector"),
    ((2, 64, 64, 320), "none", "bias residual"),
    ((2, 16, 16, 1280), "none", "bias residual"),
    ((2, 4096, 2560), "geglu", "bias"),
    ((2, 64, 64, 1280), "none", "bias residual"),
    ((2, 1024, 10240), "geglu", "bias"),
    ((2, 77, 3072), "quick_gelu", "bias"),
    ((1, 512, 512, 512), "none", "bias residual"),
    ((1, 1024, 1024, 128), "none", "bias residual"),
]
TOLERANCE = 5e-4


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    torch.manual_seed(0)
    torch.set_grad_enabled(False)
    gpu.describe_gpu()  # exits where there is no GPU
    gpu.header()
    rows = []
    for shape, activation, added in CASES:
        channels = shape[-1] // 2 if activation == "geglu" else shape[-1]
        result = (*shape[:-1], channels)
        shapes = {"bias": shape[-1:], "vector": (shape[0], shape[-1]), "residual": result}

        def make(shape=shape, shapes=shapes, added=added):
            def random(size):
                return torch.randn(size, device="cuda").half()

            return random(shape), *(
                random(size) if name in added.split() else None for name, size in shapes.items()
            )

        def run(config, activation=activation):
            return lambda *tensors: epilogue(*tensors, activation, config=config)

        def eager(*tensors, activation=activation):
            return reference.epilogue(*tensors, activation)

        inputs = gpu.rotation(make)
        double = [None if value is None else value.double() for value in inputs[0]]
        moved = sum(value.numel() for value in inputs[0] if value is not None)
        rows += gpu.compare(
            f"{', '.join(map(str, shape))} {activation} {added}",
            {**{f"Triton {i}": run(c) for i, c in enumerate(configs(channels))}, "PyTorch": eager},
            inputs,
            reference.epilogue(*double, activation),
            TOLERANCE,
            moved=2 * (moved + inputs[0][0].numel() // shape[-1] * channels),
            peers=["PyTorch"],
        )
    gpu.save(arguments.json, rows)


if __name__ == "__main__":
    main()
