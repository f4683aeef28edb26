"""The epilogues pass: what moves into a convolution or a linear layer and how, and what stays."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.nn import functional

from fastdiff.build.passes import FUSIONS, PASSES, run_passes
from tests.build.passes.conftest import fused_function, tensor_operators

X, VECTOR, TOKENS = torch.randn(2, 12, 6, 8), torch.randn(2, 12), torch.randn(2, 5, 12)
CONV, LINEAR = "fastdiff.conv2d", "fastdiff.linear"
ALONE = {"vector": None, "residual": None, "upsample": 1, "activation": "none", "scale": 1.0, "size": None}


def rewrite(program: ExportedProgram) -> ExportedProgram:
    return run_passes(program, PASSES + FUSIONS)


def fuse(function: Callable[..., Any], *inputs: Tensor) -> tuple[dict[str, int], list[dict[str, Any]]]:
    """Operators but permutes and views, and the epilogues of convolutions and linear layers in their order.

    A vector or residual is the name of the operator that computes it, "" for an input.
    """
    _, program = fused_function(function, rewrite, *inputs)
    counts = tensor_operators(program)
    found = []
    for node in program.graph.nodes:
        if node.target in (torch.ops.fastdiff.conv2d.default, torch.ops.fastdiff.linear.default):
            names = [argument.name for argument in node.target._schema.arguments]
            arguments = {**ALONE, **dict(zip(names, node.args, strict=False))}
            found.append({name: _shown(arguments[name]) for name in ALONE})
    return {name: n for name, n in counts.items() if name not in ("aten.permute", "aten.view")}, found


def _shown(value: Any) -> Any:
    if isinstance(value, list):
        return "given"
    if not isinstance(value, torch.fx.Node):
        return value
    return str(value.target).split(".")[1] if value.op == "call_function" else ""


def gelu(m: nn.Module, x: Tensor) -> Tensor:
    a, b = m.wide(x).chunk(2, -1)
    return a * functional.gelu(b)


def shortcut(m: nn.Module, x: Tensor, v: Tensor) -> Tensor:
    """A residual block whose shortcut comes after the convolutions in the graph, as diffusers writes it."""
    y = m.conv(functional.silu(m.norm(x)))
    short = m.point(x)
    return (short + y) / 2**0.5


def attention_block(m: nn.Module, x: Tensor, v: Tensor) -> Tensor:
    y = m.q(m.norm(x.flatten(2)).transpose(1, 2))
    return y.transpose(1, 2).reshape(x.shape) + x


def up(x: Tensor) -> Tensor:
    return functional.interpolate(x, scale_factor=2.0)


def odd(x: Tensor) -> Tensor:
    return functional.interpolate(x, size=(2 * x.shape[2] - 1, 2 * x.shape[3]))


NORM = {"fastdiff.group_norm_silu": 1}
CONVOLUTIONS: dict[str, tuple[Callable[..., Any], dict[str, int], list[dict[str, Any]]]] = {
    "residual": (lambda m, x, v: m.conv(x) + x, {CONV: 1}, [{"residual": "permute"}]),
    "residual on the left": (lambda m, x, v: x + m.conv(x), {CONV: 1}, [{"residual": "permute"}]),
    "two residuals": (
        lambda m, x, v: m.conv(x) + x + x,
        {CONV: 1, "aten.add": 1},
        [{"residual": "permute"}],
    ),
    "twice itself": (lambda m, x, v: (lambda y: y + y)(m.conv(x)), {CONV: 1, "aten.add": 1}, [{}]),
    "a weighted sum": (
        lambda m, x, v: torch.add(m.conv(x), x, alpha=2),
        {CONV: 1, "aten.add": 1},
        [{}],
    ),
    "a residual that is broadcast": (
        lambda m, x, v: m.conv(x) + x.mean((2, 3), keepdim=True)[:, :1],
        {CONV: 1, "aten.add": 1, "aten.mean": 1, "aten.slice": 1},
        [{}],
    ),
    "used twice": (lambda m, x, v: (lambda y: (y + x, y))(m.conv(x)), {CONV: 1, "aten.add": 1}, [{}]),
    "vector": (
        lambda m, x, v: m.conv(x) + m.q(v)[:, :, None, None],
        {CONV: 1, LINEAR: 1},
        [{}, {"vector": "linear"}],
    ),
    "an input as vector": (lambda m, x, v: v[:, :, None, None] + m.conv(x), {CONV: 1}, [{"vector": ""}]),
    "a vector without a view": (
        lambda m, x, v: m.conv(x) + x.mean((2, 3), keepdim=True),
        {CONV: 1, "aten.mean": 1},
        [{"vector": "view"}],
    ),
    "vector, silu, residual, scale": (
        lambda m, x, v: 0.5 * (functional.silu(m.conv(x) + v[:, :, None, None]) + x),
        {CONV: 1},
        [{"vector": "", "activation": "silu", "residual": "permute", "scale": 0.5}],
    ),
    "vector after silu": (
        lambda m, x, v: functional.silu(m.conv(x)) + v[:, :, None, None],
        {CONV: 1, "aten.add": 1},
        [{"activation": "silu"}],
    ),
    "vector after a residual": (
        lambda m, x, v: m.conv(x) + x + v[:, :, None, None],
        {CONV: 1, "aten.add": 1},
        [{"residual": "permute"}],
    ),
    "silu after a residual": (
        lambda m, x, v: functional.silu(m.conv(x) + x),
        {CONV: 1, "aten.silu": 1},
        [{"residual": "permute"}],
    ),
    "residual after scale": (
        lambda m, x, v: m.conv(x) / 4 + x,
        {CONV: 1, "aten.add": 1},
        [{"scale": 0.25}],
    ),
    "scale twice": (lambda m, x, v: m.conv(x) / 4 * 3, {CONV: 1}, [{"scale": 0.75}]),
    "divided by a tensor": (
        lambda m, x, v: m.conv(x) / v[:, :, None, None],
        {CONV: 1, "aten.div": 1},
        [{}],
    ),
    "a quotient rounded": (
        lambda m, x, v: torch.div(m.conv(x), 2.0, rounding_mode="floor"),
        {CONV: 1, "aten.div": 1},
        [{}],
    ),
    "a number divided": (lambda m, x, v: 1 / m.conv(x), {CONV: 1, "aten.reciprocal": 1}, [{}]),
    "the later of two": (
        shortcut,
        {CONV: 1, LINEAR: 1, **NORM},
        [{}, {"residual": "conv2d", "scale": 1 / 2**0.5}],
    ),
    "view in front of the sum": (
        attention_block,
        {LINEAR: 1, **NORM},
        [{"residual": "permute"}],
    ),
    "upsample": (lambda m, x, v: m.conv(up(x)), {CONV: 1}, [{"upsample": 2}]),
    "upsample to an odd size": (
        lambda m, x, v: m.conv(odd(x)),
        {CONV: 1},
        [{"upsample": 2, "size": "given"}],
    ),
    "upsample to an odd size, then by 2": (
        lambda m, x, v: m.conv(up(odd(x))),
        {CONV: 1, "fastdiff.upsample_nearest2d": 1},
        [{"upsample": 2}],
    ),
    "upsample twice": (
        lambda m, x, v: m.conv(up(up(x))),
        {CONV: 1, "fastdiff.upsample_nearest2d": 1},
        [{"upsample": 2}],
    ),
    "upsample 1x1": (
        lambda m, x, v: m.point(up(x)),
        {LINEAR: 1, "fastdiff.upsample_nearest2d": 1},
        [{}],
    ),
    "upsample used twice": (
        lambda m, x, v: (lambda y: m.conv(y) + y)(up(x)),
        {CONV: 1, "fastdiff.upsample_nearest2d": 1},
        [{"residual": "upsample_nearest2d"}],
    ),
}
LINEARS: dict[str, tuple[Callable[..., Any], dict[str, int], list[dict[str, Any]]]] = {
    "silu": (lambda m, x: functional.silu(m.q(x)), {LINEAR: 1}, [{"activation": "silu"}]),
    "gelu": (lambda m, x: functional.gelu(m.q(x)), {LINEAR: 1}, [{"activation": "gelu"}]),
    "tanh gelu": (
        lambda m, x: functional.gelu(m.q(x), approximate="tanh"),
        {LINEAR: 1, "aten.gelu": 1},
        [{}],
    ),
    "quick gelu": (
        lambda m, x: (lambda y: y * torch.sigmoid(1.702 * y))(m.q(x)),
        {LINEAR: 1},
        [{"activation": "quick_gelu"}],
    ),
    "geglu and residual": (
        lambda m, x: gelu(m, x) + x,
        {LINEAR: 1},
        [{"activation": "geglu", "residual": ""}],
    ),
    "two activations": (
        lambda m, x: functional.silu(functional.silu(m.q(x))),
        {LINEAR: 1, "aten.silu": 1},
        [{"activation": "silu"}],
    ),
    "used twice": (
        lambda m, x: (lambda y: functional.silu(y) + y)(m.q(x)),
        {LINEAR: 1, "aten.silu": 1, "aten.add": 1},
        [{}],
    ),
    "an output": (
        lambda m, x: (lambda y: (y, functional.silu(y)))(m.q(x)),
        {LINEAR: 1, "aten.silu": 1},
        [{}],
    ),
    "the other's result": (
        lambda m, x: m.k(x) + m.q(functional.silu(x)),
        {LINEAR: 2, "aten.silu": 1},
        [{}, {"residual": "linear"}],
    ),
    "one after the other": (
        lambda m, x: m.k(functional.gelu(m.q(x))) + x,
        {LINEAR: 2},
        [{"activation": "gelu"}, {"residual": ""}],
    ),
}


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_convolutions(name: str) -> None:
    function, counts, epilogues = CONVOLUTIONS[name]
    assert fuse(function, X, VECTOR) == (counts, [{**ALONE, **epilogue} for epilogue in epilogues])


@pytest.mark.parametrize("name", LINEARS)
def test_linear_layers(name: str) -> None:
    function, counts, epilogues = LINEARS[name]
    assert fuse(function, TOKENS) == (counts, [{**ALONE, **epilogue} for epilogue in epilogues])
