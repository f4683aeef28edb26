from __future__ import annotations

import numpy as np
import pytest
import torch

from fastdiff.errors import InputError
from fastdiff.kernels import group_norm_silu, library, reference
from tests.compare import assert_close

# (batch, spatial sizes, channels, groups)
SIZES = [
    pytest.param((1, (1,), 1, 1), id="one element: the variance is zero"),
    pytest.param((1, (1, 1), 3, 3), id="groups of one element"),
    pytest.param((2, (), 6, 2), id="no spatial dimension"),
    pytest.param((2, (1, 1), 64, 32), id="one row"),
    pytest.param((1, (5, 7), 4, 4), id="one channel per group, tail only"),
    pytest.param((2, (3, 3), 37, 1), id="channels not a multiple of any register; one group"),
    pytest.param((1, (4, 4), 111, 3), id="groups that straddle registers"),
    pytest.param((3, (9,), 16, 4), id="rows not a multiple of the block; exactly one AVX-512 register"),
    pytest.param((1, (2, 3, 5), 48, 16), id="three spatial dimensions"),
    pytest.param((1, (8, 8), 32, 32), id="group size one"),
    pytest.param((2, (8, 8), 320, 32), id="Stable Diffusion's first level: 10 channels per group"),
    pytest.param((1, (1, 989), 18, 2), id="long odd plane"),
    pytest.param((0, (4, 4), 8, 2), id="empty batch"),
    pytest.param((2, (0, 4), 8, 2), id="no rows"),
]


def data(rng, batch, spatial, channels, layout, mean=0.0, std=1.0):
    shape = (batch, *spatial, channels) if layout == "NHWC" else (batch, channels, *spatial)
    x = (mean + std * rng.standard_normal(shape)).astype(np.float32)
    weight = rng.standard_normal(channels).astype(np.float32)
    bias = rng.standard_normal(channels).astype(np.float32)
    return x, weight, bias


def expected(x, weight, bias, groups, eps=1e-5, silu=True, layout="NHWC"):
    """The reference in double precision."""
    tensors = [None if a is None else torch.from_numpy(a.copy()).double() for a in (x, weight, bias)]
    return reference.group_norm_silu(*tensors, groups, eps, silu, layout)


@pytest.mark.smoke
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("layout", ["NHWC", "NCHW"])
@pytest.mark.parametrize("silu", [True, False])
def test_matches_reference(rng, isa, size, layout, silu):
    batch, spatial, channels, groups = size
    x, weight, bias = data(rng, batch, spatial, channels, layout)
    y = group_norm_silu(x, weight, bias, groups, silu=silu, layout=layout, isa=isa)
    assert y.dtype == np.float32
    assert_close(
        y, expected(x, weight, bias, groups, silu=silu, layout=layout), rel_l2=5e-7, max_abs=5e-6, label="y"
    )


@pytest.mark.parametrize("layout", ["NHWC", "NCHW"])
@pytest.mark.parametrize(
    ("mean", "std"),
    [
        pytest.param(1e4, 1.0, id="E[x²]-E[x]² in float32 would lose every digit of the variance"),
        pytest.param(0.0, 1e-6, id="variance far below eps"),
        pytest.param(0.0, 1e15, id="squares overflow nothing"),
        pytest.param(7.0, 0.0, id="constant input"),
    ],
)
def test_statistics_are_robust(rng, isa, layout, mean, std):
    x, weight, bias = data(rng, 2, (16, 16), 40, layout, mean, std)
    y = group_norm_silu(x, weight, bias, 8, layout=layout, isa=isa)
    assert_close(y, expected(x, weight, bias, 8, layout=layout), rel_l2=1e-6, max_abs=1e-5)


def test_large_group(rng, isa):
    # A VAE's last level, shrunk to a second's work: many elements per group with a mean beside them.
    x, weight, bias = data(rng, 1, (256, 256), 8, "NHWC", mean=100.0)
    y = group_norm_silu(x, weight, bias, 2, isa=isa)
    assert_close(y, expected(x, weight, bias, 2), rel_l2=5e-7, max_abs=5e-6)


@pytest.mark.parametrize("layout", ["NHWC", "NCHW"])
def test_weight_and_bias_are_optional(rng, isa, layout):
    x, weight, bias = data(rng, 2, (3, 3), 12, layout)
    for w, b in ((None, None), (weight, None), (None, bias)):
        y = group_norm_silu(x, w, b, 3, layout=layout, isa=isa)
        assert_close(y, expected(x, w, b, 3, layout=layout), rel_l2=5e-7)


