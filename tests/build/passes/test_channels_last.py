"""The channels_last pass: what follows into NHWC, what stays, and how many permutes are left."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.nn import functional

from fastdiff.build.passes.activations import fuse_activations
from fastdiff.build.passes.canonical import canonical
from fastdiff.build.passes.channels_last import channels_last
from fastdiff.build.passes.group_norm_silu import fuse_group_norm_silu
from fastdiff.build.passes.normalise import normalise
from tests.build.passes.conftest import fused_function, tensor_operators

X = torch.randn(2, 12, 6, 8)
VECTOR = torch.randn(2, 12)
CONV, LINEAR, PERMUTE, VIEW = "fastdiff.conv2d", "fastdiff.linear", "aten.permute", "aten.view"


def rewrite(program: ExportedProgram) -> ExportedProgram:
    fused = fuse_group_norm_silu(fuse_activations(normalise(program)))
    return channels_last(canonical(fused))


def check(function: Callable[..., Any], wanted: dict[str, int], *inputs: Tensor) -> ExportedProgram:
    _, program = fused_function(function, rewrite, *inputs)
    assert tensor_operators(program) == wanted
    return program


def arguments(program: ExportedProgram, target: str) -> list[Any]:
    return [n.args for n in program.graph.nodes if str(n.target) == f"{target}.default"]


def tokens(x: Tensor) -> Tensor:
    return x.permute(0, 2, 3, 1).reshape(x.shape[0], x.shape[2] * x.shape[3], x.shape[1])


def picture(y: Tensor, x: Tensor) -> Tensor:
    return y.reshape(x.shape[0], x.shape[2], x.shape[3], x.shape[1]).permute(0, 3, 1, 2).contiguous()


def transformer(m: nn.Module, x: Tensor) -> Tensor:
    """Diffusers' Transformer2DModel."""
    return m.point(picture(m.q(tokens(m.point(m.norm(x)))), x)) + x


def attention_block(m: nn.Module, x: Tensor) -> Tensor:
    """Diffusers' attention of UNet2DModel and AutoencoderKL."""
    x = m.conv(x)
    y = x.view(x.shape[0], 12, x.shape[2] * x.shape[3]).transpose(1, 2)
    y = m.q(m.norm(y.transpose(1, 2)).transpose(1, 2))
    return y.transpose(-1, -2).reshape(x.shape) + x


def scale_shift(m: nn.Module, x: Tensor, v: Tensor) -> Tensor:
    scale, shift = m.wide(v)[:, :, None, None].chunk(2, dim=1)
    return functional.silu(m.norm(m.conv(x)) * (1 + scale) + shift)


def padded(m: nn.Module, x: Tensor, **options: Any) -> Tensor:
    return functional.conv2d(functional.pad(x, (0, 1, 2, 3), **options), m.conv.weight, stride=2)


FOLLOW = {
    "conv": (lambda m, x: m.conv(x), {CONV: 1}),
    "several": (
        lambda m, x: m.conv(functional.silu(m.norm(m.conv(x)))),
        {CONV: 2, "fastdiff.group_norm_silu": 1},
    ),
    "1x1": (lambda m, x: m.point(x), {LINEAR: 1}),
    "1x1 stride 2": (lambda m, x: functional.conv2d(x, m.point.weight, None, 2), {CONV: 1}),
    "1x1 padded": (lambda m, x: functional.conv2d(x, m.point.weight, None, 1, 1), {CONV: 1}),
    "padding": (padded, {CONV: 1}),
    "cat": (lambda m, x: torch.cat([m.conv(x), x], 1), {CONV: 1, "aten.cat": 1}),
    "cat of rows": (lambda m, x: torch.cat([m.conv(x), x], 2), {CONV: 1, "aten.cat": 1}),
    "chunk": (
        lambda m, x: (lambda a, b: a * b)(*m.conv(x).chunk(2, 1)),
        {CONV: 1, "aten.slice": 2, "aten.mul": 1},
    ),
    "rows": (lambda m, x: m.conv(x)[:, :, 1:-1, ::2] + 1, {CONV: 1, "aten.slice": 2, "aten.add": 1}),
    "upsample": (
        lambda m, x: functional.interpolate(m.conv(x), scale_factor=2.0),
        {CONV: 1, "fastdiff.upsample_nearest2d": 1},
    ),
    "upsample by 3": (
        lambda m, x: functional.interpolate(m.conv(x), scale_factor=3.0),
        {CONV: 1, "fastdiff.upsample_nearest2d": 1},
    ),
    "upsample to a size": (
        lambda m, x: functional.interpolate(m.conv(x), size=(2 * x.shape[2], 2 * x.shape[3])),
        {CONV: 1, "fastdiff.upsample_nearest2d": 1},
    ),
    "upsample to odd sizes": (
        lambda m, x: functional.interpolate(m.conv(x), size=(2 * x.shape[2] - 1, 2 * x.shape[3] - 1)),
        {CONV: 1, "fastdiff.upsample_nearest2d": 1},
    ),
    "pool": (lambda m, x: functional.avg_pool2d(m.conv(x), 2, 2), {CONV: 1, "fastdiff.avg_pool2d": 1}),
    "quick gelu": (
        lambda m, x: (lambda y: y * torch.sigmoid(1.702 * y))(m.conv(x)),
        {CONV: 1, "fastdiff.quick_gelu": 1},
    ),
    "a number per channel": (
        lambda m, x: m.conv(x) * m.point.weight[0] + 2,
        {CONV: 1, "aten.select": 1, VIEW: 1, "aten.mul": 1, "aten.add": 1, PERMUTE: 3},
    ),
    "transformer": (transformer, {LINEAR: 3, VIEW: 2, "fastdiff.group_norm_silu": 1, "aten.add": 1}),
    "attention block": (
        attention_block,
        {CONV: 1, LINEAR: 1, VIEW: 2, "fastdiff.group_norm_silu": 1, "aten.add": 1},
    ),
    "sizes of a picture": (
        lambda m, x: (lambda y: y * y.shape[2] * y.shape[3])(m.conv(x)),
        {CONV: 1, "aten.mul": 2},
    ),
}


