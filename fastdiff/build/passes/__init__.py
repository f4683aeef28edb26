"""Passes over the captured graph, each a function from one ExportedProgram to another."""

from __future__ import annotations

from collections.abc import Callable

from torch.export import ExportedProgram

from fastdiff.build.passes.activations import fuse_activations
from fastdiff.build.passes.attention import fuse_attention
from fastdiff.build.passes.canonical import canonical
from fastdiff.build.passes.channels_last import channels_last
from fastdiff.build.passes.epilogues import fuse_epilogues
from fastdiff.build.passes.functional import functional
from fastdiff.build.passes.group_norm_silu import fuse_group_norm_silu
from fastdiff.build.passes.halves import halves
from fastdiff.build.passes.normalise import normalise
from fastdiff.build.passes.plain_attention import plain_attention
from fastdiff.build.passes.plain_token_merging import plain_token_merging
from fastdiff.build.passes.prologues import Stage, stages
from fastdiff.build.passes.timestep_embedding import fuse_timestep_embedding

__all__ = [
    "FUSIONS",
    "PASSES",
    "Stage",
    "canonical",
    "channels_last",
    "functional",
    "fuse_activations",
    "fuse_attention",
    "fuse_epilogues",
    "fuse_group_norm_silu",
    "fuse_timestep_embedding",
    "halves",
    "normalise",
    "plain_attention",
    "plain_token_merging",
    "run_passes",
    "stages",
]

Pass = Callable[[ExportedProgram], ExportedProgram]

PASSES: tuple[Pass, ...] = (functional, normalise)
"""What every target's graph goes through, in this order; the result is ATen alone."""
FUSIONS: tuple[Pass, ...] = (
    fuse_attention,
    fuse_activations,
    fuse_group_norm_silu,
    fuse_timestep_embedding,
    canonical,
    channels_last,
    fuse_epilogues,
)
"""What comes after for a target that has kernels for the ``fastdiff::`` ops, in this order."""


def run_passes(program: ExportedProgram, passes: tuple[Pass, ...] = PASSES) -> ExportedProgram:
    """Run the passes in turn. The given program stays as it is; weights are shared, not copied."""
    for rewrite in passes:
        program = rewrite(program)
    return program
