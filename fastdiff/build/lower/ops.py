"""How each op of the fused graph becomes nodes: one function per op or family of ops.

docs/native.md lists the ops with their inputs, attributes and weights.
"""

from __future__ import annotations

import math
import operator
from typing import Any

import torch
from torch import fx

from fastdiff.build.lower.lowering import Lowering, lowers
from fastdiff.kernels import library

aten = torch.ops.aten

_UNARY = {
    aten.cos.default: "cos",
    aten.exp.default: "exp",
    aten.neg.default: "negate",
    aten.relu.default: "relu",
    aten.sigmoid.default: "sigmoid",
    aten.silu.default: "silu",
    aten.sin.default: "sin",
    aten.sqrt.default: "sqrt",
    aten.tanh.default: "tanh",
    library.quick_gelu._opoverload: "quick_gelu",
}
_RESHAPES = (
    aten.flatten.using_ints,
    aten.reshape.default,
    aten.squeeze.default,
    aten.squeeze.dim,
    aten.squeeze.dims,
    aten.unflatten.int,
    aten.unsqueeze.default,
    aten.view.default,
)
_MOST_TAPS = 49
"""Of a convolution's kernel, as csrc/kernels/conv2d.h has it."""
_COPIES = (aten.clone.default, aten.contiguous.default)


@lowers(library.conv2d._opoverload)
def _conv2d(to: Lowering, node: fx.Node) -> None:
    a = _arguments(node)
    kernel_h, kernel_w = a["weight"].meta["val"].shape[2:]
    if kernel_h * kernel_w > _MOST_TAPS or to.integer(a["upsample"], node) not in (1, 2):
        raise to.error(
            node,
            f"its kernel is {kernel_h}×{kernel_w} and upsampling {a['upsample']}, wanted at most"
            f" {_MOST_TAPS} taps and upsampling by 1 or 2",
        )
    top, bottom, left, right = (to.integer(pad, node) for pad in a["padding"])
    attributes = {
        "in": a["weight"].meta["val"].shape[1],
        "out": a["weight"].meta["val"].shape[0],
        "kernel_h": kernel_h,
        "kernel_w": kernel_w,
        "stride": to.integer(a["stride"], node),
        "pad_top": top,
        "pad_bottom": bottom,
        "pad_left": left,
        "pad_right": right,
        "upsample": to.integer(a["upsample"], node),
        "activation": a["activation"],
        "scale": float(a["scale"]),
    }
    inputs = (to.value(a["x"], node), to.optional(a["vector"], node), to.optional(a["residual"], node))
    to.emit_layer(node, "conv2d", inputs, attributes, a["weight"], a["bias"])


@lowers(library.linear._opoverload)
def _linear(to: Lowering, node: fx.Node) -> None:
    a = _arguments(node)
    attributes = {
        "in": a["weight"].meta["val"].shape[1],
        "out": node.meta["val"].shape[-1],
        "activation": a["activation"],
        "scale": float(a["scale"]),
    }
    inputs = (to.value(a["x"], node), to.optional(a["residual"], node))
    to.emit_layer(node, "linear", inputs, attributes, a["weight"], a["bias"])


@lowers(library.group_norm_silu._opoverload)
def _group_norm_silu(to: Lowering, node: fx.Node) -> None:
    a = _arguments(node)
    if a["layout"] != "NHWC":
        raise to.error(node, f"its layout is {a['layout']}, wanted NHWC, as the passes leave it")
    attributes = {
        "groups": to.integer(a["num_groups"], node),
        "eps": float(a["eps"]),
        "silu": int(a["silu"]),
    }
    to.emit(node, "group_norm_silu", (to.value(a["x"], node),), attributes, _affine(to, node, a))


@lowers(aten.layer_norm.default)
def _layer_norm(to: Lowering, node: fx.Node) -> None:
    a = _arguments(node)
    if len(a["normalized_shape"]) != 1:
        raise to.error(node, f"it normalises {len(a['normalized_shape'])} axes, wanted the last alone")
    attributes = {"eps": float(a["eps"])}
    to.emit(node, "layer_norm", (to.value(a["input"], node),), attributes, _affine(to, node, a))


@lowers(library.attention._opoverload)
def _attention(to: Lowering, node: fx.Node) -> None:
    a = _arguments(node)
    inputs = tuple(to.value(a[name], node) for name in ("query", "key", "value"))
    attributes = {
        "heads": to.integer(a["num_heads"], node),
        "scale": float(a["scale"]),
        "causal": int(a["causal"]),
    }
    to.emit(node, "attention", inputs, attributes)


