"""normalise: remove nodes that change nothing and evaluate those that depend on nothing.

Removed are dropout in evaluation, clones, casts to the type a tensor already has, views to its own
shape, multiplication and division by 1 or by ones and addition of 0. Folded are operators whose inputs are
constants, such as the frequency table of the timestep embedding.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx
from torch.export import ExportedProgram
from torch.fx.experimental.symbolic_shapes import statically_known_true

from fastdiff.build.passes.rewrite import Rewrite

__all__ = ["folded_constants", "no_op_source", "normalise"]

aten = torch.ops.aten

_LARGEST_CONSTANT = 1 << 20
"""Elements of the largest constant that is stored in place of the nodes that compute it."""

_DROPOUT = {aten.dropout.default, aten.feature_dropout.default, aten.alpha_dropout.default}
_COPIES = {
    aten.alias.default,
    aten.clone.default,
    aten.contiguous.default,
    aten.detach.default,
    aten.lift_fresh_copy.default,
}
_CASTS_AND_VIEWS = {
    aten._to_copy.default,
    aten.expand.default,
    aten.reshape.default,
    aten.slice.Tensor,
    aten.to.device,
    aten.to.dtype,
    aten.to.dtype_layout,
    aten.type_as.default,
    aten.view.default,
}
"""No-ops when shape, dtype and device of the result are those of the first argument."""

_NEUTRAL: dict[Any, float] = {
    aten.add.Tensor: 0,
    aten.sub.Tensor: 0,
    aten.mul.Tensor: 1,
    aten.div.Tensor: 1,
    aten.add.Scalar: 0,
    aten.sub.Scalar: 0,
    aten.mul.Scalar: 1,
    aten.div.Scalar: 1,
}
"""Second operand with which an operator returns its first."""


def normalise(program: ExportedProgram) -> ExportedProgram:
    """The program without no-ops and with constants folded.

    It computes the same values up to rounding: without a copy, a kernel may meet another memory layout.
    Graphs that write to tensors in place are returned as they are, since a copy may matter there.
    """
    if any(_writes(node) for node in program.graph.nodes):
        return program
    rewrite = Rewrite(program)
    _drop_metadata_checks(rewrite.graph)
    _remove_no_ops(rewrite)
    _insert_constants(rewrite, folded_constants(program, rewrite.graph))
    _remove_no_ops(rewrite)
    return rewrite.finish()


def no_op_source(node: fx.Node) -> fx.Node | None:
    """The node whose value ``node`` merely repeats, or None when it computes something."""
    if node.op != "call_function" or not node.args or not isinstance(node.args[0], fx.Node):
        return None
    source, target = node.args[0], node.target
    if target in _DROPOUT:
        probability, train = node.args[1], node.args[2]
        return source if not train or probability == 0 else None
    if target in _COPIES:
        return source
    if target in _CASTS_AND_VIEWS or (target in _NEUTRAL and _is_neutral(node)):
        return source if _same_tensor(node, source) else None
    return None


def folded_constants(program: ExportedProgram, graph: fx.Graph) -> dict[fx.Node, Tensor]:
    """Values of the nodes of ``graph`` that depend on constants and buffers alone, except those of no use."""
    signature = program.graph_signature
    mutated = set(signature.buffers_to_mutate.values())
    known: dict[fx.Node, Tensor] = {}
    for node in graph.nodes:
        if node.op == "placeholder":
            value = _stored_value(program, node.name, mutated)
        else:
            value = _evaluate(node, known)
        if value is not None:
            known[node] = value
    return {node: value for node, value in known.items() if node.op != "placeholder"}


def _stored_value(program: ExportedProgram, name: str, mutated: set[str]) -> Tensor | None:
    """The value of a placeholder for a buffer or a constant tensor."""
    signature = program.graph_signature
    target = signature.inputs_to_buffers.get(name) or signature.inputs_to_lifted_tensor_constants.get(name)
    if target is None or target in mutated:
        return None
    value = program.state_dict.get(target, program.constants.get(target))
    return value if isinstance(value, Tensor) and value.numel() <= _LARGEST_CONSTANT else None


def _evaluate(node: fx.Node, known: dict[fx.Node, Tensor]) -> Tensor | None:
    target = node.target
    if node.op != "call_function" or not isinstance(target, torch._ops.OpOverload):
        return None
    if any(source not in known for source in node.all_input_nodes):
        return None
    if torch.Tag.nondeterministic_seeded in target.tags or not isinstance(node.meta.get("val"), Tensor):
        return None
    if any(not isinstance(size, int) or size > _LARGEST_CONSTANT for size in node.meta["val"].shape):
        return None
    if node.meta["val"].numel() > _LARGEST_CONSTANT:
        return None
    args, kwargs = fx.map_arg((node.args, node.kwargs), lambda source: known[source])
    with torch.no_grad():
        value = target(*args, **kwargs)
    return value if isinstance(value, Tensor) else None


def _insert_constants(rewrite: Rewrite, values: dict[fx.Node, Tensor]) -> None:
    """Replace folded nodes that others need by inputs of the graph that carry their values."""
    for node, value in values.items():
        if not all(user in values for user in node.users):
            plain = value.detach().clone(memory_format=torch.contiguous_format)
            rewrite.replace(node, rewrite.add_constant(f"folded_{node.name}", plain, node))


def _remove_no_ops(rewrite: Rewrite) -> None:
    for node in list(rewrite.graph.nodes):
        source = no_op_source(node)
        if source is not None:
            rewrite.replace(node, source)
            rewrite.graph.erase_node(node)


def _drop_metadata_checks(graph: fx.Graph) -> None:
    """Remove the exporter's checks of dtype and device, which hold by construction and keep casts alive."""
    for node in list(graph.nodes):
        if node.target is aten._assert_tensor_metadata.default:
            graph.erase_node(node)


def _writes(node: fx.Node) -> bool:
    return isinstance(node.target, torch._ops.OpOverload) and node.target._schema.is_mutable


def _is_neutral(node: fx.Node) -> bool:
    operand = node.args[1] if len(node.args) > 1 else None
    if isinstance(operand, fx.Node) and operand.target is aten.ones.default:
        operand = 1
    if isinstance(operand, bool) or not isinstance(operand, (int, float)):
        return False
    return operand == _NEUTRAL[node.target]


def _same_tensor(node: fx.Node, source: fx.Node) -> bool:
    """Whether two nodes have the same dtype, device and, as far as can be proved, shape."""
    result, given = node.meta.get("val"), source.meta.get("val")
    if not isinstance(result, Tensor) or not isinstance(given, Tensor):
        return False
    same: Callable[[Any, Any], bool] = lambda a, b: statically_known_true(a == b)  # noqa: E731
    return (
        result.dtype == given.dtype
        and result.device == given.device
        and result.dim() == given.dim()
        and all(same(a, b) for a, b in zip(result.shape, given.shape, strict=True))
    )
