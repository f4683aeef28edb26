"""Lowering: a captured module becomes the graph of nodes that native and cuda compile.

``lowering.py`` holds what all ops share, ``ops.py`` one function per op, ``symbols.py`` the symbolic sizes,
``selection.py`` the choice of one token.
"""

from __future__ import annotations

from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind

import fastdiff.build.lower.ops  # noqa: F401 (fills the table of lowerings)
from fastdiff.build.capture import CapturedModule
from fastdiff.build.lower.lowering import Layer, Lowered, lower
from fastdiff.build.passes import FUSIONS, run_passes, stages

__all__ = ["Layer", "Lowered", "lower", "lower_module"]

_PROMPT = (
    "encoder_hidden_states",
    "text_embeds",
    "time_ids",
    "timestep_cond",
    "class_labels",
    "condition",
)
_CONTROL = ("control_embedding", "mid_residual", "image_embeds", "image_scale")
_CONTROL_LEVELS = ("down_residual_", "adapter_feature_")
_SCHEDULE = ("timestep",)
"""Inputs that stay the same over a picture's steps, and those that are known before its first.

SDXL's time embedding is the sum of what both kinds make, so its projections run in every step; the keys and
values of the prompt and the embedding of ``text_embeds`` and ``time_ids`` do not.
"""


def lower_module(captured: CapturedModule) -> Lowered:
    """The graph of a captured module, after the fusing passes. Raises CaptureError."""
    assert captured.program is not None
    program = run_passes(captured.program, FUSIONS)
    names = dict(zip((tensor.name for tensor in captured.spec.inputs), _input_names(program), strict=True))
    of_nodes = stages(
        program,
        [names[name] for name in names if name in _PROMPT + _CONTROL or name.startswith(_CONTROL_LEVELS)],
        [names[name] for name in _SCHEDULE if name in names],
    )
    return lower(program, captured.spec, {node: stage.value for node, stage in of_nodes.items()})


def _input_names(program: ExportedProgram) -> list[str]:
    """What the module's inputs are called in the graph, in their order."""
    specs = program.graph_signature.input_specs
    return [spec.arg.name for spec in specs if spec.kind is InputKind.USER_INPUT]