@lowers(aten.index.Tensor)
def _select_token(to: Lowering, node: fx.Node) -> None:
    selection = to.selections.get(node)
    if selection is None:
        raise to.error(node, "it takes other elements than one token of each prompt, by its id")
    inputs = (to.value(selection.x, node), to.value(selection.ids, node))
    to.emit(node, "select_token", inputs, {"token": selection.token})


@lowers(library.geglu._opoverload)
def _geglu(to: Lowering, node: fx.Node) -> None:
    to.emit(node, "geglu", (to.value(node.args[0], node),))


@lowers(aten.embedding.default)
def _embedding(to: Lowering, node: fx.Node) -> None:
    a = _arguments(node)
    ids = to.value(a["indices"], node)
    to.emit(node, "embedding", (ids,), {}, {"table": to.array(a["weight"], node)})


@lowers(library.timestep_embedding._opoverload)
def _timestep_embedding(to: Lowering, node: fx.Node) -> None:
    a = _arguments(node)
    weights = {"frequencies": to.array(a["frequencies"], node)}
    inputs = (to.value(a["timesteps"], node),)
    to.emit(node, "timestep_embedding", inputs, {"sine_first": int(a["sine_first"])}, weights)


@lowers(library.token_match._opoverload)
def _token_match(to: Lowering, node: fx.Node) -> None:
    a = _arguments(node)
    attributes = {name: to.integer(a[name], node) for name in ("numerator", "denominator")}
    to.emit(node, "token_match", (to.value(a["x"], node),), attributes)


@lowers(library.token_merge._opoverload, library.token_unmerge._opoverload)
def _token_merge(to: Lowering, node: fx.Node) -> None:
    a = _arguments(node)
    op = "token_merge" if node.target is library.token_merge._opoverload else "token_unmerge"
    to.emit(node, op, (to.value(a["x"], node), to.value(a["plan"], node)))


@lowers(library.upsample_nearest2d._opoverload, library.avg_pool2d._opoverload)
def _resample(to: Lowering, node: fx.Node) -> None:
    a = _arguments(node)
    op = "upsample_nearest2d" if node.target is library.upsample_nearest2d._opoverload else "avg_pool2d"
    to.emit(node, op, (to.value(a["x"], node),), {"factor": to.integer(a["factor"], node)})


@lowers(*_UNARY)
def _unary(to: Lowering, node: fx.Node) -> None:
    to.emit(node, _UNARY[node.target], (to.value(node.args[0], node),))


@lowers(aten.gelu.default)
def _gelu(to: Lowering, node: fx.Node) -> None:
    a = _arguments(node)
    op = {"none": "gelu", "tanh": "gelu_tanh"}[a["approximate"]]
    to.emit(node, op, (to.value(a["self"], node),))


@lowers(aten.clamp.default)
def _clamp(to: Lowering, node: fx.Node) -> None:
    a = _arguments(node)
    low = -math.inf if a["min"] is None else float(a["min"])
    high = math.inf if a["max"] is None else float(a["max"])
    to.emit(node, "clamp", (to.value(a["self"], node),), {"low": low, "high": high})


@lowers(aten.add.Tensor, aten.add.Scalar, aten.sub.Tensor, aten.sub.Scalar)
def _add(to: Lowering, node: fx.Node) -> None:
    a = _arguments(node)
    left, right, alpha = a["self"], a["other"], float(a["alpha"])
    subtract = node.target in (aten.sub.Tensor, aten.sub.Scalar)
    number = to.scalar(right)
    if number is not None:
        scalar = -alpha * number if subtract else alpha * number
        to.emit(node, "add_scalar", (to.value(left, node),), {"scalar": scalar})
        return
    if alpha != 1:
        raise to.error(node, f"its alpha is {alpha}, wanted 1")
    number = to.scalar(left)
    if number is not None and not subtract:
        to.emit(node, "add_scalar", (to.value(right, node),), {"scalar": number})
        return
    _binary(to, node, "subtract" if subtract else "add", left, right)