@pytest.mark.parametrize("name", FOLLOW)
def test_follows(name: str) -> None:
    function, wanted = FOLLOW[name]
    check(function, {PERMUTE: 2, **wanted}, X)


STAY = {
    "groups": (
        lambda m, x: functional.conv2d(x, m.conv.weight[:, :4], groups=3),
        {"aten.slice": 1, "aten.conv2d": 1},
    ),
    "dilation": (lambda m, x: functional.conv2d(x, m.conv.weight, dilation=2), {"aten.conv2d": 1}),
    "two strides": (lambda m, x: functional.conv2d(x, m.conv.weight, stride=(1, 2)), {"aten.conv2d": 1}),
    "a transposed convolution": (
        lambda m, x: functional.conv_transpose2d(x, m.conv.weight),
        {"aten.conv_transpose2d": 1},
    ),
    "upsampling by 1.5": (
        lambda m, x: functional.interpolate(x, scale_factor=1.5),
        {"aten.upsample_nearest2d": 1},
    ),
    "thirds that were rounded up": (
        lambda m, x: functional.interpolate(x, size=(3 * x.shape[2] - 2, 3 * x.shape[3] - 2)),
        {"aten.upsample_nearest2d": 1},
    ),
    "overlapping windows": (lambda m, x: functional.avg_pool2d(x, 3, 2), {"aten.avg_pool2d": 1}),
    "padded windows": (lambda m, x: functional.avg_pool2d(x, 2, 2, 1), {"aten.avg_pool2d": 1}),
    "a picture without convolutions": (lambda m, x: functional.silu(x) + x, {"aten.silu": 1, "aten.add": 1}),
}


@pytest.mark.parametrize("name", STAY)
def test_stays(name: str) -> None:
    function, wanted = STAY[name]
    check(function, wanted, X)


def test_what_cannot_follow_is_permuted_back() -> None:
    # a 1×1 convolution on each side of one that stays
    check(
        lambda m, x: m.point(functional.conv2d(m.point(x), m.conv.weight, dilation=2)),
        {LINEAR: 2, "aten.conv2d": 1, PERMUTE: 4},
        X,
    )
    check(lambda m, x: m.conv(x).mean((2, 3)), {CONV: 1, "aten.mean": 1, PERMUTE: 2}, X)
    check(lambda m, x: m.conv(x).flatten(1), {CONV: 1, "aten.reshape": 1, PERMUTE: 2}, X)


def test_padding_goes_into_the_convolution() -> None:
    _, program = fused_function(padded, rewrite, X)
    (call,) = arguments(program, CONV)
    assert call[5:] == (2, [2, 3, 0, 1], 1, "none", 1.0)


def test_other_padding_stays_in_front() -> None:
    wanted = {CONV: 1, PERMUTE: 2, "aten.constant_pad_nd": 1}
    check(lambda m, x: padded(m, functional.silu(x), value=1.5), {"aten.silu": 1, **wanted}, X)
    cropped = {LINEAR: 1, CONV: 1, "aten.pad": 1, PERMUTE: 4}
    check(lambda m, x: m.conv(functional.pad(m.point(x), (-1, 0, 0, 2))), cropped, X)


def test_vectors_are_broadcast_over_the_picture() -> None:
    check(
        lambda m, x, v: m.conv(x) + m.q(v)[:, :, None, None],
        {CONV: 1, LINEAR: 1, VIEW: 1, "aten.add": 1, PERMUTE: 2},
        X,
        VECTOR,
    )
    check(
        scale_shift,
        {
            CONV: 1,
            LINEAR: 1,
            VIEW: 1,
            "aten.slice": 2,
            "fastdiff.group_norm_silu": 1,
            "aten.add": 2,
            "aten.mul": 1,
            "aten.silu": 1,
            PERMUTE: 2,
        },
        X,
        VECTOR,
    )


def test_several_outputs() -> None:
    # one in each layout, one that is an input, one twice
    def function(m: nn.Module, x: Tensor) -> tuple[Tensor, ...]:
        y = m.conv(x)
        return y, y.permute(0, 2, 3, 1), x, y

    check(function, {CONV: 1, PERMUTE: 2}, X)


def test_weights_are_not_kept_twice() -> None:
    _, program = fused_function(lambda m, x: m.point(x), rewrite, X)
    assert "point.weight" not in program.state_dict
    (matrix,) = program.constants.values()
    assert matrix.shape == (12, 12)
