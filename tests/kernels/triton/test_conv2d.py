"""conv2d in Triton against the reference in float64."""

from __future__ import annotations

import pytest
import torch

from fastdiff.errors import InputError
from fastdiff.kernels import reference
from fastdiff.kernels.triton.conv2d import configs, conv2d, pack_weight
from tests.compare import assert_close

# The rounding of the result; to bfloat16 the interpreter cuts off instead.
TOLERANCE = {torch.float32: 1e-6, torch.float16: 4e-4, torch.bfloat16: 4e-3}

# ((batch, height, width, in), (out, kernel height, kernel width), stride, padding, upsample)
CASES = [
    pytest.param((2, 7, 5, 48), (33, 3, 3), 1, (1, 1, 1, 1), 1, id="3x3, tiles over two images"),
    pytest.param((1, 9, 8, 32), (20, 3, 3), 2, (0, 1, 0, 1), 1, id="a VAE's downsampling: one side padded"),
    pytest.param((1, 9, 8, 32), (20, 3, 3), 2, (1, 1, 1, 1), 1, id="a U-Net's downsampling"),
    pytest.param((2, 3, 4, 40), (16, 3, 3), 1, (1, 1, 1, 1), 2, id="upsampling, 40 channels"),
    pytest.param((2, 5, 5, 64), (3, 1, 1), 1, (0, 0, 0, 0), 1, id="1x1 to three channels"),
    pytest.param((1, 6, 5, 4), (24, 3, 3), 1, (1, 1, 1, 1), 1, id="four channels: steps over taps"),
    pytest.param((1, 4, 3, 4), (4, 1, 1), 1, (0, 0, 0, 0), 1, id="four channels to four"),
    pytest.param((3, 1, 1, 96), (8, 3, 3), 1, (1, 1, 1, 1), 1, id="one pixel: all but one tap is padding"),
    pytest.param((1, 3, 6, 5), (5, 2, 3), 1, (0, 2, 1, 0), 3, id="odd kernel, padding and upsampling"),
    pytest.param((0, 4, 4, 16), (8, 3, 3), 1, (1, 1, 1, 1), 1, id="no image"),
]


def tensors(
    x: tuple[int, ...], kernel: tuple[int, ...], stride: int, padding: tuple[int, ...], up: int
) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    out, height, width = kernel
    picture = torch.randn(x, generator=generator)
    weight = torch.randn(out, x[3], height, width, generator=generator) / (height * width * x[3]) ** 0.5
    bias = torch.randn(out, generator=generator)
    vector = torch.randn(x[0], out, generator=generator)
    y = reference.conv2d(picture, weight, None, None, None, stride, padding, up)
    return [picture, weight, bias, vector, torch.randn(y.shape, generator=generator)]


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize(("x", "kernel", "stride", "padding", "up"), CASES)
def test_against_reference(
    x: tuple[int, ...],
    kernel: tuple[int, ...],
    stride: int,
    padding: tuple[int, ...],
    up: int,
    dtype: torch.dtype,
    device: str,
) -> None:
    given = [value.to(dtype) for value in tensors(x, kernel, stride, padding, up)]
    found = conv2d(*(value.to(device) for value in given), stride, padding, up, "silu", 0.5)
    assert found.dtype == dtype
    wanted = reference.conv2d(*(value.double() for value in given), stride, padding, up, "silu", 0.5)
    assert_close(found.cpu().float(), wanted, rel_l2=TOLERANCE[dtype], label="conv2d")


