"""fastdiff::linear: the reference against PyTorch in double precision, and the registered op."""

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
    "geglu": lambda x: x.chunk(2, -1)[0] * functional.gelu(x.chunk(2, -1)[1]),
}


def tensors(*shapes: tuple[int, ...]) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=generator) for shape in shapes]


# A vector, one row, prime sizes, a picture, no rows.
@pytest.mark.parametrize("rows", [(), (1,), (13,), (2, 3, 5), (0, 4)])
@pytest.mark.parametrize("biased", [False, True])
def test_against_pytorch(rows: tuple[int, ...], biased: bool) -> None:
    x, weight, bias = tensors((*rows, 17), (11, 17), (11,))
    found = reference.linear(x, weight, bias if biased else None)
    wanted = functional.linear(x.double(), weight.double(), bias.double() if biased else None)
    assert_close(found, wanted, rel_l2=1e-6, label="linear")


@pytest.mark.parametrize("activation", PYTORCH)
def test_epilogues(activation: str) -> None:
    out = 5 if activation == "geglu" else 10
    x, weight, bias, residual = tensors((2, 3, 7), (10, 7), (10,), (2, 3, out))
    found = reference.linear(x, weight, bias, residual, activation, 0.7)
    y = PYTORCH[activation](functional.linear(x.double(), weight.double(), bias.double()))
    assert_close(found, 0.7 * (y + residual), rel_l2=1e-6, label=activation)
    assert found.is_contiguous()


def test_the_registered_op() -> None:
    x, weight, bias, residual = tensors((2, 3, 7), (10, 7), (10,), (2, 3, 5))
    torch.library.opcheck(library.linear, (x, weight))
    torch.library.opcheck(library.linear, (x, weight, bias, residual, "geglu", 0.5))
    # a part of a merged projection: strided in memory
    torch.library.opcheck(library.linear, (tensors((2, 3, 20))[0][..., 4:11], weight, bias))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"weight": (10, 6)}, r"wanted \(O, K\)"),
        ({"weight": (10, 7, 1, 1)}, r"wanted \(O, K\)"),
        ({"bias": (5,)}, r"bias: found shape \(5,\), wanted \(10,\)"),
        ({"residual": (2, 1, 10)}, r"residual: .* wanted \(2, 3, 10\)"),
        ({"activation": "geglu"}, r"residual: .* wanted \(2, 3, 5\)"),
        ({"activation": "geglu", "weight": (9, 7), "residual": None}, "found 9 rows"),
        ({"activation": "relu"}, "activation: found 'relu'"),
    ],
)
def test_refused(change: dict[str, Any], words: str) -> None:
    arguments: dict[str, Any] = {"x": (2, 3, 7), "weight": (10, 7), "bias": (10,), "residual": (2, 3, 10)}
    arguments |= change
    with pytest.raises(InputError, match=words):
        library.linear(
            **{name: torch.ones(v) if isinstance(v, tuple) else v for name, v in arguments.items()}
        )
