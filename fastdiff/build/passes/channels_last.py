"""channels_last: pictures become ``[B, H, W, C]`` from end to end, in ``fastdiff::`` ops.

::

    conv2d, also of a zero-padded picture         →  fastdiff::conv2d
    conv2d 1×1, linear                            →  fastdiff::linear
    group_norm_silu in layout NCHW                →  in layout NHWC
    upsample_nearest2d, avg_pool2d                →  fastdiff::upsample_nearest2d, fastdiff::avg_pool2d
    permute(0, 2, 3, 1) · view [B, H·W, C]        →  view, and back

Every node whose value has its channels on axis 1 gets a *mirror*, a node with the same value and the channels
on the last axis; what cannot follow finds the first layout again behind one ``permute``. Where both ends of
a chain follow, nothing is permuted at all. A convolution with groups or dilation stays as it is.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx
from torch.export import ExportedProgram
from torch.export.graph_signature import TensorArgument

from fastdiff.build.passes.convolution import convolution, pool_factor, upsampled_size, upsampling_factor
from fastdiff.build.passes.rewrite import Rewrite, calls, same_size
from fastdiff.kernels import library

__all__ = ["channels_last"]

aten = torch.ops.aten
_QUICK_GELU = library.quick_gelu._opoverload


def channels_last(program: ExportedProgram) -> ExportedProgram:
    """The program in NHWC. Inputs and outputs stay NCHW, with one ``permute`` at each.

    Wants :func:`~fastdiff.build.passes.canonical.canonical`'s spelling.
    """
    rewrite = Rewrite(program)
    layout = _Layout(rewrite)
    for node in list(rewrite.graph.nodes):
        if node.op in ("call_function", "output"):
            layout.visit(node)
    return rewrite.finish()


class _Layout:
    """The mirrors of the nodes visited so far."""

    def __init__(self, rewrite: Rewrite) -> None:
        self.rewrite = rewrite
        self.mirrors: dict[fx.Node, fx.Node] = {}
        self.kept: set[fx.Node] = set()  # nodes with a mirror that cost nothing as they are
        self.permuted: dict[fx.Node, fx.Node] = {}  # mirrors of inputs, first layouts of mirrored nodes

    def visit(self, node: fx.Node) -> None:
        """Give ``node`` a mirror or another form, or let it read its inputs in their first layout."""
        handler = _HANDLERS.get(node.target) if node.op == "call_function" else None
        if handler is None and node.op == "call_function" and _is_pointwise(node.target):
            handler = _pointwise
        if handler is not None and handler(self, node):
            return
        for source in node.all_input_nodes:
            if source in self.mirrors and source not in self.kept:
                node.replace_input_with(source, self.first(node, source))

    def last(self, before: fx.Node, node: fx.Node) -> fx.Node:
        """The value of ``node`` with its channels on the last axis."""
        if node in self.mirrors:
            return self.mirrors[node]
        if node not in self.permuted:
            dims = _to_last(node.meta["val"].dim())
            self.permuted[node] = self.rewrite.call(before, aten.permute.default, node, dims)
        return self.permuted[node]

    def first(self, before: fx.Node, node: fx.Node) -> fx.Node:
        """The value of a mirrored node as it was, with its channels on axis 1."""
        if node not in self.permuted:
            rank = node.meta["val"].dim()
            dims = [0, rank - 1, *range(1, rank - 1)]
            self.permuted[node] = self.rewrite.call(before, aten.permute.default, self.mirrors[node], dims)
            for spec in self.rewrite.signature.output_specs:
                if getattr(spec.arg, "name", None) == node.name:
                    spec.arg = TensorArgument(self.permuted[node].name)
        return self.permuted[node]

    def mirrored(self, node: fx.Node) -> bool:
        return node in self.mirrors


def _to_last(rank: int) -> list[int]:
    """The ``permute`` that moves axis 1 to the end."""
    return [0, *range(2, rank), 1]


def _is_pointwise(target: Any) -> bool:
    return isinstance(target, torch._ops.OpOverload) and torch.Tag.pointwise in target.tags


def _conv2d(layout: _Layout, node: Any) -> bool:
    form = convolution(node)
    if form is None:
        return False
    x: Any = form.x
    padding = form.padding
    if calls(x, aten.constant_pad_nd.default) and x.args[2] == 0 and len(x.args[1]) == 4:
        left, right, top, bottom = x.args[1]
        if min(x.args[1]) >= 0:
            padding = [a + b for a, b in zip(padding, (top, bottom, left, right), strict=True)]
            x = x.args[0]
    rewrite, last = layout.rewrite, layout.last(node, x)
    weight = rewrite.value(form.weight)
    if weight is not None and weight.shape[2:] == (1, 1) and form.stride == 1 and not any(padding):
        matrix = rewrite.add_constant(
            f"{form.weight.name}_matrix", weight.detach().flatten(1), node, rewrite.parts(form.weight)
        )
        op = library.linear._opoverload
        layout.mirrors[node] = rewrite.call(node, op, last, matrix, form.bias, None, "none", 1.0)
    else:
        op = library.conv2d._opoverload
        options = (None, None, form.stride, padding, 1, "none", 1.0)
        layout.mirrors[node] = rewrite.call(node, op, last, form.weight, form.bias, *options)
    return True


def _linear(layout: _Layout, node: Any) -> bool:
    if node.args[1].meta["val"].dim() != 2:
        return False
    x, weight, bias = (*node.args, None)[:3]
    if x in layout.mirrors and x not in layout.kept:
        x = layout.first(node, x)
    op = library.linear._opoverload
    layout.rewrite.replace(node, layout.rewrite.call(node, op, x, weight, bias, None, "none", 1.0))
    return True


def _group_norm_silu(layout: _Layout, node: Any) -> bool:
    x, *options = node.args
    if options[-1] != "NCHW" or x.meta["val"].dim() < 3:
        return False
    last = layout.last(node, x)
    layout.mirrors[node] = layout.rewrite.call(node, node.target, last, *options[:-1], "NHWC")
    return True


def _upsample(layout: _Layout, node: Any) -> bool:
    size = upsampled_size(node)
    return _resample(
        layout, node, library.upsample_nearest2d, upsampling_factor(node), *([] if size is None else [size])
    )


def _avg_pool(layout: _Layout, node: Any) -> bool:
    return _resample(layout, node, library.avg_pool2d, pool_factor(node))


def _resample(layout: _Layout, node: Any, op: Any, factor: int | None, *size: Any) -> bool:
    if factor is None:
        return False
    last = layout.last(node, node.args[0])
    layout.mirrors[node] = layout.rewrite.call(node, op._opoverload, last, factor, *size)
    return True


def _pointwise(layout: _Layout, node: Any) -> bool:
    """Follows when an operand of the result's rank does; operands of a lower rank are broadcast."""
    rank = node.meta["val"].dim()
    if not any(x in layout.mirrors and x.meta["val"].dim() == rank for x in node.all_input_nodes):
        return False

    def last(x: fx.Node) -> fx.Node:
        value = x.meta["val"]
        if not isinstance(value, Tensor) or value.dim() == 0:
            return x
        if value.dim() < rank:
            ones = [1] * (rank - value.dim())
            sizes = [*ones, *(layout.rewrite.size(node, x, axis) for axis in range(value.dim()))]
            source = layout.first(node, x) if layout.mirrored(x) and x not in layout.kept else x
            wide = layout.rewrite.view(node, source, sizes)
            return layout.rewrite.call(node, aten.permute.default, wide, _to_last(rank))
        return layout.last(node, x)

    args, kwargs = fx.map_arg((node.args, node.kwargs), last)
    layout.mirrors[node] = layout.rewrite.call(node, node.target, *args, **kwargs)
    if all(x in layout.kept for x in node.all_input_nodes):
        layout.kept.add(node)
    return True


