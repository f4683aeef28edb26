"""Each implementation against the op's reference, on the CPU as far as it runs there."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from fastdiff.kernels import reference
from fastdiff.targets.cuda.calls import Call
from fastdiff.targets.cuda.implementations import IMPLEMENTATIONS, candidates, implementation
from fastdiff.targets.cuda.implementations.conv2d import phase_weights
from fastdiff.targets.graph import Node
from tests.compare import assert_close

GENERATOR = torch.Generator().manual_seed(0)


def randn(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=GENERATOR, dtype=torch.float64)


def convolution(
    height: int,
    width: int,
    upsample: int,
    *,
    stride: int = 1,
    pads: tuple[int, ...] = (1, 1, 1, 1),
    extras: bool,
    size: tuple[int, int] | None = None,
) -> tuple[Call, torch.Tensor]:
    """A call of conv2d and the reference's result. 5 channels to 7: no multiple of anything."""
    x, weight, bias = randn(2, height, width, 5), randn(7, 5, 3, 3), randn(7)
    vector = randn(2, 7) if extras else None
    finish = ("silu", 0.5) if extras else ("none", 1.0)
    out = reference.conv2d(x, weight, bias, vector, None, stride, pads, upsample, *finish, size)
    residual = torch.randn(out.shape, generator=GENERATOR, dtype=torch.float64) if extras else None
    wanted = reference.conv2d(x, weight, bias, vector, residual, stride, pads, upsample, *finish, size)
    names = ("pad_top", "pad_bottom", "pad_left", "pad_right")
    attributes: dict[str, Any] = {
        "in": 5, "out": 7, "kernel_h": 3, "kernel_w": 3, "stride": stride, "upsample": upsample,
        "activation": finish[0], "scale": finish[1], **dict(zip(names, pads, strict=True)),
    }  # fmt: skip
    node = Node("conv2d", (0, 1 if extras else None, 2 if extras else None), 3, attributes)
    layer = weight.contiguous(memory_format=torch.channels_last)
    return Call(node, (x, vector, residual), {"layer": layer, "bias": bias}, tuple(wanted.shape)), wanted


@pytest.mark.parametrize("extras", [False, True])
@pytest.mark.parametrize(
    ("stride", "pads"),
    [(1, (1, 1, 1, 1)), (2, (1, 1, 1, 1)), (2, (0, 1, 0, 1)), (1, (2, 0, 1, 1))],
    ids=["plain", "strided", "as the VAE's encoder pads", "lopsided"],
)
def test_conv2d(stride: int, pads: tuple[int, ...], extras: bool) -> None:
    call, wanted = convolution(6, 9, 1, stride=stride, pads=pads, extras=extras)
    assert_close(implementation("conv2d", "torch").run(call, None), wanted, rel_l2=1e-13)


@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 4), (3, 2), (7, 5)])
@pytest.mark.parametrize("extras", [False, True])
def test_phases_are_the_convolution_of_the_doubled_picture(height: int, width: int, extras: bool) -> None:
    call, wanted = convolution(height, width, 2, extras=extras)
    found = implementation("conv2d", "phases")
    assert found.applies(call)
    assert found.prepare is phase_weights
    prepared = {**call.weights, "layer": phase_weights(call.weights["layer"])}
    result = found.run(Call(call.node, call.inputs, prepared, call.shape), None)
    assert_close(result, wanted, rel_l2=2e-7)  # float32 sums of the weights
    assert_close(implementation("conv2d", "torch").run(call, None), wanted, rel_l2=1e-6)


@pytest.mark.parametrize("size", [(5, 4), (6, 3), (5, 3)])
@pytest.mark.parametrize("pads", [(1, 1, 1, 1), (0, 2, 1, 0)], ids=["plain", "lopsided"])
def test_a_doubled_picture_without_its_last_row_or_column(
    size: tuple[int, int], pads: tuple[int, ...]
) -> None:
    """The phases leave it to others: they would see its pixel in place of padding."""
    call, wanted = convolution(3, 2, 2, pads=pads, extras=True, size=size)
    assert_close(implementation("conv2d", "torch").run(call, None), wanted, rel_l2=1e-13)
    assert not implementation("conv2d", "phases").applies(call)
    doubled = Node("upsample_nearest2d", (0,), 1, {"factor": 2})
    cut = Call(doubled, (call.x,), {}, (2, *size, 5))
    result = implementation(doubled.op, "torch").run(cut, None)
    assert torch.equal(result, reference.upsample_nearest2d(call.x, 2, size))


def test_phases_take_nothing_else() -> None:
    found = implementation("conv2d", "phases")
    for upsample, stride, pads in ((1, 1, (1, 1, 1, 1)), (2, 2, (1, 1, 1, 1)), (2, 1, (0, 1, 0, 1))):
        call, _ = convolution(4, 4, upsample, stride=stride, pads=pads, extras=False)
        assert not found.applies(call)


@pytest.mark.parametrize("activation", reference.ACTIVATIONS)
@pytest.mark.parametrize("residual", [False, True])
def test_linear(activation: str, residual: bool) -> None:
    x, weight, bias = randn(2, 3, 11), randn(14, 11), randn(14)
    out = 7 if activation == "geglu" else 14
    added = randn(2, 3, out) if residual else None
    wanted = reference.linear(x, weight, bias, added, activation, 0.75)
    attributes = {"in": 11, "out": out, "activation": activation, "scale": 0.75}
    node = Node("linear", (0, 1 if residual else None), 2, attributes)
    call = Call(node, (x, added), {"layer": weight, "bias": bias}, tuple(wanted.shape))
    assert_close(implementation("linear", "torch").run(call, None), wanted, rel_l2=1e-13)


@pytest.mark.parametrize("causal", [0, 1])
def test_attention_of_parts_of_one_projection(causal: int) -> None:
    merged = randn(2, 13, 3 * 24)
    parts = merged.split(24, 2)
    wanted = reference.attention(*parts, 3, 0.3, bool(causal))
    node = Node("attention", (0, 1, 2), 3, {"heads": 3, "scale": 0.3, "causal": causal})
    call = Call(node, parts, {}, (2, 13, 24))
    assert_close(implementation("attention", "torch").run(call, None), wanted, rel_l2=1e-13)


@pytest.mark.parametrize("silu", [0, 1])
@pytest.mark.parametrize("affine", [False, True])
def test_group_norm_silu(silu: int, affine: bool) -> None:
    x = randn(2, 3, 5, 12)
    weights = {"weight": randn(12), "bias": randn(12)} if affine else {}
    wanted = reference.group_norm_silu(x, weights.get("weight"), weights.get("bias"), 4, 1e-5, bool(silu))
    node = Node("group_norm_silu", (0,), 1, {"groups": 4, "eps": 1e-5, "silu": silu})
    call = Call(node, (x,), weights, (2, 3, 5, 12))
    assert_close(implementation("group_norm_silu", "torch").run(call, None), wanted, rel_l2=1e-13)


def test_every_op_has_pytorchs_own_first() -> None:
    assert candidates(Call(Node("silu", (0,), 1), (randn(3),), {}, (3,)), 90)[0].implementation == "torch"
    for op, found in IMPLEMENTATIONS.items():
        assert found[0].name == "torch", op
        assert len({item.name for item in found}) == len(found), op
    with pytest.raises(KeyError, match="there are torch"):
        implementation("conv2d", "winograd")
