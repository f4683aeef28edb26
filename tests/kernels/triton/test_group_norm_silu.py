"""group_norm_silu and add_group_norm_silu in Triton against the reference in float64."""

from __future__ import annotations

import math

import pytest
import torch

from fastdiff.errors import InputError
from fastdiff.kernels import library, reference
from fastdiff.kernels.triton.group_norm_silu import add_group_norm_silu, configs, group_norm_silu
from fastdiff.kernels.triton.launch import Config
from tests.compare import assert_close

# The rounding of the result; to bfloat16 the interpreter cuts off instead.
TOLERANCE = {torch.float32: 1e-6, torch.float16: 4e-4, torch.bfloat16: 4e-3}

# (shape, groups)
SIZES = [
    pytest.param((2, 8, 8, 320), 32, id="10 channels per group, no power of two"),
    pytest.param((1, 2, 2, 2560), 32, id="80 channels per group"),
    pytest.param((2, 5, 7, 48), 48, id="groups of one channel, an odd number of pixels"),
    pytest.param((2, 1, 1, 64), 32, id="one pixel"),
    pytest.param((2, 64), 32, id="no pixel axis"),
    pytest.param((1, 3, 5, 37), 1, id="channels of no alignment, one group"),
    pytest.param((1, 1, 1, 1), 1, id="one element: the variance is zero"),
    pytest.param((1, 3, 7, 11, 96), 32, id="three pixel axes, the last block of groups not full"),
    pytest.param((2, 0, 4, 8), 2, id="no pixel"),
    pytest.param((0, 4, 4, 8), 2, id="no sample"),
]


def both(shape: tuple[int, ...], groups: int) -> list[Config]:
    """The first tiling of one pass and the first split one."""
    known = configs(math.prod(shape[1:-1]), shape[-1], groups)
    split = [config for config in known if "APPLY_P" in dict(config.blocks)]
    return [known[0], split[0]]


def data(shape: tuple[int, ...], dtype: torch.dtype, mean: float = 0.5) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(0)
    x = mean + torch.randn(shape, generator=generator)
    weight, bias = torch.randn(2, shape[-1], generator=generator)
    return x.to(dtype), weight.to(dtype), bias.to(dtype)


def double(*tensors: torch.Tensor | None) -> list[torch.Tensor | None]:
    return [None if tensor is None else tensor.cpu().double() for tensor in tensors]


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize(("shape", "groups"), SIZES)
def test_against_reference(shape: tuple[int, ...], groups: int, dtype: torch.dtype, device: str) -> None:
    x, weight, bias = data(shape, dtype)
    wanted = reference.group_norm_silu(*double(x, weight, bias), groups, 1e-6)
    for config in both(shape, groups):
        found = group_norm_silu(x.to(device), weight.to(device), bias.to(device), groups, 1e-6, config=config)
        assert found.dtype == dtype
        assert_close(found.cpu().float(), wanted, rel_l2=TOLERANCE[dtype], label=str(config))


def test_optional_parts(device: str) -> None:
    x, weight, bias = data((2, 3, 5, 24), torch.float32)
    for w, b, silu in ((None, None, False), (weight, None, True), (None, bias, False)):
        wanted = reference.group_norm_silu(*double(x, w, b), 4, 1e-5, silu)
        w, b = (None if value is None else value.to(device) for value in (w, b))
        for config in both((2, 3, 5, 24), 4):
            found = group_norm_silu(x.to(device), w, b, 4, 1e-5, silu, config=config)
            assert_close(found.cpu(), wanted, rel_l2=1e-6, label=str(config))


def test_mean_of_many_deviations(device: str) -> None:
    # In E[x²] - E[x]² float32 would lose every digit; one float32 mean alone would cost four of them.
    x, weight, bias = data((2, 16, 17, 40), torch.float32, mean=1e4)
    wanted = reference.group_norm_silu(*double(x, weight, bias), 8)
    for config in both((2, 16, 17, 40), 8):
        found = group_norm_silu(x.to(device), weight.to(device), bias.to(device), 8, config=config)
        assert_close(found.cpu(), wanted, rel_l2=1e-6, max_abs=1e-5, label=str(config))