def _cat(layout: _Layout, node: Any) -> bool:
    parts, axis = node.args[0], node.args[1] if len(node.args) > 1 else 0
    if not any(x in layout.mirrors for x in parts) or any(x.meta["val"].dim() < 3 for x in parts):
        return False
    axis = _axis_in_mirror(node, axis)
    layout.mirrors[node] = layout.rewrite.call(
        node, aten.cat.default, [layout.last(node, x) for x in parts], axis
    )
    return True


def _slice(layout: _Layout, node: Any) -> bool:
    x, axis, *bounds = (*node.args, 0)[: max(2, len(node.args))]
    if x not in layout.mirrors:
        return False
    axis = _axis_in_mirror(x, axis)
    layout.mirrors[node] = layout.rewrite.call(node, aten.slice.Tensor, layout.mirrors[x], axis, *bounds)
    if x in layout.kept:
        layout.kept.add(node)
    return True


def _pad(layout: _Layout, node: Any) -> bool:
    x, pads, *value = node.args
    if x not in layout.mirrors:
        return False
    rank = x.meta["val"].dim()
    per_axis = [(0, 0)] * (rank - len(pads) // 2)  # pads name the last axis first
    per_axis += [tuple(pads[2 * i : 2 * i + 2]) for i in reversed(range(len(pads) // 2))]
    moved = [per_axis[axis] for axis in _to_last(rank)]
    flat = [amount for pair in reversed(moved) for amount in pair]
    last = layout.mirrors[x]
    layout.mirrors[node] = layout.rewrite.call(node, aten.constant_pad_nd.default, last, flat, *value)
    return True


def _view(layout: _Layout, node: Any) -> bool:
    """Follows when batch and channels stay; the other axes may be split or joined."""
    x, sizes = node.args
    given, wanted = x.meta["val"].shape, node.meta["val"].shape
    follows = len(wanted) >= 3 and len(given) >= 2 and (x in layout.mirrors or len(given) == 2)
    if not (follows and same_size(given[0], wanted[0]) and same_size(given[1], wanted[1])):
        if x in layout.mirrors and x not in layout.kept:  # permuted back, which a view may not look through
            layout.rewrite.replace(node, layout.rewrite.view(node, layout.first(node, x), sizes))
            return True
        return False
    last = layout.mirrors.get(x, x)
    layout.mirrors[node] = layout.rewrite.view(node, last, [sizes[0], *sizes[2:], sizes[1]])
    if x not in layout.mirrors or x in layout.kept:
        layout.kept.add(node)
    return True


def _permute(layout: _Layout, node: Any) -> bool:
    x, dims = node.args
    rank = len(dims)
    dims = [axis % rank for axis in dims]
    if x in layout.mirrors:
        x, dims = layout.mirrors[x], [_to_last(rank).index(axis) for axis in dims]
    while calls(x, aten.permute.default):
        x, dims = x.args[0], [x.args[1][axis] for axis in dims]
    if dims == list(range(rank)):
        layout.rewrite.replace(node, x)
    elif rank >= 3 and [dims[axis] for axis in _to_last(rank)] == list(range(rank)):
        layout.mirrors[node] = x
        node.args = (x, dims)
        layout.kept.add(node)
    else:
        node.args = (x, dims)
    return True


def _sym_size(layout: _Layout, node: Any) -> bool:
    x, axis = node.args
    if x in layout.mirrors:
        node.args = (layout.mirrors[x], _axis_in_mirror(x, axis))
    return True


def _axis_in_mirror(node: fx.Node, axis: int) -> int:
    rank = node.meta["val"].dim()
    return _to_last(rank).index(axis % rank)


_HANDLERS: dict[Any, Any] = {
    _QUICK_GELU: _pointwise,
    aten.avg_pool2d.default: _avg_pool,
    aten.cat.default: _cat,
    aten.constant_pad_nd.default: _pad,
    aten.conv2d.default: _conv2d,
    aten.convolution.default: _conv2d,
    aten.linear.default: _linear,
    aten.permute.default: _permute,
    aten.slice.Tensor: _slice,
    aten.sym_size.int: _sym_size,
    aten.upsample_nearest2d.default: _upsample,
    aten.upsample_nearest2d.vec: _upsample,
    aten.view.default: _view,
    library.group_norm_silu._opoverload: _group_norm_silu,
}
"""Functions of the layout and a node: True when they have given it a mirror or another form."""
