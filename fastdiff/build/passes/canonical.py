"""canonical: one spelling for what the exporter writes in many, and every value computed once.

::

    transpose                                        →  permute
    reshape, flatten, unflatten, squeeze, unsqueeze  →  view, several in a row one view
    parts of chunk, split                            →  slice
    concat, pad                                      →  cat, constant_pad_nd

Diffusers, for one, takes the SiLU of the time embedding once per residual block.
"""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import Tensor, fx
from torch.export import ExportedProgram

from fastdiff.build.passes.rewrite import Rewrite, calls, same_size

__all__ = ["canonical"]

aten = torch.ops.aten

_VIEWS = {
    aten.flatten.using_ints,
    aten.reshape.default,
    aten.squeeze.dim,
    aten.squeeze.dims,
    aten.unflatten.int,
    aten.unsqueeze.default,
    aten.view.default,
}
_SLICE_DEFAULTS: tuple[Any, ...] = (0, None, None, 1)
"""Of ``slice``'s arguments after the tensor."""
_PARTS = (aten.chunk.default, aten.split.Tensor, aten.split_with_sizes.default)


def canonical(program: ExportedProgram) -> ExportedProgram:
    """The program in the spelling above, without nodes that compute the same as an earlier one."""
    rewrite = Rewrite(program)
    for node in list(rewrite.graph.nodes):
        replacement = _respelled(rewrite, node) if node.op == "call_function" else None
        if replacement is not None:
            rewrite.replace(node, replacement)
            rewrite.graph.erase_node(node)
    _compute_once(rewrite)
    return rewrite.finish()


def _respelled(rewrite: Rewrite, node: Any) -> fx.Node | None:
    target, args = node.target, node.args
    if target in _VIEWS:
        return _view(rewrite, node)
    if target is aten.transpose.int:
        dims = list(range(node.meta["val"].dim()))
        dims[args[1]], dims[args[2]] = dims[args[2]], dims[args[1]]
        return rewrite.call(node, aten.permute.default, args[0], dims)
    if target in (aten.concat.default, aten.concatenate.default):
        return rewrite.call(node, aten.cat.default, *args)
    if target is aten.pad.default and args[2:3] in ((), ("constant",)) and min(args[1]) >= 0:
        value = args[3] if len(args) > 3 else None
        return rewrite.call(node, aten.constant_pad_nd.default, args[0], args[1], value or 0.0)
    if target is operator.getitem and calls(args[0], *_PARTS):
        return _part(rewrite, node)
    if target is aten.slice.Tensor:
        return _bounded_slice(rewrite, node)
    return None


def _view(rewrite: Rewrite, node: Any) -> fx.Node | None:
    """The same as one ``view`` of what the views before it look at; None where memory demands a copy."""
    x = node.args[0]
    while calls(x, aten.view.default):
        x = x.args[0]
    if node.target is aten.view.default and x is node.args[0]:
        return None
    given = node.args[1] if node.target in (aten.view.default, aten.reshape.default) else None
    view = rewrite.view(node, x, list(given) if given is not None else _sizes(rewrite, node, x))
    if view.target is not aten.view.default:
        rewrite.graph.erase_node(view)
        return None
    return view


def _sizes(rewrite: Rewrite, node: fx.Node, x: fx.Node) -> list[Any]:
    """The shape of ``node`` as arguments for a view of ``x``: numbers, sizes of ``x`` and at most one -1."""
    sizes: list[Any] = []
    for wanted in node.meta["val"].shape:
        found = [axis for axis, size in enumerate(x.meta["val"].shape) if same_size(size, wanted)]
        if isinstance(wanted, int):
            sizes.append(wanted)
        elif found:
            sizes.append(rewrite.size(node, x, found[0]))
        else:
            sizes.append(-1)
    return sizes


def _part(rewrite: Rewrite, node: Any) -> fx.Node | None:
    """A part of a tensor that was divided along an axis of known length, as a slice of it."""
    source, index = node.args[0], node.args[1]
    x = source.args[0]
    axis = (source.args[2] if len(source.args) > 2 else 0) % x.meta["val"].dim()
    lengths = [part.shape[axis] for part in source.meta["val"]]
    if not all(isinstance(length, int) for length in lengths):
        return None
    start = sum(lengths[:index])
    return rewrite.call(node, aten.slice.Tensor, x, axis, start, start + lengths[index])


def _bounded_slice(rewrite: Rewrite, node: Any) -> fx.Node | None:
    """A slice of an axis of known length with its bounds as numbers within it."""
    x, options = node.args[0], tuple(node.args[1:])
    axis, start, end, step = (*options, *_SLICE_DEFAULTS[len(options) :])
    axis %= x.meta["val"].dim()
    length = x.meta["val"].shape[axis]
    if not isinstance(length, int) or any(isinstance(bound, fx.Node) for bound in (start, end)):
        return None
    first, last, _ = slice(start, end).indices(length)
    if step != 1 or node.args == (x, axis, first, last):
        return None
    return rewrite.call(node, aten.slice.Tensor, x, axis, first, last)


def _compute_once(rewrite: Rewrite) -> None:
    seen: dict[Any, fx.Node] = {}
    for node in list(rewrite.graph.nodes):
        if node.op != "call_function" or not _is_function(node.target):
            continue
        key = (node.target, _hashable(node.args), _hashable(node.kwargs))
        first = seen.setdefault(key, node)
        if first is not node and isinstance(node.meta.get("val"), (Tensor, torch.SymInt)):
            rewrite.replace(node, first)
            rewrite.graph.erase_node(node)


def _is_function(target: Any) -> bool:
    """Whether equal arguments give equal results and nothing else happens."""
    if not isinstance(target, torch._ops.OpOverload):
        return getattr(target, "__module__", "") in ("_operator", "math")
    return not target._schema.is_mutable and torch.Tag.nondeterministic_seeded not in target.tags


def _hashable(argument: Any) -> Any:
    """Something to compare arguments by; 1, 1.0 and True differ."""
    if isinstance(argument, (list, tuple)):
        return tuple(_hashable(item) for item in argument)
    if isinstance(argument, dict):
        return tuple((name, _hashable(item)) for name, item in sorted(argument.items()))
    return type(argument), argument