@pytest.mark.parametrize("size", [(7, 10), (8, 9), (7, 9)], ids=["row", "column", "both"])
@pytest.mark.parametrize("channels", [4, 40], ids=["steps over taps", "steps over channels"])
def test_the_enlarged_picture_is_cut(size: tuple[int, int], channels: int, device: str) -> None:
    """Where it once was odd: what lies beyond is padding, not the pixel that is there."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(2, 4, 5, channels, generator=generator)
    weight = torch.randn(12, channels, 3, 3, generator=generator) / (9 * channels) ** 0.5
    residual = torch.randn(2, *size, 12, generator=generator)
    rest = (1, (1, 1, 1, 1), 2, "none", 1.0, size)
    found = conv2d(x.to(device), weight.to(device), None, None, residual.to(device), *rest)
    wanted = reference.conv2d(x.double(), weight.double(), None, None, residual.double(), *rest)
    assert_close(found.cpu(), wanted, rel_l2=1e-6)


@pytest.mark.parametrize("activation", [name for name in reference.ACTIVATIONS if name != "geglu"])
def test_without_addends(activation: str, device: str) -> None:
    x, weight, *_ = tensors((2, 4, 3, 24), (16, 3, 3), 1, (1, 1, 1, 1), 1)
    found = conv2d(
        x.to(device), pack_weight(weight).to(device), None, None, None, 1, (1, 1, 1, 1), 1, activation
    )
    wanted = reference.conv2d(x.double(), weight.double(), None, None, None, 1, (1, 1, 1, 1), 1, activation)
    assert_close(found.cpu(), wanted, rel_l2=1e-6)


def test_every_tiling(device: str) -> None:
    given = [value.half() for value in tensors((2, 6, 7, 64), (24, 3, 3), 1, (1, 1, 1, 1), 1)]
    wanted = reference.conv2d(*(value.double() for value in given), 1, (1, 1, 1, 1))
    for config in configs(84, 64, 24, 576, 90, torch.float16):
        found = conv2d(*(value.to(device) for value in given), 1, (1, 1, 1, 1), config=config)
        assert_close(found.cpu().float(), wanted, rel_l2=4e-4, label=str(config))


def test_pixels_apart_into_the_residual(device: str) -> None:
    x, weight, *_ = tensors((2, 5, 4, 80), (24, 3, 3), 1, (1, 1, 1, 1), 1)
    picture, weight = x[..., 8:40], weight[:, 8:40]
    vector = torch.ones(2, 50)[:, 3:27]  # part of a merged projection
    buffer = torch.full((2, 5, 4, 40), 2.0, device=device)
    view = buffer[..., 7:31]
    rest = (1, (1, 1, 1, 1))
    found = conv2d(picture.to(device), weight.to(device), None, vector.to(device), view, *rest, out=view)
    assert found is view
    residual = torch.full((2, 5, 4, 24), 2.0).double()
    wanted = reference.conv2d(picture.double(), weight.double(), None, vector.double(), residual, *rest)
    assert_close(view.cpu(), wanted, rel_l2=1e-6)
    assert (buffer[..., :7] == 2).all()
    assert (buffer[..., 31:] == 2).all()


def test_packed_weights_are_equal_and_channels_last() -> None:
    weight = torch.randn(6, 5, 3, 2, generator=torch.Generator().manual_seed(0))
    packed = pack_weight(weight)
    assert torch.equal(packed, weight)
    assert packed.is_contiguous(memory_format=torch.channels_last)
    assert pack_weight(packed).data_ptr() == packed.data_ptr()


def test_refused() -> None:
    x, weight = torch.ones(1, 4, 4, 8), torch.ones(6, 8, 3, 3)
    rest = (None, None, None, 1)
    with pytest.raises(InputError, match=r"weight: found shape \(6, 7, 3, 3\)"):
        conv2d(x, weight[:, :7], *rest, (1, 1, 1, 1))
    with pytest.raises(InputError, match=r"padding: found \[1, 1\]"):
        conv2d(x, weight, *rest, (1, 1))
    with pytest.raises(InputError, match="activation: found 'geglu'"):
        conv2d(x, weight, *rest, (1, 1, 1, 1), 1, "geglu")
    with pytest.raises(InputError, match=r"residual: found shape \(1, 4, 4, 6\), wanted \(1, 2, 2, 6\)"):
        conv2d(x, weight, None, None, torch.ones(1, 4, 4, 6), 1, (0, 0, 0, 0))
    with pytest.raises(InputError, match="evenly spaced rows"):
        conv2d(torch.ones(1, 4, 6, 8)[:, :, :4], weight, *rest, (1, 1, 1, 1))
