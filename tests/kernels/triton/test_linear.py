"""linear in Triton against the reference in float64."""

from __future__ import annotations

import pytest
import torch

from fastdiff.errors import InputError
from fastdiff.kernels import reference
from fastdiff.kernels.triton.launch import Config
from fastdiff.kernels.triton.linear import configs, linear
from tests.compare import assert_close

# The rounding of the result; to bfloat16 the interpreter cuts off instead.
TOLERANCE = {torch.float32: 1e-6, torch.float16: 4e-4, torch.bfloat16: 4e-3}

# (rows, inputs, outputs)
SIZES = [
    pytest.param((1, 768, 64), id="one row"),
    pytest.param((154, 96, 40), id="a prompt's rows; sums of 3 steps of 32"),
    pytest.param((33, 40, 33), id="one row beyond a block, sums of no whole step, odd outputs"),
    pytest.param((2, 7, 130), id="sums shorter than a step"),
    pytest.param((70, 64, 320), id="more tiles than a group, a last column of half a tile"),
    pytest.param((0, 64, 64), id="no row"),
]


def tensors(size: tuple[int, int, int], activation: str, dtype: torch.dtype) -> list[torch.Tensor]:
    rows, inputs, outputs = size
    generator = torch.Generator().manual_seed(0)
    wide = 2 * outputs if activation == "geglu" else outputs
    x = torch.randn(rows, inputs, generator=generator)
    weight = torch.randn(wide, inputs, generator=generator) / inputs**0.5
    bias = torch.randn(wide, generator=generator)
    residual = torch.randn(rows, outputs, generator=generator)
    return [value.to(dtype) for value in (x, weight, bias, residual)]


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("activation", reference.ACTIVATIONS)
@pytest.mark.parametrize("size", SIZES)
def test_against_reference(
    size: tuple[int, int, int], activation: str, dtype: torch.dtype, device: str
) -> None:
    given = tensors(size, activation, dtype)
    found = linear(*(value.to(device) for value in given), activation, 0.5)
    assert found.dtype == dtype
    wanted = reference.linear(*(value.double() for value in given), activation, 0.5)
    assert_close(found.cpu().float(), wanted, rel_l2=TOLERANCE[dtype], label="linear")


@pytest.mark.parametrize("activation", ["none", "geglu"])
def test_every_tiling(activation: str, device: str) -> None:
    given = tensors((150, 128, 272), activation, torch.float16)
    wanted = reference.linear(*(value.double() for value in given), activation)
    for config in configs(150, 128, 272, activation, 90, torch.float16):
        found = linear(*(value.to(device) for value in given), activation, config=config)
        assert_close(found.cpu().float(), wanted, rel_l2=4e-4, label=str(config))


def test_groups_of_rows(device: str) -> None:
    # 11 rows of tiles in groups of 8, 3 columns: the last group is not full.
    given = tensors((165, 32, 48), "none", torch.float32)
    wanted = reference.linear(*(value.double() for value in given))
    config = Config.of(4, 2, BLOCK_M=16, BLOCK_N=16, BLOCK_K=16, GROUP=8)
    found = linear(*(value.to(device) for value in given), config=config)
    assert_close(found.cpu(), wanted, rel_l2=1e-6)


def test_rows_apart_into_the_residual(device: str) -> None:
    generator = torch.Generator().manual_seed(1)
    wide = torch.randn(3, 7, 200, generator=generator)
    x, weight = wide[..., 20:68], torch.randn(32, 48, generator=generator)
    buffer = torch.ones(3, 7, 50, device=device)
    view = buffer[..., 9:41]
    found = linear(x.to(device), weight.to(device), None, view, "silu", out=view)
    assert found is view
    wanted = reference.linear(x.double(), weight.double(), None, torch.ones(3, 7, 32).double(), "silu")
    assert_close(view.cpu(), wanted, rel_l2=1e-6)
    assert (buffer[..., :9] == 1).all()
    assert (buffer[..., 41:] == 1).all()


def test_nothing_overflows_before_the_epilogue(device: str) -> None:
    # The product and the residual are beyond fp16, their sum is not.
    x = torch.full((4, 32), 250.0, dtype=torch.float16, device=device)
    weight = torch.full((16, 32), 10.0, dtype=torch.float16, device=device)
    residual = torch.full((4, 16), -6e4, dtype=torch.float16, device=device)
    assert (linear(x, weight, None, residual) == 2e4).all()


def test_refused() -> None:
    x, weight = torch.ones(2, 8), torch.ones(6, 8)
    with pytest.raises(InputError, match=r"weight: found shape \(6, 8\)"):
        linear(x[:, :4], weight)
    with pytest.raises(InputError, match="activation: found 'relu'"):
        linear(x, weight, activation="relu")
    with pytest.raises(InputError, match=r"weight: found torch.float16 on cpu"):
        linear(x, weight.half())
    with pytest.raises(InputError, match=r"residual: found shape \(2, 6\), wanted \(2, 3\)"):
        linear(x, weight, None, torch.ones(2, 6), "geglu")
    with pytest.raises(InputError, match=r"out: found \(2, 5\)"):
        linear(x, weight, out=torch.ones(2, 5))
