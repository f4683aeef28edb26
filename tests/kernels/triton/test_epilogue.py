"""epilogue in Triton against the reference in float64."""

from __future__ import annotations

import pytest
import torch

from fastdiff.errors import InputError
from fastdiff.kernels import library, reference
from fastdiff.kernels.triton.epilogue import epilogue
from fastdiff.kernels.triton.launch import Config
from tests.compare import assert_close

# The rounding of the result; to bfloat16 the interpreter cuts off instead.
TOLERANCE = {torch.float32: 5e-7, torch.float16: 4e-4, torch.bfloat16: 4e-3}

# One element, odd sizes, channels of SD 1.5, rows without pixels, a single row, none, no pixel.
SHAPES = [(1, 2), (3, 5, 7, 34), (2, 4, 4, 320), (9, 77, 96), (1, 1, 1, 1280), (0, 4, 8), (2, 0, 3, 8)]


def tensors(
    shape: tuple[int, ...], activation: str, dtype: torch.dtype
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    out = shape[-1] // 2 if activation == "geglu" else shape[-1]
    x = 2 * torch.randn(shape, generator=generator)
    bias = torch.randn(shape[-1], generator=generator)
    vector = torch.randn(shape[0], shape[-1], generator=generator)
    residual = torch.randn(*shape[:-1], out, generator=generator)
    return x.to(dtype), bias.to(dtype), vector.to(dtype), residual.to(dtype)


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("activation", reference.ACTIVATIONS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_against_reference(shape: tuple[int, ...], activation: str, dtype: torch.dtype, device: str) -> None:
    given = tensors(shape, activation, dtype)
    found = epilogue(*(value.to(device) for value in given), activation, 0.5)
    assert found.dtype == dtype
    wanted = reference.epilogue(*(value.double() for value in given), activation, 0.5)
    assert_close(found.cpu().float(), wanted, rel_l2=TOLERANCE[dtype], label="epilogue")


@pytest.mark.parametrize("left_out", [(0, 1, 2), (1, 2), (0, 2), (0, 1)], ids=str)
@pytest.mark.parametrize("activation", ["silu", "geglu"])
def test_optional_parts(left_out: tuple[int, ...], activation: str, device: str) -> None:
    x, *rest = tensors((2, 3, 4, 20), activation, torch.float32)
    given = [x, *(None if index in left_out else value for index, value in enumerate(rest))]
    found = epilogue(*(None if value is None else value.to(device) for value in given), activation)
    wanted = reference.epilogue(*(None if value is None else value.double() for value in given), activation)
    assert_close(found.cpu(), wanted, rel_l2=5e-7, label="epilogue")


def test_pixels_apart_in_place(device: str) -> None:
    wide = torch.randn(2, 3, 7, 60, generator=torch.Generator().manual_seed(1))
    there = wide.clone().to(device)
    view = there[..., 10:50]
    vector = torch.ones(2, 99, device=device)[:, 5:45]
    config = Config.of(2, 1, P_BLOCK=4, C_BLOCK=16)
    assert epilogue(view, None, vector, None, "gelu", out=view, config=config) is view
    wanted = reference.epilogue(wide[..., 10:50].double(), torch.ones(40).double(), activation="gelu")
    assert_close(view.cpu(), wanted, rel_l2=5e-7, label="epilogue")
    assert torch.equal(there[..., :10].cpu(), wide[..., :10])
    assert torch.equal(there[..., 50:].cpu(), wide[..., 50:])


def test_sums_are_not_rounded_between(device: str) -> None:
    # In fp16 the sum of x and bias would overflow, and the residual would come too late.
    x = torch.full((1, 4, 16), 6e4, dtype=torch.float16, device=device)
    found = epilogue(x, x[0, 0], None, -x, "none", 1.0)
    assert torch.equal(found, x)


def test_reference_is_the_modules() -> None:
    x, bias, vector, residual = (value.double() for value in tensors((2, 3, 4, 20), "silu", torch.float64))
    wanted = torch.nn.functional.silu(x + bias + vector[:, None, None]) + residual
    assert_close(reference.epilogue(x, bias, vector, residual, "silu", 0.5), 0.5 * wanted, rel_l2=1e-15)


def test_torch_op() -> None:
    x, bias, vector, residual = tensors((2, 3, 4, 20), "geglu", torch.float32)
    torch.library.opcheck(library.epilogue, (x, bias, vector, residual, "geglu", 0.5))
    torch.library.opcheck(library.epilogue, (x, None, vector))


def test_refused() -> None:
    x = torch.ones(2, 3, 8)
    with pytest.raises(InputError, match="activation: found 'relu'"):
        epilogue(x, activation="relu")
    with pytest.raises(InputError, match="x: found 7 channels, wanted an even number"):
        epilogue(torch.ones(2, 7), activation="geglu")
    with pytest.raises(InputError, match=r"residual: found shape \(2, 3, 8\), wanted \(2, 3, 4\)"):
        epilogue(x, residual=x, activation="geglu")
    with pytest.raises(InputError, match=r"vector: found shape \(8,\), wanted \(2, 8\)"):
        epilogue(x, None, torch.ones(8))
    with pytest.raises(InputError, match=r"x: found shape \(8,\)"):
        epilogue(x[0, 0])
