"""Passes over the captured graph, each a function from one ExportedProgram to another."""

from __future__ import annotations

from collections.abc import Callable

from torch.export import ExportedProgram

from fastdiff.build.passes.normalise import normalise

__all__ = ["PASSES", "normalise", "run_passes"]

PASSES: tuple[Callable[[ExportedProgram], ExportedProgram], ...] = (normalise,)
"""Every pass, in the order in which they run."""


def run_passes(program: ExportedProgram) -> ExportedProgram:
    """Run all passes. The given program stays as it is; weights are shared, not copied."""
    for rewrite in PASSES:
        program = rewrite(program)
    return program
