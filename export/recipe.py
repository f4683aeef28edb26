"""What the recipes share: capture modules of a checkpoint, run the passes, write ONNX, say what came out.

Per module, a recipe prints the inputs with their symbolic sizes, the nodes before and after the passes, and
the commonest operators: a look at what a target gets.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from fastdiff.build.capture import CapturedModule, capture
from fastdiff.build.checkpoint import Checkpoint, load_checkpoint
from fastdiff.build.families import FAMILIES
from fastdiff.build.modules import module_spec
from fastdiff.build.onnx import export_onnx
from fastdiff.build.passes import run_passes
from fastdiff.cli.checkpoint import add_checkpoint_options, checkpoint_options
from fastdiff.config import Precision
from fastdiff.errors import FastdiffError, InputError

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
    operators = Counter(
        str(node.target).split(".")[1]
        for node in after.nodes
        if isinstance(node.target, torch._ops.OpOverload)  # others compute sizes
    )
    inputs = (f"{item.name} {item.dtype} [{', '.join(map(str, item.shape))}]" for item in spec.inputs)
    ranges = (f"{symbol}: {size}" for symbol, size in spec.shapes.items())
    commonest = (f"{operator} {count}" for operator, count in operators.most_common(6))
    return (
        f"{name}  {PRECISION.value}  {', '.join(inputs)}\n"
        f"  sizes      {'; '.join(ranges)}\n"
        f"  nodes      {len(before.nodes)}, after the passes {len(after.nodes)}: {', '.join(commonest)}\n"
        f"  written    {file}, {file.stat().st_size / 1e6:.1f} MB"
    )


def write(checkpoint: Checkpoint, modules: Sequence[str], folder: Path) -> None:
    """Export ``modules`` into ``folder`` and print a paragraph for each."""
    for name in modules:
        print(export_module(checkpoint, name, folder), flush=True)


def run(
    description: str | None, pipelines: Sequence[str], notes: Mapping[str, str], arguments: list[str] | None
) -> int:
    """A recipe's command line; the exit status.

    ``description`` is the recipe's, ``pipelines`` the classes of diffusers that it is for, ``notes`` say what
    is particular about a module or an input, by name.
    """
    parser = argparse.ArgumentParser(description=(description or "").partition("\n")[0])
    parser.add_argument("checkpoint", help="diffusers folder, .safetensors file or shipped model")
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="FOLDER")
    parser.add_argument("--modules", nargs="+", metavar="MODULE", help="default: all of the checkpoint")
    add_checkpoint_options(parser)
    options = parser.parse_args(arguments)
    try:
        checkpoint = load_checkpoint(options.checkpoint, **checkpoint_options(options))
        family = checkpoint.spec.family
        wanted = {FAMILIES[pipeline].name for pipeline in pipelines}
        if family not in wanted:
            raise InputError(
                f"{checkpoint.name} is of family {family}: this recipe is for {', '.join(wanted)}"
            )
        modules = options.modules or checkpoint.modules
        if unknown := [name for name in modules if name not in checkpoint.modules]:
            raise InputError(
                f"{checkpoint.name} has no module {unknown[0]!r}: it has {', '.join(checkpoint.modules)}"
            )
        options.output.mkdir(parents=True, exist_ok=True)
        write(checkpoint, modules, options.output)
        present = {item.name for name in modules for item in module_spec(name, checkpoint.spec).inputs}
        for name, note in notes.items():
            if name in present or name in modules:
                print(f"{name}: {note}")
    except (FastdiffError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0
