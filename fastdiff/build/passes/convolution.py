"""What the exporter's convolutions and resamplings compute, where the native ops can compute it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from fastdiff.build.passes.rewrite import same_size

__all__ = ["Convolution", "convolution", "pool_factor", "upsampled_size", "upsampling_factor"]

aten = torch.ops.aten

_AVG_POOL2D_DEFAULTS: tuple[Any, ...] = ([], [0, 0], False, True, None)
"""Of ``avg_pool2d``'s arguments after ``x`` and the window."""
_CONV2D_DEFAULTS: tuple[Any, ...] = (None, [1, 1], [0, 0], [1, 1], 1)
"""Of ``conv2d``'s arguments after ``x`` and ``weight``."""


@dataclass(frozen=True)
class Convolution:
    """A convolution of ``x`` [B, C, H, W] with the same stride both ways, no groups and no dilation.

    ``padding``: zeros at the top, bottom, left and right.
    """

    x: fx.Node
    weight: fx.Node
    bias: fx.Node | None
    stride: int
    padding: list[int]


def convolution(node: Any) -> Convolution | None:
    """The convolution that a ``conv2d`` or ``convolution`` node is, None when it is of another kind."""
    x, weight = node.args[:2]
    rest: tuple[Any, ...] = node.args[2:]
    if node.target is aten.convolution.default:
        bias, stride, padding, dilation, transposed, _, groups = rest
        if transposed:
            return None
    else:
        bias, stride, padding, dilation, groups = (*rest, *_CONV2D_DEFAULTS[len(rest) :])
    if x.meta["val"].dim() != 4 or groups != 1 or any(step != 1 for step in dilation):
        return None
    across, down = (list(stride) * 2)[:2]
    rows, columns = (list(padding) * 2)[:2]
    if across != down:
        return None
    return Convolution(x, weight, bias, across, [rows, rows, columns, columns])


def upsampling_factor(node: Any) -> int | None:
    """By which integer an ``upsample_nearest2d`` node enlarges, the same both ways; None when by none."""
    x, size, *rest = node.args
    scales = rest if node.target is aten.upsample_nearest2d.default else (rest or [None])[0]
    given, result = x.meta["val"].shape[2:], node.meta["val"].shape[2:]
    if scales and scales[0] is not None:
        factor = scales[0]
    elif size is not None and isinstance(given[0], int) and isinstance(result[0], int):
        factor = -(-result[0] // given[0])
    else:
        factor = 2.0
    sides = list(zip(given, result, strict=True))
    known = factor == int(factor) and (
        all(same_size(r, int(factor) * g) for g, r in sides)
        or (factor == 2 and all(_rounded_up(g, r) for g, r in sides))
    )
    return int(factor) if known else None


def upsampled_size(node: Any) -> list[Any] | None:
    """Rows and columns of an ``upsample_nearest2d`` node's result where a picture that was halved, rounding
    up, is enlarged to its size of before: nearest pixels are then the first ones of the doubled picture's.
    None where all of them are there.
    """
    factor = upsampling_factor(node)
    given, result = node.args[0].meta["val"].shape[2:], node.meta["val"].shape[2:]
    if factor is None or all(same_size(r, factor * g) for g, r in zip(given, result, strict=True)):
        return None
    return list(node.args[1])


def _rounded_up(given: Any, result: Any) -> bool:
    """Whether ``given`` is half of ``result``, rounded up. Parts by 3 and more have other nearest pixels."""
    return same_size(given, (result - 1) // 2 + 1)


def pool_factor(node: Any) -> int | None:
    """The side of the squares over which an ``avg_pool2d`` node takes means, None for another window."""
    kernel = node.args[1]
    rest: tuple[Any, ...] = node.args[2:]
    stride, padding, ceil_mode, _, divisor = (*rest, *_AVG_POOL2D_DEFAULTS[len(rest) :])
    sides = {*kernel, *(stride or kernel)}
    if len(sides) != 1 or any(padding) or ceil_mode or divisor is not None:
        return None
    return int(sides.pop())
