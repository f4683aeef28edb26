"""Recipe for models in the shape of Stable Diffusion 1.x: capture its modules and write them as ONNX.

    python export/stable_diffusion.py CHECKPOINT -o FOLDER [--modules unet vae_decoder]

CHECKPOINT is a diffusers folder or the name of a shipped model. Per module, prints the inputs with their
symbolic sizes, the nodes before and after the passes, and the commonest operators: a look at what a target
gets.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from pathlib import Path

from fastdiff.build.capture import CapturedModule, capture
from fastdiff.build.checkpoint import Checkpoint, load_checkpoint
from fastdiff.build.modules import module_spec
from fastdiff.build.onnx import export_onnx
from fastdiff.build.passes import run_passes
from fastdiff.config import MODULES, Precision
from fastdiff.errors import FastdiffError

PRECISION = Precision.FP32
"""Half-precision weights are widened at loading; the graphs compute in float32."""


def export_module(checkpoint: Checkpoint, name: str, folder: Path) -> str:
    """Capture one module, run the passes, write ``FOLDER/NAME.onnx``; the lines to print."""
    spec = module_spec(name, checkpoint.spec)
    part = checkpoint.load(spec.part)
    module = capture(CapturedModule(spec, spec.wrap(part), part))
    assert module.program is not None
    before = module.program.graph
    module = module.with_program(run_passes(module.program))
    assert module.program is not None
    after = module.program.graph
    file, *_ = export_onnx(module, folder / f"{name}.onnx")
    operators = Counter(str(node.target).split(".")[1] for node in after.nodes if node.op == "call_function")
    inputs = (f"{item.name} {item.dtype} [{', '.join(map(str, item.shape))}]" for item in spec.inputs)
    ranges = (f"{symbol}: {size}" for symbol, size in spec.shapes.items())
    commonest = (f"{operator} {count}" for operator, count in operators.most_common(6))
    return (
        f"{name}  {PRECISION.value}  {', '.join(inputs)}\n"
        f"  sizes      {'; '.join(ranges)}\n"
        f"  nodes      {len(before.nodes)}, after the passes {len(after.nodes)}: {', '.join(commonest)}\n"
        f"  written    {file}, {file.stat().st_size / 1e6:.1f} MB"
    )


def main(arguments: list[str] | None = None) -> int:
    """Run with the given command-line arguments; the exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("checkpoint")
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="FOLDER")
    parser.add_argument("--modules", nargs="+", choices=MODULES, default=MODULES)
    options = parser.parse_args(arguments)
    try:
        options.output.mkdir(parents=True, exist_ok=True)
        checkpoint = load_checkpoint(options.checkpoint)
        for name in options.modules:
            print(export_module(checkpoint, name, options.output), flush=True)
    except (FastdiffError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
