"""epilogues: what follows a convolution or a linear layer moves into it, as far as nothing else needs it.

::

    scale · (activation(conv2d(upsample_nearest2d(x)) + bias + vector[:, None, None, :]) + residual)
    scale · (activation(linear(x) + bias) + residual)

Each step may only be followed by those right of it, and takes its op's place in the graph at the node that it
absorbs, where all operands exist. Of two producers that a sum could move into, the later one takes it: the
other's result is there by then.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, fx
from torch.export import ExportedProgram

from fastdiff.build.passes.rewrite import Rewrite, calls, same_size
from fastdiff.kernels import library

__all__ = ["fuse_epilogues"]

aten = torch.ops.aten
_CONV2D, _LINEAR = library.conv2d._opoverload, library.linear._opoverload
_UPSAMPLE = library.upsample_nearest2d._opoverload
_ACTIVATIONS: dict[Any, str] = {
    aten.gelu.default: "gelu",
    aten.silu.default: "silu",
    library.geglu._opoverload: "geglu",
    library.quick_gelu._opoverload: "quick_gelu",
}


@dataclass(frozen=True)
class _Producer:
    """Arguments of a ``conv2d``, with ``spatial`` (stride, padding, upsample), or of a ``linear`` node.

    ``size`` is that of the upsampled picture where it is not a multiple of ``x``'s.
    """

    x: fx.Node
    weight: fx.Node
    bias: fx.Node | None
    vector: fx.Node | None
    residual: fx.Node | None
    spatial: tuple[int, list[int], int] | None
    activation: str
    scale: float
    size: list[Any] | None = None

    @classmethod
    def of(cls, node: Any) -> _Producer:
        if node.target is _CONV2D:
            x, weight, bias, vector, residual, stride, padding, upsample, activation, scale, *size = node.args
            spatial = (stride, padding, upsample)
            return cls(x, weight, bias, vector, residual, spatial, activation, scale, *size)
        x, weight, bias, residual, activation, scale = node.args
        return cls(x, weight, bias, None, residual, None, activation, scale)

    def call(self, rewrite: Rewrite, before: fx.Node) -> fx.Node:
        first, last = (self.x, self.weight, self.bias), (self.activation, self.scale)
        if self.spatial is None:
            return rewrite.call(before, _LINEAR, *first, self.residual, *last)
        size = [] if self.size is None else [self.size]
        return rewrite.call(before, _CONV2D, *first, self.vector, self.residual, *self.spatial, *last, *size)


def fuse_epilogues(program: ExportedProgram) -> ExportedProgram:
    """The program with every step that ``fastdiff::conv2d`` and ``fastdiff::linear`` can take inside them."""
    rewrite = Rewrite(program)
    positions = {node: index for index, node in enumerate(rewrite.graph.nodes)}
    for node in list(rewrite.graph.nodes):
        step = _STEPS.get(node.target) if node.op == "call_function" else None
        fused = step(rewrite, node, positions) if step is not None else None
        if fused is not None:
            positions[fused] = positions[node]
            rewrite.replace(node, fused)
            _erase(rewrite, node)
    return rewrite.finish()


def _erase(rewrite: Rewrite, node: fx.Node) -> None:
    """Remove ``node`` and what only it used, so that users are counted right afterwards."""
    sources = node.all_input_nodes
    rewrite.graph.erase_node(node)
    for source in sources:
        if source.op == "call_function" and not source.users:
            _erase(rewrite, source)


def _producer(node: Any) -> _Producer | None:
    """The convolution or linear layer that ``node`` is, if only one node uses it."""
    return _Producer.of(node) if calls(node, _CONV2D, _LINEAR) and len(node.users) == 1 else None


def _add(rewrite: Rewrite, node: Any, positions: dict[fx.Node, int]) -> fx.Node | None:
    """``y + vector`` or ``y + residual``."""
    if node.kwargs.get("alpha", 1) != 1 or not all(isinstance(x, fx.Node) for x in node.args[:2]):
        return None
    pairs = [(a, b) for a, b in (node.args, node.args[::-1]) if a is not b]
    for y, other in sorted(pairs, key=lambda pair: positions.get(pair[0], 0), reverse=True):
        producer = _producer(y)
        if producer is None or producer.residual is not None or producer.scale != 1:
            continue
        if _same_shape(y, other):
            return replace(producer, residual=other).call(rewrite, node)
        vector = _vector(rewrite, node, y, other)
        free = producer.vector is None and producer.activation == "none" and producer.spatial is not None
        if free and vector is not None:
            return replace(producer, vector=vector).call(rewrite, node)
    return None


def _vector(rewrite: Rewrite, node: fx.Node, y: fx.Node, other: Any) -> fx.Node | None:
    """``v`` [B, C] when ``other`` is it as [B, 1, 1, C], to be added to ``y`` [B, H, W, C]."""
    picture, given = y.meta["val"].shape, other.meta["val"].shape
    if len(given) != 4 or not (given[1] == given[2] == 1):
        return None
    if not (same_size(given[0], picture[0]) and same_size(given[3], picture[3])):
        return None
    source: fx.Node | None = other.args[0] if calls(other, aten.view.default) else None
    if source is not None and source.meta["val"].dim() == 2 and _same_shape(source, other, (0, 3)):
        return source
    return rewrite.view(node, other, [rewrite.size(node, other, 0), given[3]])


def _same_shape(a: fx.Node, b: fx.Node, axes: tuple[int, ...] | None = None) -> bool:
    """Whether ``a`` has the shape of ``b``, or of some axes of ``b``."""
    given, wanted = a.meta["val"].shape, b.meta["val"].shape
    sizes = wanted if axes is None else [wanted[axis] for axis in axes]
    return len(given) == len(sizes) and all(same_size(g, w) for g, w in zip(given, sizes, strict=True))


def _activate(rewrite: Rewrite, node: Any, _: object) -> fx.Node | None:
    producer, activation = _producer(node.args[0]), _ACTIVATIONS[node.target]
    if producer is None or node.kwargs.get("approximate", "none") != "none":
        return None
    if producer.activation != "none" or producer.residual is not None or producer.scale != 1:
        return None
    if activation == "geglu" and producer.spatial is not None:
        return None
    return replace(producer, activation=activation).call(rewrite, node)


def _multiply(rewrite: Rewrite, node: Any, _: object) -> fx.Node | None:
    for y, factor in (node.args, node.args[::-1]):
        producer, number = _producer(y), _number(rewrite, factor)
        if producer is not None and number is not None:
            return replace(producer, scale=producer.scale * number).call(rewrite, node)
    return None


def _divide(rewrite: Rewrite, node: Any, _: object) -> fx.Node | None:
    producer, divisor = _producer(node.args[0]), _number(rewrite, node.args[1])
    if producer is None or not divisor or node.kwargs:
        return None
    return replace(producer, scale=producer.scale / divisor).call(rewrite, node)


def _number(rewrite: Rewrite, operand: Any) -> float | None:
    """The value of a number or of a constant without axes."""
    if isinstance(operand, (int, float)) and not isinstance(operand, bool):
        return float(operand)
    value = rewrite.value(operand) if isinstance(operand, fx.Node) else None
    return float(value) if isinstance(value, Tensor) and value.dim() == 0 else None


def _convolve(rewrite: Rewrite, node: Any, _: object) -> fx.Node | None:
    """A convolution of an upsampled picture that nothing else uses."""
    producer = _Producer.of(node)
    up: Any = producer.x
    if not calls(up, _UPSAMPLE) or len(up.users) != 1 or producer.spatial is None:
        return None
    stride, padding, factor = producer.spatial
    x, more, *size = up.args
    if factor > 1 and (size or producer.size is not None):
        return None
    spatial = (stride, padding, factor * more)
    return replace(producer, x=x, spatial=spatial, size=size[0] if size else None).call(rewrite, node)


def _reshape(rewrite: Rewrite, node: Any, _: object) -> fx.Node | None:
    """A view of a linear layer's result that keeps the channels goes in front of it, out of the sum's way."""
    producer = _producer(node.args[0])
    if producer is None or producer.spatial is not None or producer.residual is not None:
        return None
    sizes, channels = node.args[1], node.args[0].meta["val"].shape[-1]
    if node.meta["val"].dim() < 2 or not same_size(node.meta["val"].shape[-1], channels):
        return None
    x = rewrite.view(node, producer.x, [*sizes[:-1], producer.x.meta["val"].shape[-1]])
    return replace(producer, x=x).call(rewrite, node)


_Step = Callable[[Rewrite, Any, dict[fx.Node, int]], fx.Node | None]
_STEPS: dict[Any, _Step] = {
    **dict.fromkeys(_ACTIVATIONS, _activate),
    _CONV2D: _convolve,
    aten.add.Tensor: _add,
    aten.div.Scalar: _divide,
    aten.div.Tensor: _divide,
    aten.mul.Scalar: _multiply,
    aten.mul.Tensor: _multiply,
    aten.view.default: _reshape,
}
"""Functions that give the node which takes a node's place, or None."""
