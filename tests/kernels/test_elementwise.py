"""elementwise on the CPU against PyTorch in double precision."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn import functional

from fastdiff.errors import InputError
from fastdiff.kernels import elementwise, reference
from tests.compare import assert_close

# What PyTorch calls the function, and the largest absolute error beside a relative one of 3e-7.
UNARY = {
    "copy": (lambda x: x, 0.0),
    "silu": (functional.silu, 1e-30),
    "gelu": (functional.gelu, 1.5e-7),
    "quick_gelu": (reference.quick_gelu, 1e-8),
    "gelu_tanh": (lambda x: functional.gelu(x, approximate="tanh"), 2e-7),
    "relu": (torch.relu, 0.0),
    "sigmoid": (torch.sigmoid, 1e-36),
    "tanh": (torch.tanh, 0.0),
    "exp": (torch.exp, 1e-37),
    "sin": (torch.sin, 0.0),
    "cos": (torch.cos, 0.0),
    "negate": (torch.neg, 0.0),
    "clamp": (lambda x: x.clamp(-1.5, 2.5), 0.0),
    "add_scalar": (lambda x: x + 0.375, 3e-7),
    "mul_scalar": (lambda x: x * 0.375, 0.0),
}
BINARY = {"add": torch.add, "subtract": torch.sub, "multiply": torch.mul, "divide": torch.div}
PARAMETERS = {
    "clamp": {"low": -1.5, "high": 2.5},
    "add_scalar": {"scalar": 0.375},
    "mul_scalar": {"scalar": 0.375},
}


def double(x):
    return torch.from_numpy(np.array(x, np.float64))


@pytest.mark.smoke
@pytest.mark.parametrize("function", UNARY)
def test_unary_over_its_range(isa, function):
    points = np.concatenate(
        [np.linspace(-110, 88, 6001), np.linspace(-7, 7, 4001), [0.0, 1e-30, -1e-30, 0.625, -0.625]]
    ).astype(np.float32)
    operation, absolute = UNARY[function]
    found = elementwise(function, points, isa=isa, **PARAMETERS.get(function, {}))
    assert found.dtype == np.float32
    exact = operation(double(points)).numpy()
    error = np.abs(found - exact) - 4e-7 * np.abs(exact) - absolute
    worst = error.argmax()
    assert error[worst] <= 0, f"{function}({points[worst]}): found {found[worst]}, wanted {exact[worst]}"


def test_sqrt(isa):
    points = np.concatenate([np.linspace(0, 100, 999), [1e-30, 1e30, np.inf]]).astype(np.float32)
    assert np.array_equal(elementwise("sqrt", points, isa=isa), np.sqrt(points))


@pytest.mark.parametrize("function", UNARY)
def test_unary_keeps_nan(isa, function):
    x = np.full(19, np.nan, np.float32)
    assert np.isnan(elementwise(function, x, isa=isa, **PARAMETERS.get(function, {}))).all()


def test_limits(isa):
    ends = np.array([-np.inf, -1e30, -200.0, 200.0, 1e30, np.inf], np.float32)
    wanted = {
        "exp": [0, 0, 0, np.inf, np.inf, np.inf],
        "sigmoid": [0, 0, 0, 1, 1, 1],
        "tanh": [-1, -1, -1, 1, 1, 1],
        "gelu": [0, 0, 0, 200, 1e30, np.inf],
        "gelu_tanh": [0, 0, 0, 200, 1e30, np.inf],
        "silu": [0, 0, 0, 200, 1e30, np.inf],
        "relu": [0, 0, 0, 200, 1e30, np.inf],
    }
    for function, values in wanted.items():
        assert_close(elementwise(function, ends, isa=isa), values, rel_l2=1e-6, label=function)


# a's shape, b's shape
BROADCASTS = [
    pytest.param((), (), id="scalars"),
    pytest.param((37,), (37,), id="a tail of every register"),
    pytest.param((5, 111), (5, 111), id="one axis, once merged"),
    pytest.param((5, 111), (111,), id="a row"),
    pytest.param((5, 111), (5, 1), id="a column"),
    pytest.param((5, 1), (111,), id="both broadcast"),
    pytest.param((1,), (5, 111), id="a scalar on the left"),
    pytest.param((2, 3, 5, 40), (2, 1, 1, 40), id="a vector per image"),
    pytest.param((2, 3, 1, 7), (3, 5, 1), id="four axes, nothing merges"),
    pytest.param((3, 17000), (17000,), id="rows longer than an item"),
    pytest.param((40000, 3), (3,), id="short rows, several items"),
    pytest.param((4, 0), (1, 0), id="empty"),
]


@pytest.mark.smoke
@pytest.mark.parametrize(("shape_a", "shape_b"), BROADCASTS)
@pytest.mark.parametrize("function", BINARY)
def test_binary_broadcasts(rng, isa, function, shape_a, shape_b):
    a, b = (np.asarray(rng.uniform(0.5, 2.0, s), np.float32) for s in (shape_a, shape_b))
    found = elementwise(function, a, b, isa=isa)
    wanted = BINARY[function](double(a), double(b))
    assert found.shape == tuple(wanted.shape)
    if found.size:
        assert_close(found, wanted, rel_l2=1e-7, max_abs=3e-7)


@pytest.mark.parametrize("function", ["copy", "add"])
@pytest.mark.parametrize("order", [(0, 1, 2, 3), (0, 3, 1, 2), (0, 2, 3, 1), (3, 2, 1, 0), (1, 0, 3, 2)])
def test_strides(rng, isa, function, order):
    # NCHW to NHWC and back among them; three channels make the innermost axis a short one.
    whole = rng.standard_normal((2, 3, 11, 19)).astype(np.float32)
    x = whole.transpose(order)
    for a in (x, x[:, 1:], x[..., ::3], x[1:2]):
        b = (a,) if function == "add" else ()
        wide = np.full((*a.shape[:3], a.shape[3] + 9), 7.0, np.float32)
        for out in (wide[..., 4 : 4 + a.shape[3]], np.empty(a.shape[::-1], np.float32).transpose()):
            assert elementwise(function, a, *b, out=out, isa=isa) is out
            assert np.array_equal(out, a * (1 + len(b)))
        wide[..., 4 : 4 + a.shape[3]] = 7.0
        assert (wide == 7.0).all()


@pytest.mark.parametrize("threads", [2, 3])
def test_threads_change_nothing(rng, isa, threads):
    a = rng.standard_normal((3, 17001)).astype(np.float32)
    one = elementwise("gelu", a, isa=isa)
    assert_close(one, functional.gelu(double(a)), rel_l2=3e-7)
    assert np.array_equal(elementwise("gelu", a, isa=isa, threads=threads), one)
    column = a[:, :1].copy()
    assert np.array_equal(elementwise("add", a, column, isa=isa, threads=threads), a + column)


def test_in_place_and_nothing_else_written(rng, isa):
    for size in range(1, 70):
        line = np.full(size + 32, 7.0, np.float32)
        part = line[16 : 16 + size]
        part[...] = values = rng.standard_normal(size).astype(np.float32)
        assert elementwise("mul_scalar", part, scalar=2.0, out=part, isa=isa) is part
        assert elementwise("subtract", values, part, out=part, isa=isa) is part
        assert np.array_equal(part, -values)
        part[...] = 7.0
        assert (line == 7.0).all()


A = np.zeros((2, 5, 12), np.float32)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"function": "erf"}, "function: found 'erf', wanted one of copy, silu, .*divide"),
        ({"a": A.astype(np.float64)}, "a: found dtype float64, wanted float32"),
        ({"a": A[None, None]}, r"a: found shape \(1, 1, 2, 5, 12\), wanted at most 4 axes"),
        ({"b": A}, "b: found an array for silu, wanted None"),
        ({"function": "add"}, "b: found None for add, wanted an array"),
        ({"function": "add", "b": A[:, :4]}, r"a, b: found shapes \(2, 5, 12\) and \(2, 4, 12\)"),
        ({"function": "add", "b": A.astype(np.int32)}, "b: found dtype int32"),
        ({"out": A[:1].copy()}, r"out: found shape \(1, 5, 12\), wanted \(2, 5, 12\)"),
        ({"out": np.broadcast_to(A[:1], A.shape)}, "out: found a read-only array"),
        ({"a": A[:, ::-1]}, "a: found strides of .* none negative"),
        ({"threads": 0}, "threads: found 0"),
    ],
)
def test_refuses_bad_arguments(change, message):
    with pytest.raises(InputError, match=message):
        elementwise(**{"function": "silu", "a": A, **change})


def test_refuses_partial_overlap():
    line = np.zeros(40, np.float32)
    with pytest.raises(InputError, match="out: found an array that overlaps a"):
        elementwise("silu", line[:32], out=line[8:])
    with pytest.raises(InputError, match="out: found an array that overlaps b"):
        elementwise("add", np.zeros(32, np.float32), line[:32], out=line[8:])