def test_squares_that_overflow_fp16(device: str) -> None:
    x, weight, bias = data((1, 9, 9, 64), torch.float16)
    x = (6e4 * torch.sign(x)).half()
    wanted = reference.group_norm_silu(*double(x, weight, bias), 32)
    for config in both((1, 9, 9, 64), 32):
        found = group_norm_silu(x.to(device), weight.to(device), bias.to(device), 32, config=config)
        assert_close(found.cpu().float(), wanted, rel_l2=4e-4, label=str(config))


def test_steep_change_between_chunks(device: str) -> None:
    # Each chunk's mean is far from the others'.
    x, weight, bias = data((1, 40, 40, 16), torch.float32)
    x += 100 * torch.arange(40.0)[:, None, None]
    wanted = reference.group_norm_silu(*double(x, weight, bias), 2)
    found = group_norm_silu(
        x.to(device), weight.to(device), bias.to(device), 2, config=both((1, 40, 40, 16), 2)[1]
    )
    assert_close(found.cpu(), wanted, rel_l2=1e-6)


# 600 pixels make more chunks than the narrower tiling joins; 33 leave one pixel for the last chunk.
@pytest.mark.parametrize("pixels", [1, 31, 32, 33, 64, 600])
def test_chunks(pixels: int, device: str) -> None:
    x, weight, bias = data((1, pixels, 16), torch.float32)
    wanted = reference.group_norm_silu(*double(x, weight, bias), 4)
    config = Config.of(4, 1, P_BLOCK=2 if pixels == 600 else 32, C_BLOCK=16, APPLY_P=256, APPLY_C=16)
    found = group_norm_silu(x.to(device), weight.to(device), bias.to(device), 4, config=config)
    assert_close(found.cpu(), wanted, rel_l2=1e-6)


@pytest.mark.parametrize("split", [False, True])
def test_pixels_apart_and_in_place(split: bool, device: str) -> None:
    wide = torch.randn(2, 5, 6, 100, generator=torch.Generator().manual_seed(1))
    wanted = reference.group_norm_silu(wide[..., 3:51].double(), None, None, 6)
    there = wide.clone().to(device)
    view = there[..., 3:51]
    assert group_norm_silu(view, None, None, 6, out=view, config=both((2, 5, 6, 48), 6)[split]) is view
    assert_close(view.cpu(), wanted, rel_l2=1e-6)
    assert torch.equal(there[..., :3].cpu(), wide[..., :3])
    assert torch.equal(there[..., 51:].cpu(), wide[..., 51:])


@pytest.mark.parametrize("split", [False, True])
def test_nan_spreads_over_its_group_only(split: bool, device: str) -> None:
    x = data((2, 3, 3, 8), torch.float32)[0]
    x[0, 1, 1, 2] = math.nan
    y = group_norm_silu(x.to(device), None, None, 4, config=both((2, 3, 3, 8), 4)[split]).cpu()
    assert y[0, :, :, 2:4].isnan().all()
    assert y[0, :, :, [0, 1, 4, 5, 6, 7]].isfinite().all()
    assert y[1].isfinite().all()


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("split", [False, True])
@pytest.mark.parametrize("parts", ["bias", "vector", "residual", "bias vector residual", ""])
def test_sum_first(parts: str, split: bool, dtype: torch.dtype, device: str) -> None:
    shape = (2, 5, 7, 60)  # five groups of 12: with blocks of 16, lanes beyond the last channel
    generator = torch.Generator().manual_seed(2)
    x, weight, norm_bias = data(shape, dtype)
    projection = torch.randn(2, 100, generator=generator).to(dtype)
    given = {
        "bias": torch.randn(60, generator=generator).to(dtype),
        "vector": projection[:, 30:90],  # part of a merged projection
        "residual": torch.randn(shape, generator=generator).to(dtype),
    }
    addends = [given[name] if name in parts.split() else None for name in ("bias", "vector", "residual")]
    exact, _ = reference.add_group_norm_silu(*double(x, *addends, weight, norm_bias), 5)
    arguments = [None if value is None else value.to(device) for value in (x, *addends, weight, norm_bias)]
    config = both(shape, 5)[split]
    total, normed = add_group_norm_silu(*arguments, 5, config=config)
    assert total is not None
    assert total.dtype == normed.dtype == dtype
    assert_close(total.cpu().float(), exact, rel_l2=TOLERANCE[dtype], label="sum")
    # What is normalised is the sum as it was rounded.
    wanted = reference.group_norm_silu(*double(total, weight, norm_bias), 5)
    assert_close(normed.cpu().float(), wanted, rel_l2=TOLERANCE[dtype], label="normed")
    nothing, again = add_group_norm_silu(*arguments, 5, keep_sum=False, config=config)
    assert nothing is None
    assert_close(again.cpu().float(), wanted, rel_l2=TOLERANCE[dtype], label="normed alone")