@pytest.mark.parametrize("eps", [0.0, 1e-6, 0.5])
def test_eps(rng, isa, eps):
    x, weight, bias = data(rng, 1, (4, 4), 12, "NHWC", std=0.1)
    y = group_norm_silu(x, weight, bias, 3, eps, isa=isa)
    assert_close(y, expected(x, weight, bias, 3, eps), rel_l2=5e-7)


@pytest.mark.parametrize("layout", ["NHWC", "NCHW"])
def test_silu_over_its_whole_range(isa, layout):
    # Weight 0 leaves the bias alone, so that SiLU is evaluated at chosen points.
    points = np.concatenate([np.linspace(-100, 100, 4001), [0.0, -0.0, 1e-30, -1e-30, 3e38, -3e38]])
    bias = points.astype(np.float32)
    shape = (1, 1, bias.size) if layout == "NHWC" else (1, bias.size, 1)
    x = np.ones(shape, np.float32)
    y = group_norm_silu(x, np.zeros_like(bias), bias, 1, layout=layout, isa=isa).reshape(-1)
    exact = bias.astype(np.float64) / (1.0 + np.exp(-bias.astype(np.float64).clip(-700, 700)))
    # Below -80 the kernel stops at silu(-80) = -1.4e-33.
    assert (np.abs(y - exact) <= 6e-7 * np.abs(exact) + np.where(bias < -80, 2e-33, 0)).all()


@pytest.mark.parametrize("layout", ["NHWC", "NCHW"])
def test_nan_spreads_over_its_group_only(rng, isa, layout):
    x, weight, bias = data(rng, 2, (3, 3), 8, layout)
    x[(0, 1, 1, 2) if layout == "NHWC" else (0, 2, 1, 1)] = np.nan
    y = group_norm_silu(x, weight, bias, 4, layout=layout, isa=isa)
    y = y if layout == "NHWC" else np.moveaxis(y, 1, -1)
    assert np.isnan(y[0, :, :, 2:4]).all()
    assert np.isfinite(y[0, :, :, [0, 1, 4, 5, 6, 7]]).all()
    assert np.isfinite(y[1]).all()


@pytest.mark.parametrize("layout", ["NHWC", "NCHW"])
@pytest.mark.parametrize("channels", [6, 32, 37])
def test_in_place(rng, isa, layout, channels):
    x, weight, bias = data(rng, 2, (3, 5), channels, layout)
    wanted = group_norm_silu(x, weight, bias, 1, layout=layout, isa=isa)
    assert group_norm_silu(x, weight, bias, 1, layout=layout, isa=isa, out=x) is x
    assert np.array_equal(x, wanted)


@pytest.mark.parametrize("layout", ["NHWC", "NCHW"])
def test_nothing_is_written_beyond_the_end(rng, isa, layout):
    for channels in range(1, 40):
        x, weight, bias = data(rng, 1, (3,), channels, layout)
        buffer = np.full(x.size + 32, 7.0, np.float32)
        out = buffer[: x.size].reshape(x.shape)
        group_norm_silu(x, weight, bias, channels, layout=layout, isa=isa, out=out)
        assert_close(out, expected(x, weight, bias, channels, layout=layout), rel_l2=1e-6)
        assert (buffer[x.size :] == 7.0).all()


@pytest.mark.parametrize("threads", [2, 3])
@pytest.mark.parametrize("layout", ["NHWC", "NCHW"])
def test_threads_change_nothing(rng, isa, layout, threads):
    # 40 channels make parts of 416 pixels: three of them, the last not full.
    x, weight, bias = data(rng, 2, (31, 29), 40, layout, mean=3.0)
    one = group_norm_silu(x, weight, bias, 8, layout=layout, isa=isa)
    assert_close(one, expected(x, weight, bias, 8, layout=layout), rel_l2=5e-7)
    many = group_norm_silu(x, weight, bias, 8, layout=layout, isa=isa, threads=threads)
    assert np.array_equal(many, one)


