"""upsample_nearest2d and avg_pool2d on the CPU against PyTorch's."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn import functional

from fastdiff.errors import InputError
from fastdiff.kernels import avg_pool2d, upsample_nearest2d
from tests.compare import assert_close

SHAPES = [
    pytest.param((1, 1, 1, 1), id="one element"),
    pytest.param((2, 3, 5, 37), id="odd sizes, a tail of every register"),
    pytest.param((1, 9, 7, 4), id="latents: fewer channels than AVX2's registers hold"),
    pytest.param((2, 8, 8, 320), id="Stable Diffusion's"),
    pytest.param((0, 4, 4, 8), id="no images"),
    pytest.param((1, 4, 4, 0), id="no channels"),
]


def channels_first(x):
    return torch.from_numpy(np.array(x, np.float64)).permute(0, 3, 1, 2)


@pytest.mark.smoke
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("factor", [1, 2, 3])
def test_upsample(rng, isa, shape, factor):
    x = rng.standard_normal(shape).astype(np.float32)
    wanted = np.repeat(np.repeat(x, factor, 1), factor, 2)
    if x.size:
        double = functional.interpolate(channels_first(x), scale_factor=factor, mode="nearest")
        assert np.array_equal(wanted, double.permute(0, 2, 3, 1).numpy())
    for threads in (1, 2, 3):
        assert np.array_equal(upsample_nearest2d(x, factor, threads=threads, isa=isa), wanted)


@pytest.mark.smoke
@pytest.mark.parametrize("size", [(9, 12), (7, 11), (8, 10), (9, 10)])
@pytest.mark.parametrize("channels", [1, 5, 64])
def test_upsample_to_a_size(rng, isa, size, channels):
    """Two images, so that a row too many of the first would be in the second."""
    x = rng.standard_normal((2, 3, 4, channels)).astype(np.float32)
    wanted = np.repeat(np.repeat(x, 3, 1), 3, 2)[:, : size[0], : size[1]]
    for threads in (1, 3):
        assert np.array_equal(upsample_nearest2d(x, 3, size=size, threads=threads, isa=isa), wanted)


def test_halves_that_were_rounded_up_are_enlarged_as_pytorch_does(rng):
    for side in range(1, 200):
        x = rng.standard_normal((1, (side + 1) // 2, 2, 1)).astype(np.float32)
        nearest = functional.interpolate(channels_first(x), size=(side, 3), mode="nearest")
        assert np.array_equal(upsample_nearest2d(x, 2, size=(side, 3)), nearest.permute(0, 2, 3, 1))


@pytest.mark.smoke
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("factor", [1, 2, 3])
def test_pool(rng, isa, shape, factor):
    x = rng.standard_normal(shape).astype(np.float32)
    found = avg_pool2d(x, factor, isa=isa)
    n, h, w, c = shape
    assert found.shape == (n, h // factor, w // factor, c)
    if found.size:
        wanted = functional.avg_pool2d(channels_first(x), factor).permute(0, 2, 3, 1)
        assert_close(found, wanted, rel_l2=2e-7, max_abs=1e-6)
    for threads in (2, 3):
        assert np.array_equal(avg_pool2d(x, factor, threads=threads, isa=isa), found)


def test_strides_and_nothing_else_written(rng, isa):
    for channels in range(1, 40):
        source = rng.standard_normal((2, 4, 6, channels + 5)).astype(np.float32)[..., 2 : 2 + channels]
        for function, h, w in ((upsample_nearest2d, 8, 12), (avg_pool2d, 2, 3)):
            wide = np.full((2, h, w, channels + 32), 7.0, np.float32)
            out = wide[..., 16 : 16 + channels]
            assert function(source, 2, out=out, isa=isa) is out
            assert np.array_equal(out, function(source.copy(), 2, isa=isa))
            out[...] = 7.0
            assert (wide == 7.0).all()


X = np.zeros((2, 4, 6, 8), np.float32)


@pytest.mark.parametrize("function", [upsample_nearest2d, avg_pool2d])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": X.astype(np.float16)}, "x: found dtype float16, wanted float32"),
        ({"x": X[0]}, r"x: found shape \(4, 6, 8\), wanted at least 4 axes"),
        ({"x": X[None]}, r"x: found shape \(1, 2, 4, 6, 8\), wanted four axes: batch, height"),
        ({"x": X[..., ::2]}, "x: found a stride of 2 floats on the last axis"),
        ({"x": X[:, :, :3]}, "x: found axes 0 to 2 .* unevenly spaced"),
        ({"factor": 0}, "factor: found 0, wanted at least 1"),
        ({"out": X}, r"out: found shape \(2, 4, 6, 8\), wanted"),
        ({"threads": 0}, "threads: found 0"),
    ],
)
def test_refuses_bad_arguments(function, change, message):
    with pytest.raises(InputError, match=message):
        function(**{"x": X, "factor": 2, **change})
