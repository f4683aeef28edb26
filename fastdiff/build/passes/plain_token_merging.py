"""plain_token_merging: the ops of token merging as their specification spells them, in ATen operators.

For formats without ops of their own. What it comes to is sorting, gathering and adding at indices.
"""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch.export import ExportedProgram

from fastdiff.kernels import library, reference

__all__ = ["plain_token_merging"]

aten = torch.ops.aten

_DECOMPOSITIONS: dict[Any, Any] = {
    library.token_match._opoverload: reference.token_match,
    library.token_merge._opoverload: reference.token_merge,
    library.token_unmerge._opoverload: reference.token_unmerge,
}


def plain_token_merging(program: ExportedProgram) -> ExportedProgram:
    """The program without ``fastdiff::token_match`` and its like; one that has none is returned as it is."""
    if not any(node.target in _DECOMPOSITIONS for node in program.graph.nodes):
        return program
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # of PyTorch's, about its own parts
        plain: ExportedProgram = program.run_decompositions(_DECOMPOSITIONS)
    for node in plain.graph.nodes:
        if node.target is aten.sort.stable:  # as ONNX sorts anyway, which has no name for it
            node.target = aten.sort.default
            node.args, node.kwargs = (node.args[0], -1, True), {}
    plain.graph_module.recompile()
    return plain