@pytest.mark.parametrize("channels", [6, 32, 37])
def test_channels_of_a_wider_array(rng, isa, channels):
    # What a concatenation's producers and consumers see.
    wide = np.full((2, 5, 21, channels + 40), 7.0, np.float32)
    x, weight, bias = data(rng, 2, (5, 21), channels, "NHWC")
    source, out = wide[..., :channels], wide[..., 40:]
    source[...] = x
    assert group_norm_silu(source, weight, bias, 1, out=out, isa=isa) is out
    assert_close(out, expected(x, weight, bias, 1), rel_l2=5e-7)
    assert np.array_equal(source, x)
    assert (wide[..., channels:40] == 7.0).all()
    group_norm_silu(source, weight, bias, 1, out=source, isa=isa)
    assert np.array_equal(source, out)


X = np.zeros((2, 3, 3, 8), np.float32)
W = np.ones(8, np.float32)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": X.astype(np.float16)}, "x: found dtype float16, wanted float32"),
        ({"x": X[0, 0, 0]}, r"x: found shape \(8,\), wanted at least 2 axes"),
        ({"x": X[..., ::2], "weight": None, "bias": None}, "x: found a stride of 2 floats on the last axis"),
        ({"x": X[:, :2]}, "x: found axes 0 to 2 .* unevenly spaced, wanted one distance between rows"),
        ({"x": X.transpose(0, 3, 1, 2), "layout": "NCHW"}, "x: .* not C-contiguous.*ascontiguousarray"),
        ({"x": torch.zeros(2, 8)}, "x: found Tensor, wanted a float32 NumPy array"),
        ({"weight": W[:4]}, r"weight: found shape \(4,\), wanted \(8,\)"),
        ({"bias": W.astype(np.float64)}, "bias: found dtype float64"),
        ({"num_groups": 3}, r"num_groups: found 3 for x of shape \(2, 3, 3, 8\), wanted a divisor of its 8"),
        ({"num_groups": 0}, "num_groups: found 0"),
        ({"num_groups": 8, "layout": "NCHW"}, r"wanted a divisor of its 3 channels \(NCHW\)"),
        ({"layout": "HWC"}, "layout: found 'HWC', wanted 'NHWC' or 'NCHW'"),
        ({"eps": -1.0}, "eps: found -1"),
        ({"eps": float("nan")}, "eps: found nan"),
        ({"out": X[:1].copy()}, r"out: found shape \(1, 3, 3, 8\), wanted \(2, 3, 3, 8\)"),
        ({"threads": 0}, "threads: found 0, wanted at least 1"),
        ({"isa": "mmx"}, "isa: unknown instruction set 'mmx'"),
    ],
)
def test_refuses_bad_arguments(change, message):
    with pytest.raises(InputError, match=message):
        group_norm_silu(**{"x": X, "weight": W, "bias": W, "num_groups": 2, **change})


def test_refuses_partial_overlap():
    line = np.zeros(40, np.float32)
    with pytest.raises(InputError, match="out: found an array that overlaps x"):
        group_norm_silu(line[:32].reshape(4, 8), None, None, 2, out=line[8:].reshape(4, 8))


@pytest.mark.parametrize("layout", ["NHWC", "NCHW"])
def test_reference_is_group_norm(rng, layout):
    # The specification itself against PyTorch's own operators.
    x, weight, bias = map(torch.from_numpy, data(rng, 2, (5, 3), 12, layout))
    channels_first = x.permute(0, 3, 1, 2) if layout == "NHWC" else x
    wanted = torch.nn.functional.silu(torch.nn.functional.group_norm(channels_first, 4, weight, bias, 1e-6))
    found = reference.group_norm_silu(x, weight, bias, 4, 1e-6, layout=layout)
    assert_close(found, wanted.permute(0, 2, 3, 1) if layout == "NHWC" else wanted, rel_l2=5e-7)


def test_torch_op():
    x = torch.randn(2, 3, 3, 8, generator=torch.Generator().manual_seed(0))
    weight = torch.arange(8.0)
    torch.library.opcheck(library.group_norm_silu, (x, weight, None, 2))
    torch.library.opcheck(
        library.group_norm_silu, (x.permute(0, 3, 1, 2), weight, weight, 4, 1e-6, False, "NCHW")
    )
    found = torch.ops.fastdiff.group_norm_silu(x, weight, None, 2)
    assert torch.equal(found, reference.group_norm_silu(x, weight, None, 2))
    with pytest.raises(InputError, match="num_groups: found 3"):
        library.group_norm_silu(x, None, None, 3)
