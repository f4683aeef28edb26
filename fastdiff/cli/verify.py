"""``fastdiff verify``: whether an engine is what was built, and computes what PyTorch computes."""

from __future__ import annotations

import argparse
import sys

from fastdiff.cli.checkpoint import add_checkpoint_options, checkpoint_options
from fastdiff.cli.control import add_control_sources, chosen_sources
from fastdiff.cli.values import on_terminal, require_build_extra
from fastdiff.errors import InputError

SUMMARY = "check an engine's files, and its modules against PyTorch"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument("engine", metavar="ENGINE", help="engine folder")
    parser.add_argument(
        "checkpoint",
        metavar="CHECKPOINT",
        nargs="?",
        help="what the engine was built from; needed unless that is a shipped model",
    )
    add_checkpoint_options(parser)
    add_control_sources(parser)


def run(arguments: argparse.Namespace) -> None:
    """Check hashes and measure errors. Raises EngineError or VerificationError."""
    from fastdiff.engine_dir import open_engine

    engine = open_engine(arguments.engine, all_hashes=True)
    files = len(engine.manifest.all_files())
    print(f"{engine.path}: {files} files match their hashes")
    shipped = engine.manifest.provenance.get("checkpoint", {}).get("shipped", False)
    if arguments.checkpoint is None and not shipped:
        print("the modules were not compared with PyTorch: give the checkpoint it was built from")
        return
    require_build_extra("comparing with PyTorch")
    from fastdiff.build.checkpoint import load_checkpoint
    from fastdiff.build.verify import verify_engine

    if on_terminal():
        print("comparing with PyTorch ...", file=sys.stderr)
    options = checkpoint_options(arguments)
    if options and arguments.checkpoint is None:
        raise InputError(f"--{next(iter(options))} without a checkpoint: name it, or leave the option out")
    source = load_checkpoint(arguments.checkpoint, **options) if options else arguments.checkpoint
    errors = verify_engine(engine, source, **chosen_sources(arguments))
    print(f"{'module':<22} {'target':<12} {'error':>9} {'allowed':>9} {'at build':>9}")
    for name, error in errors.items():
        entry = engine.entry(name)
        print(
            f"{name:<22} {entry.target:<12} {error.relative_l2:>9.1e} {error.allowed:>9.1e} "
            f"{entry.error['relative_l2']:>9.1e}"
        )
    for name, entry in engine.manifest.modules.items():
        if name not in errors:
            print(f"{name:<22} {entry.target:<12} not of this checkpoint: compared at the build alone")
