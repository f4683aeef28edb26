"""linear: the reference against PyTorch in double precision, the registered op, the CPU kernel."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from fastdiff.errors import InputError
from fastdiff.kernels import library, linear, pack_linear, reference
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


def arrays(rng: np.random.Generator, *shapes: tuple[int, ...]) -> list[np.ndarray]:
    return [rng.standard_normal(shape).astype(np.float32) for shape in shapes]


def doubles(*values: np.ndarray | None) -> list[Tensor | None]:
    return [None if v is None else torch.from_numpy(v.copy()).double() for v in values]


# (rows, inputs, outputs)
KERNEL_SIZES = [
    pytest.param((1, 1, 1), id="one of everything"),
    pytest.param((1, 77, 96), id="one row"),
    pytest.param((6, 33, 64), id="the most rows that four panels are computed at once for"),
    pytest.param((7, 33, 47), id="one row more, outputs that end inside a panel"),
    pytest.param((15, 513, 32), id="one row more than a tile, one input more than a depth block"),
    pytest.param((113, 40, 17), id="one row more than a row block, one output more than a panel"),
    pytest.param((230, 1100, 50), id="several blocks of everything"),
    pytest.param((0, 8, 8), id="no rows"),
]


@pytest.mark.smoke
@pytest.mark.parametrize("size", KERNEL_SIZES)
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_kernel(rng, isa, size, precision):
    rows, inner, outer = size
    x, weight, bias, residual = arrays(rng, (rows, inner), (outer, inner), (outer,), (rows, outer))
    packed = pack_linear(weight, precision)
    found = linear(x, packed, bias, residual, scale=0.5, isa=isa)
    stored = weight if precision == "fp32" else weight.astype(np.float16)
    wanted = reference.linear(*doubles(x, stored, bias, residual), "none", 0.5)
    assert_close(found, wanted, rel_l2=1e-6, label="linear")


@pytest.mark.parametrize("activation", PYTORCH)
@pytest.mark.parametrize(
    ("rows", "outer"),
    [
        pytest.param(3, 32, id="few rows, halves of one panel"),
        pytest.param(20, 44, id="halves that end inside a panel"),
        pytest.param(130, 96, id="two row blocks, an odd number of panels"),
    ],
)
def test_kernel_activations(rng, isa, activation, rows, outer):
    # Ten times the usual weights: both tails of the activations are reached.
    x, weight, bias = arrays(rng, (rows, 24), (outer, 24), (outer,))
    packed = pack_linear(10 * weight)
    for terms in ((bias,), (None,)):
        found = linear(x, packed, *terms, activation=activation, isa=isa)
        wanted = reference.linear(*doubles(x, 10 * weight, *terms), None, activation)
        assert_close(found, wanted, rel_l2=1e-6, label=activation)


@pytest.mark.parametrize("activation", ["none", "geglu"])
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_kernel_does_not_depend_on_the_threads(rng, isa, activation, precision):
    for rows, inner, outer in ((250, 70, 96), (5, 70, 160)):
        x, weight = arrays(rng, (rows, inner), (outer, inner))
        packed = pack_linear(weight, precision)
        one, *others = (linear(x, packed, activation=activation, threads=n, isa=isa) for n in (1, 2, 3))
        assert all(np.array_equal(one, other) for other in others)


def test_kernel_on_slices(rng, isa):
    # q, k and v of one projection, and the inputs of a concatenation, are slices of a wider tensor.
    x, residual, out = arrays(rng, (2, 9, 40), (2, 9, 50), (2, 9, 60))
    (weight,) = arrays(rng, (24, 16))
    before = out.copy()
    found = linear(x[..., 8:24], pack_linear(weight), None, residual[..., 3:27], out=out[..., 5:29], isa=isa)
    wanted = reference.linear(*doubles(x[..., 8:24], weight, None, residual[..., 3:27]))
    assert_close(found, wanted, rel_l2=1e-6, label="linear")
    assert np.array_equal(out[..., :5], before[..., :5])
    assert np.array_equal(out[..., 29:], before[..., 29:])


def test_kernel_in_place_of_the_residual(rng, isa):
    x, weight, residual = arrays(rng, (30, 20), (33, 20), (30, 33))
    wanted = linear(x, pack_linear(weight), None, residual, isa=isa)
    assert linear(x, pack_linear(weight), None, residual, out=residual, isa=isa) is residual
    assert np.array_equal(residual, wanted)


def test_half_precision_weights_are_the_nearest(rng, isa):
    # Ties, the smallest and the largest numbers, and what is out of range, through an identity.
    values = [1 + 2**-11, 1 + 3 * 2**-11, 65504, 65519, 65520, 2**-24, 2**-25, 1.5 * 2**-25, -(2**-14), -0.0]
    weight = np.array([values], np.float32).T
    found = linear(np.ones((1, 1), np.float32), pack_linear(weight, "fp16"), isa=isa)
    with np.errstate(over="ignore"):
        assert np.array_equal(found[0], weight[:, 0].astype(np.float16).astype(np.float32))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"x": np.ones((2, 4), np.float32)}, "wanted 5 channels"),
        ({"x": np.ones((2, 5))}, "found dtype float64"),
        ({"bias": np.ones(4, np.float32)}, "wanted (6,)"),
        ({"residual": np.ones((2, 5), np.float32)}, "wanted (2, 6)"),
        ({"activation": "relu"}, "found 'relu'"),
        ({"out": np.ones((3, 6), np.float32)}, "wanted (2, 6)"),
        ({"x": np.ones((5, 2), np.float32).T}, "ascontiguousarray"),
        ({"weight": pack_linear(np.ones((5, 5), np.float32)), "activation": "geglu"}, "even number"),
    ],
)
def test_kernel_refuses(change: dict[str, Any], words: str) -> None:
    good = {"x": np.ones((2, 5), np.float32), "weight": pack_linear(np.ones((6, 5), np.float32))}
    assert linear(**good).shape == (2, 6)
    with pytest.raises(InputError) as error:
        linear(**{**good, **change})
    assert words in str(error.value)
