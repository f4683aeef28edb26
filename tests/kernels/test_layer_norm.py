"""layer_norm on the CPU against PyTorch's in double precision."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fastdiff.errors import InputError
from fastdiff.kernels import layer_norm
from tests.compare import assert_close

SHAPES = [
    pytest.param((1,), id="one element: the variance is zero"),
    pytest.param((37,), id="one row without an axis of its own, a tail of every register"),
    pytest.param((3, 5), id="rows shorter than AVX2's and AVX-512's registers"),
    pytest.param((2, 3, 64), id="exactly one unrolled AVX-512 step"),
    pytest.param((7, 111), id="whole registers after the unrolled ones, and a tail"),
    pytest.param((2, 77, 768), id="the text encoder's"),
    pytest.param((1, 9, 1280), id="Stable Diffusion's widest"),
    pytest.param((300, 129), id="three items of 127 rows, the last not full"),
    pytest.param((0, 8), id="no rows"),
    pytest.param((4, 0), id="no channels"),
]


def data(rng, shape, mean=0.0, std=1.0):
    x = (mean + std * rng.standard_normal(shape)).astype(np.float32)
    weight, bias = (rng.standard_normal(shape[-1]).astype(np.float32) for _ in range(2))
    return x, weight, bias


def expected(x, weight, bias, eps=1e-5):
    tensors = [None if a is None else torch.from_numpy(np.array(a, np.float64)) for a in (x, weight, bias)]
    return torch.nn.functional.layer_norm(tensors[0], x.shape[-1:], tensors[1], tensors[2], eps)


@pytest.mark.smoke
@pytest.mark.parametrize("shape", SHAPES)
def test_matches_pytorch(rng, isa, shape):
    x, weight, bias = data(rng, shape)
    y = layer_norm(x, weight, bias, isa=isa)
    assert y.dtype == np.float32
    if x.size == 0:
        assert y.shape == shape
        return
    assert_close(y, expected(x, weight, bias), rel_l2=3e-7, max_abs=3e-6, label="y")


@pytest.mark.parametrize(
    ("mean", "std"),
    [
        pytest.param(1e4, 1.0, id="the mean's rounding is a thousandth of the deviation"),
        pytest.param(0.0, 1e-6, id="variance far below eps"),
        pytest.param(0.0, 1e15, id="large"),
        pytest.param(7.3, 0.0, id="constant input"),
    ],
)
def test_statistics_are_robust(rng, isa, mean, std):
    x, weight, bias = data(rng, (5, 333), mean, std)
    assert_close(layer_norm(x, weight, bias, isa=isa), expected(x, weight, bias), rel_l2=1e-6, max_abs=1e-5)


def test_weight_and_bias_are_optional(rng, isa):
    x, weight, bias = data(rng, (3, 45))
    for w, b in ((None, None), (weight, None), (None, bias)):
        assert_close(layer_norm(x, w, b, 0.5, isa=isa), expected(x, w, b, 0.5), rel_l2=3e-7)


@pytest.mark.parametrize("threads", [2, 3])
def test_threads_change_nothing(rng, isa, threads):
    x, weight, bias = data(rng, (700, 65))  # three items
    one = layer_norm(x, weight, bias, isa=isa)
    assert np.array_equal(layer_norm(x, weight, bias, isa=isa, threads=threads), one)


def test_strides_and_nothing_else_written(rng, isa):
    for channels in range(1, 40):
        wide = np.full((2, 7, 100), 7.0, np.float32)
        x, weight, bias = data(rng, (2, 7, channels))
        source, out = wide[..., :channels], wide[..., 50 : 50 + channels]
        source[...] = x
        assert layer_norm(source, weight, bias, out=out, isa=isa) is out
        assert_close(out, expected(x, weight, bias), rel_l2=1e-6)
        assert np.array_equal(source, x)
        source[...] = out[...] = 7.0
        assert (wide == 7.0).all()


def test_in_place(rng, isa):
    x, weight, bias = data(rng, (5, 37))
    wanted = layer_norm(x, weight, bias, isa=isa)
    assert layer_norm(x, weight, bias, out=x, isa=isa) is x
    assert np.array_equal(x, wanted)


def test_nan_stays_in_its_row(rng, isa):
    x, weight, bias = data(rng, (3, 20))
    x[1, 19] = np.nan
    y = layer_norm(x, weight, bias, isa=isa)
    assert np.isnan(y[1]).all()
    assert np.isfinite(y[[0, 2]]).all()


X = np.zeros((2, 3, 8), np.float32)
W = np.ones(8, np.float32)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": X.astype(np.float64)}, "x: found dtype float64, wanted float32"),
        ({"x": np.float32(1.0)}, "x: found float32, wanted a float32 NumPy array"),
        ({"x": X[:, :, ::2]}, "x: found a stride of 2 floats on the last axis"),
        ({"x": X[:, :2]}, "x: found axes 0 to 1 of .* unevenly spaced"),
        ({"weight": W[:4]}, r"weight: found shape \(4,\), wanted \(8,\)"),
        ({"bias": W.astype(np.float16)}, "bias: found dtype float16"),
        ({"eps": -1.0}, "eps: found -1"),
        ({"out": X[0].copy()}, r"out: found shape \(3, 8\), wanted \(2, 3, 8\)"),
        ({"threads": 0}, "threads: found 0"),
    ],
)
def test_refuses_bad_arguments(change, message):
    with pytest.raises(InputError, match=message):
        layer_norm(**{"x": X, "weight": W, "bias": W, **change})


def test_refuses_partial_overlap():
    line = np.zeros(40, np.float32)
    with pytest.raises(InputError, match="out: found an array that overlaps x"):
        layer_norm(line[:32].reshape(4, 8), None, None, out=line[8:].reshape(4, 8))
