"""Selections of one token's row per prompt, which text encoders end with: ``x[arange(batch), argmax(ids)]``.

PyTorch spells it with indices, comparisons and integers of other widths, none of which has a kernel of its
own; found as a whole it is one native node.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

__all__ = ["LARGEST", "Selection", "find_selections"]

LARGEST = -1
"""In place of an id: the row where the largest id stands."""

aten = torch.ops.aten
_INTEGERS = (torch.int32, torch.int64)
_CONVERSIONS = (aten.to.device, aten.to.dtype, aten._to_copy.default, aten.clone.default)


@dataclass(frozen=True)
class Selection:
    """Of each row of ``x`` (batch, tokens, channels) the token whose id is the first to be ``token``.

    ``ids`` is (batch, tokens). PyTorch takes the first token where no id is ``token``.
    """

    x: fx.Node
    ids: fx.Node
    token: int
    parts: frozenset[fx.Node]
    """Nodes whose values nothing but the selection reads."""


def find_selections(graph: fx.Graph) -> Mapping[fx.Node, Selection]:
    """The selections of a graph by the node that has their result. Others' indexing is left alone."""
    found = {node: _selection(node) for node in graph.nodes if node.target is aten.index.Tensor}
    return {node: selection for node, selection in found.items() if selection is not None}


def _selection(node: fx.Node) -> Selection | None:
    x, indices = node.args[0], node.args[1]
    if not isinstance(x, fx.Node) or not isinstance(indices, list | tuple) or len(indices) != 2:
        return None
    rows, argmax = indices
    if not (isinstance(rows, fx.Node) and isinstance(argmax, fx.Node)):
        return None
    if x.meta["val"].dim() != 3 or not _counts(rows, x.meta["val"].shape[0]):
        return None
    if argmax.target is not aten.argmax.default or not _over_last_axis(argmax):
        return None
    parts = {rows, argmax}
    ids = _unconverted(argmax.args[0], parts)
    token = LARGEST
    if ids.target is aten.eq.Scalar:
        parts.add(ids)
        token = _number(ids.args[1])
        if token < 0:
            return None
        ids = _unconverted(ids.args[0], parts)
    value = ids.meta["val"]
    if value.dtype is not torch.int64 or value.dim() != 2:
        return None
    readers = {user for part in parts for user in part.users if _reads(user)}
    if not readers <= {node, *parts}:
        return None
    return Selection(x, ids, token, frozenset(parts))


def _reads(user: fx.Node) -> bool:
    """Whether a node needs the values of what it is given; the exporter's checks of types give none."""
    return user.op == "output" or isinstance(user.meta.get("val"), torch.Tensor | list | tuple)


def _counts(node: fx.Node, size: Any) -> bool:
    """Whether a node is 0, 1, … up to the size of an axis."""
    if node.target is not aten.arange.default or len(node.args) != 1:
        return False
    end = node.args[0]
    return bool((end.meta["val"] if isinstance(end, fx.Node) else end) == size)


def _over_last_axis(argmax: fx.Node) -> bool:
    axis = argmax.args[1] if len(argmax.args) > 1 else argmax.kwargs.get("dim")
    keep = argmax.args[2] if len(argmax.args) > 2 else argmax.kwargs.get("keepdim", False)
    return axis in (-1, 1) and not keep


def _unconverted(argument: Any, parts: set[fx.Node]) -> fx.Node:
    """What a node is a conversion of, to other integers; the conversions become parts.

    Ids fit all of them, being rows of a table. Truth is converted to 0 and 1.
    """
    node: fx.Node = argument
    while node.target in _CONVERSIONS and node.meta["val"].dtype in _INTEGERS:
        parts.add(node)
        node = node.all_input_nodes[0]
    return node


def _number(argument: Any) -> int:
    return argument if isinstance(argument, int) and not isinstance(argument, bool) else -1
