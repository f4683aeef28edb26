"""Sums that move from a convolution or linear layer into the norm that reads them.

::

    y = conv(x) + bias + vector + residual            raw = conv(x) normed = group_norm_silu(y)
    →    y, normed = add_group_norm_silu(raw, bias, vector, residual)

cuDNN and cuBLASLt add nothing, or a bias alone: what else is to be added takes another pass over memory,
which the norm can do on its way. Whether that pays is measured: against it stands a kernel that adds
everything itself.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping, Sequence

from fastdiff.targets.graph import Graph, Node

__all__ = ["Pair", "fuse", "pairs", "worthwhile"]

Pair = tuple[int, int]
"""The indices of a layer's node and of the norm's."""

_FUSED = {"group_norm_silu": "add_group_norm_silu", "layer_norm": "add_layer_norm"}


def pairs(graph: Graph) -> list[Pair]:
    """Layers whose sums could be formed by the norm that follows: nobody else reads them before it."""
    users: dict[int, list[int]] = {}
    for index, node in enumerate(graph.nodes):
        for value in node.inputs:
            if value is not None:
                users.setdefault(value, []).append(index)
    found = []
    for index, node in enumerate(graph.nodes):
        if not _movable(node) or node.output in graph.outputs:
            continue
        first = graph.nodes[min(users.get(node.output, [index]))]
        norm = min(users.get(node.output, [index]))
        if first.op in _FUSED and first.stage == node.stage and first.inputs[0] == node.output:
            found.append((index, norm))
    return found


def _movable(node: Node) -> bool:
    """Whether a layer's result is a plain sum of more than what its library adds."""
    if node.op not in ("conv2d", "linear"):
        return False
    if node.attributes["activation"] != "none" or node.attributes["scale"] != 1:
        return False
    added = any(value is not None for value in node.inputs[1:])
    return added or (node.op == "conv2d" and "bias" in node.weights)


def fuse(graph: Graph, chosen: Collection[Pair]) -> Graph:
    """The graph with the sums of some pairs in their norms. Nodes keep their indices, values theirs."""
    values, nodes = list(graph.values), list(graph.nodes)
    for layer_index, norm_index in chosen:
        layer, norm = nodes[layer_index], nodes[norm_index]
        raw = len(values)
        total = graph.values[layer.output]
        values.append(dataclasses.replace(total, name=f"{total.name}_raw"))
        vector, residual = layer.inputs[1:] if layer.op == "conv2d" else (None, layer.inputs[1])
        weights = dict(norm.weights)
        kept = dict(layer.weights)
        if layer.op == "conv2d" and "bias" in kept:
            weights["sum_bias"] = kept.pop("bias")
        nodes[layer_index] = dataclasses.replace(
            layer, inputs=(layer.inputs[0], *(None,) * (len(layer.inputs) - 1)), output=raw, weights=kept
        )
        nodes[norm_index] = dataclasses.replace(
            norm,
            op=_FUSED[norm.op],
            inputs=(raw, vector, residual),
            attributes={**norm.attributes, "sum": layer.output},
            weights=weights,
        )
    return dataclasses.replace(graph, values=tuple(values), nodes=tuple(nodes))


def worthwhile(
    candidates: Sequence[Pair], apart: Mapping[int, float], together: Mapping[int, float]
) -> list[Pair]:
    """The pairs whose two nodes take less time when fused. Seconds are by node, unfused and fused."""
    return [
        (layer, norm)
        for layer, norm in candidates
        if together[layer] + together[norm] < apart[layer] + apart[norm]
    ]