@lowers(aten.mul.Tensor, aten.mul.Scalar)
def _mul(to: Lowering, node: fx.Node) -> None:
    left, right = node.args[:2]
    for operand, other in ((left, right), (right, left)):
        number = to.scalar(other)
        if number is not None:
            to.emit(node, "mul_scalar", (to.value(operand, node),), {"scalar": number})
            return
    _binary(to, node, "multiply", left, right)


@lowers(aten.div.Tensor, aten.div.Scalar)
def _div(to: Lowering, node: fx.Node) -> None:
    left, right = node.args[:2]
    number = to.scalar(right)
    if number is not None:
        to.emit(node, "mul_scalar", (to.value(left, node),), {"scalar": 1.0 / number})
        return
    _binary(to, node, "divide", left, right)


def _binary(to: Lowering, node: fx.Node, op: str, left: Any, right: Any) -> None:
    to.emit(node, op, (to.value(left, node), to.value(right, node)))


@lowers(aten.cat.default)
def _cat(to: Lowering, node: fx.Node) -> None:
    a = _arguments(node)
    axis = _axis(node, a["dim"])
    if len(a["tensors"]) == 1:
        to.same(node, to.value(a["tensors"][0], node))
        return
    inputs = tuple(to.value(part, node) for part in a["tensors"])
    to.emit(node, "concat", inputs, {"axis": axis})


@lowers(aten.slice.Tensor)
def _slice(to: Lowering, node: fx.Node) -> None:
    a = _arguments(node)
    if to.integer(a["step"], node) != 1:
        raise to.error(node, f"its step is {a['step']}, wanted 1")
    axis = _axis(node, a["dim"])
    start = 0 if a["start"] is None else to.integer(a["start"], node)
    if start < 0:
        start += to.integer(a["self"].meta["val"].shape[axis], node)
    to.emit(node, "slice", (to.value(a["self"], node),), {"axis": axis, "start": max(start, 0)})


@lowers(operator.getitem)
def _part(to: Lowering, node: fx.Node) -> None:
    """One part of what ``chunk`` or ``split`` took apart."""
    split: Any = node.args[0]
    index: Any = node.args[1]
    targets = (aten.chunk.default, aten.split.Tensor, aten.split_with_sizes.default)
    if split.target not in targets:
        raise to.error(node, f"it takes a part of {split.target}, wanted one of chunk and split")
    axis = _axis(node, _arguments(split)["dim"])
    parts = split.meta["val"]
    start = sum(to.integer(part.shape[axis], node) for part in parts[:index])
    to.emit(node, "slice", (to.value(split.args[0], node),), {"axis": axis, "start": start})


@lowers(*_RESHAPES)
def _reshape(to: Lowering, node: fx.Node) -> None:
    to.emit(node, "reshape", (to.value(node.args[0], node),))


@lowers(aten.expand.default)
def _expand(to: Lowering, node: fx.Node) -> None:
    to.emit(node, "expand", (to.value(node.args[0], node),))


@lowers(aten.permute.default, aten.transpose.int)
def _permute(to: Lowering, node: fx.Node) -> None:
    a = _arguments(node)
    if node.target is aten.permute.default:
        axes = [_axis(node, axis) for axis in a["dims"]]
    else:
        axes = list(range(node.meta["val"].dim()))
        first, second = _axis(node, a["dim0"]), _axis(node, a["dim1"])
        axes[first], axes[second] = axes[second], axes[first]
    to.emit(node, "permute", (to.value(a["self"], node),), {"axes": tuple(axes)})


@lowers(*_COPIES)
def _same(to: Lowering, node: fx.Node) -> None:
    to.same(node, to.value(node.args[0], node))


def _affine(to: Lowering, node: fx.Node, arguments: dict[str, Any]) -> dict[str, int]:
    """The weights of a normalisation, those that are given."""
    ids = {role: to.optional_array(arguments[role], node) for role in ("weight", "bias")}
    return {role: weight for role, weight in ids.items() if weight is not None}


def _axis(node: fx.Node, axis: int) -> int:
    """The axis of the tensor that ``node`` gives, counted from the front; views keep the number of axes."""
    return axis % int(node.meta["val"].dim())


def _arguments(node: fx.Node) -> dict[str, Any]:
    """All arguments of a node by the names in its op's schema, with defaults."""
    schema = node.target._schema.arguments  # type: ignore[union-attr]
    values = {argument.name: argument.default_value for argument in schema}
    values.update({argument.name: value for argument, value in zip(schema, node.args, strict=False)})
    return {**values, **node.kwargs}