@pytest.mark.parametrize("split", [False, True])
def test_sum_into_its_addends(split: bool, device: str) -> None:
    shape = (1, 6, 7, 24)
    x, weight, bias = (value.to(device) for value in data(shape, torch.float32))
    residual = torch.ones(shape, device=device)
    config = both(shape, 3)[split]
    wanted = add_group_norm_silu(x, bias, None, residual, weight, bias, 3, config=config)
    found = add_group_norm_silu(x, bias, None, residual, weight, bias, 3, out=(residual, x), config=config)
    assert found[0] is residual
    assert found[1] is x
    assert wanted[0] is not None
    assert torch.equal(residual, wanted[0])
    assert torch.equal(x, wanted[1])


def test_reference_is_the_modules() -> None:
    # The specification itself, against PyTorch's own operators in its layout.
    x, weight, bias = data((2, 4, 3, 12), torch.float64)
    vector, residual = torch.randn(2, 12).double(), torch.randn(2, 4, 3, 12).double()
    total = x + bias + vector[:, None, None] + residual
    picture = torch.nn.functional.group_norm(total.permute(0, 3, 1, 2), 3, weight, bias, 1e-5)
    wanted = torch.nn.functional.silu(picture).permute(0, 2, 3, 1)
    found = reference.add_group_norm_silu(x, bias, vector, residual, weight, bias, 3)
    assert_close(found[0], total, rel_l2=1e-15)
    assert_close(found[1], wanted, rel_l2=1e-13)


def test_torch_op() -> None:
    x, weight, bias = data((2, 3, 5, 12), torch.float32)
    torch.library.opcheck(library.add_group_norm_silu, (x, bias, None, x, weight, bias, 3))
    torch.library.opcheck(
        library.add_group_norm_silu, (x, None, x[:, 0, 0], None, None, None, 2, 1e-6, False)
    )


def test_refused() -> None:
    x = torch.ones(2, 3, 3, 8)
    with pytest.raises(InputError, match="num_groups: found 3"):
        group_norm_silu(x, None, None, 3)
    with pytest.raises(InputError, match="layout: found 'NCHW'"):
        group_norm_silu(x, None, None, 3, layout="NCHW")
    with pytest.raises(InputError, match=r"x: found shape \(8,\)"):
        group_norm_silu(x[0, 0, 0], None, None, 2)
    with pytest.raises(InputError, match=r"weight: found torch.float16"):
        group_norm_silu(x, torch.ones(8).half(), None, 2)
    with pytest.raises(InputError, match="evenly spaced rows"):
        group_norm_silu(x[:, :, :2], None, None, 2)
    with pytest.raises(InputError, match="config: found P_BLOCK 4 for 9 pixels"):
        group_norm_silu(x, None, None, 2, config=Config.of(4, 1, P_BLOCK=4, C_BLOCK=8))
    with pytest.raises(InputError, match="config: found C_BLOCK 2, wanted at least a group's 4"):
        group_norm_silu(x, None, None, 2, config=Config.of(4, 1, P_BLOCK=16, C_BLOCK=2))
    with pytest.raises(InputError, match=r"vector: found shape \(8,\), wanted \(2, 8\)"):
        add_group_norm_silu(x, None, torch.ones(8), None, None, None, 2)
    with pytest.raises(InputError, match="out: found one tensor for the sum and the result"):
        add_group_norm_silu(x, None, None, None, None, None, 2, out=(x, x))
