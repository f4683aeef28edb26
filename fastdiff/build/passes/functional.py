"""functional: ``add_`` becomes ``add``, and what reads the changed tensor reads the sum.

diffusers adds the features of a T2I-Adapter in place, also to a tensor that it has kept for the way up.
"""

from __future__ import annotations

import torch
from torch import fx
from torch.export import ExportedProgram

from fastdiff.build.passes.rewrite import Rewrite

__all__ = ["functional"]

aten = torch.ops.aten


def functional(program: ExportedProgram) -> ExportedProgram:
    """The program without ``add_`` of tensors that have a memory of their own; others stay."""
    if not any(node.target is aten.add_.Tensor for node in program.graph.nodes):
        return program
    rewrite = Rewrite(program)
    for node in rewrite.find(aten.add_.Tensor):
        changed = node.args[0]
        if not isinstance(changed, fx.Node) or _aliases(changed):
            continue
        order = {each: index for index, each in enumerate(rewrite.graph.nodes)}
        earlier = [user for user in changed.users if order[user] < order[node]]
        if any(_aliases(user) for user in earlier):
            continue
        result = rewrite.call(node, aten.add.Tensor, *node.args, **node.kwargs)
        rewrite.replace(node, result)
        rewrite.graph.erase_node(node)
        for user in list(changed.users):
            if user is not result and user not in earlier:
                user.replace_input_with(changed, result)
    return rewrite.finish()


def _aliases(node: fx.Node) -> bool:
    """Whether the value of ``node`` may share the memory of another: an input, a weight or a view."""
    if not isinstance(node.target, torch._ops.OpOverload):
        return True
    return any(result.alias_info is not None for result in node.target._schema.returns)
