"""fastdiff::conv2d: the reference against PyTorch's in double precision, and the registered op."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from fastdiff.errors import InputError
from fastdiff.kernels import library, reference
from tests.compare import assert_close

PYTORCH = {
    "none": lambda x: x,
    "silu": functional.silu,
    "gelu": functional.gelu,
    "quick_gelu": lambda x: x * torch.sigmoid(1.702 * x),
}


def tensors(*shapes: tuple[int, ...]) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=generator) for shape in shapes]


def expected(x: Tensor, weight: Tensor, bias: Tensor | None, stride: int, padding: Any, up: int) -> Tensor:
    """What PyTorch makes of NCHW float64 copies, back in NHWC."""
    top, bottom, left, right = padding
    picture = functional.interpolate(x.double().permute(0, 3, 1, 2), scale_factor=float(up), mode="nearest")
    padded = functional.pad(picture, (left, right, top, bottom))
    y = functional.conv2d(padded, weight.double(), None if bias is None else bias.double(), stride)
    return y.permute(0, 2, 3, 1)


# (batch, height, width, in, out, kernel, stride, padding, upsample)
SIZES = [
    pytest.param((1, 1, 1, 1, 1, (1, 1), 1, (0, 0, 0, 0), 1), id="one pixel, one channel"),
    pytest.param((2, 5, 7, 3, 4, (3, 3), 1, (1, 1, 1, 1), 1), id="odd map, channels below any register"),
    pytest.param((1, 6, 9, 17, 13, (3, 3), 2, (1, 1, 1, 1), 1), id="stride 2 over an odd and an even side"),
    pytest.param((1, 6, 9, 4, 5, (3, 3), 2, (0, 1, 0, 1), 1), id="a VAE encoder's asymmetric padding"),
    pytest.param((2, 4, 5, 6, 7, (3, 3), 1, (1, 1, 1, 1), 2), id="upsampled by 2"),
    pytest.param((1, 3, 3, 2, 2, (3, 3), 1, (1, 1, 1, 1), 3), id="upsampled by 3"),
    pytest.param((1, 4, 6, 3, 5, (1, 3), 1, (0, 2, 3, 1), 1), id="a flat kernel, four different paddings"),
    pytest.param((0, 4, 4, 3, 5, (3, 3), 1, (1, 1, 1, 1), 1), id="empty batch"),
]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("biased", [False, True])
def test_against_pytorch(size: Any, biased: bool) -> None:
    batch, height, width, inner, outer, kernel, stride, padding, up = size
    x, weight, bias = tensors((batch, height, width, inner), (outer, inner, *kernel), (outer,))
    arguments = (x, weight, bias if biased else None)
    found = reference.conv2d(*arguments, None, None, stride, padding, up)
    assert_close(found, expected(*arguments, stride, padding, up), rel_l2=1e-6, label="conv2d")
    assert found.is_contiguous()


@pytest.mark.parametrize("activation", PYTORCH)
def test_epilogues(activation: str) -> None:
    x, weight, bias, vector, residual = tensors((2, 5, 6, 4), (7, 4, 3, 3), (7,), (2, 7), (2, 3, 3, 7))
    padding = (1, 1, 1, 1)
    found = reference.conv2d(x, weight, bias, vector, residual, 2, padding, 1, activation, 0.7)
    y = expected(x, weight, bias, 2, padding, 1) + vector[:, None, None, :]
    assert_close(found, 0.7 * (PYTORCH[activation](y) + residual), rel_l2=1e-6, label=activation)


def test_the_registered_op() -> None:
    x, weight, bias, vector, residual = tensors((2, 5, 6, 4), (7, 4, 3, 3), (7,), (2, 7), (2, 5, 6, 7))
    torch.library.opcheck(library.conv2d, (x, weight, None, None, None, 2, [0, 1, 0, 1], 2))
    fused = (x, weight, bias, vector, residual, 1, [1, 1, 1, 1], 1, "silu", 0.5)
    torch.library.opcheck(library.conv2d, fused)
    # a picture whose channels are a part of another's: strided in memory
    torch.library.opcheck(library.conv2d, (tensors((2, 5, 6, 9))[0][..., 2:6], *fused[1:]))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"x": (2, 4, 5)}, "four axes"),
        ({"weight": (7, 5, 3, 3)}, r"wanted \(O, 4, kh, kw\)"),
        ({"bias": (6,)}, r"bias: found shape \(6,\), wanted \(7,\)"),
        ({"vector": (1, 7)}, r"vector: found shape \(1, 7\), wanted \(2, 7\)"),
        ({"residual": (2, 5, 6, 4)}, r"residual: .* wanted \(2, 5, 6, 7\)"),
        ({"stride": 0}, "stride: found 0"),
        ({"upsample": 0}, "upsample: found 0"),
        ({"padding": [1, 1]}, r"padding: found \[1, 1\]"),
        ({"padding": [1, 1, -1, 1]}, "none negative"),
        ({"padding": [0, 0, 0, 0], "x": (2, 5, 2, 4)}, "found 5 × 2 pixels"),
        ({"activation": "geglu"}, "activation: found 'geglu'"),
    ],
)
def test_refused(change: dict[str, Any], words: str) -> None:
    shapes = {"x": (2, 5, 6, 4), "weight": (7, 4, 3, 3), "bias": (7,), "vector": (2, 7)}
    options = {"stride": 1, "padding": [1, 1, 1, 1], "upsample": 1, "activation": "none"}
    arguments: dict[str, Any] = {**shapes, "residual": (2, 5, 6, 7), **options, **change}
    with pytest.raises(InputError, match=words):
        library.conv2d(
            **{name: torch.ones(v) if isinstance(v, tuple) else v for name, v in arguments.items()}
        )
