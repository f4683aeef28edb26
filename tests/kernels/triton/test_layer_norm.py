"""layer_norm in Triton against the reference in float64; the reference against PyTorch's own."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from fastdiff.errors import InputError
from fastdiff.kernels import library, reference
from fastdiff.kernels.triton.launch import Config
from fastdiff.kernels.triton.layer_norm import configs, layer_norm
from tests.compare import assert_close

# The rounding of the result; to bfloat16 the interpreter cuts off instead.
TOLERANCE = {torch.float32: 1e-6, torch.float16: 4e-4, torch.bfloat16: 5e-3}


def inputs(shape: tuple[int, ...], dtype: torch.dtype, seed: int = 0) -> tuple[Tensor, ...]:
    """x, residual, weight, bias; the mean is away from zero, where a difference of squares would lose it."""
    generator = torch.Generator().manual_seed(seed)
    x, residual = (torch.randn(shape, generator=generator).add(3).to(dtype) for _ in range(2))
    weight, bias = (torch.randn(shape[-1], generator=generator).to(dtype) for _ in range(2))
    return x, residual, weight, bias


def check(
    given: tuple[Tensor | None, ...], device: str, config: Config | None = None, eps: float = 1e-5
) -> tuple[Tensor, Tensor]:
    x = given[0]
    assert x is not None
    moved = (None if t is None else t.to(device) for t in given)
    found = layer_norm(*moved, eps, config=config)  # type: ignore[arg-type]
    wanted = reference.layer_norm(*(None if t is None else t.double() for t in given), eps)  # type: ignore[arg-type]
    for name, f, w in zip(("sum", "normed"), found, wanted, strict=True):
        assert f.dtype == x.dtype
        assert_close(f.cpu().float(), w, rel_l2=TOLERANCE[x.dtype], label=name)
    return found


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
# One channel, odd channels in one piece and in two, SD's 320 = 256 + 64 and 1280, rows that fill no block.
@pytest.mark.parametrize("shape", [(3, 1), (2, 7), (5, 70), (2, 3, 320), (3, 1280), (0, 64)], ids=str)
def test_against_reference(shape: tuple[int, ...], dtype: torch.dtype, device: str) -> None:
    check(inputs(shape, dtype), device)


@pytest.mark.parametrize("left_out", ["residual", "weight", "bias", "all"])
def test_arguments_left_out(left_out: str, device: str) -> None:
    names = ("x", "residual", "weight", "bias")
    given = tuple(
        None if name == left_out or (left_out == "all" and name != "x") else tensor
        for name, tensor in zip(names, inputs((4, 96), torch.float16), strict=True)
    )
    check(given, device)


def test_without_a_residual_the_sum_is_x(device: str) -> None:
    x = torch.randn(2, 8, device=device)
    assert layer_norm(x)[0] is x


def test_every_tiling(device: str) -> None:
    for config in configs(320, 90):
        check(inputs((11, 320), torch.float32), device, config)


def test_rows_apart_and_out(device: str) -> None:
    x, residual, weight, bias = (t.to(device) for t in inputs((3, 4, 48), torch.float32))
    wide = torch.zeros(3, 4, 100, device=device)
    wide[..., 20:68] = x
    normed = torch.full((3, 4, 60), 7.0, device=device)
    # the sum written over the residual, as a chain of layers has it
    out = (residual.clone(), normed[..., 4:52])
    found = layer_norm(wide[..., 20:68], out[0], weight, bias, out=out)
    wanted = reference.layer_norm(x, residual, weight, bias)
    for f, o, w in zip(found, out, wanted, strict=True):
        assert f is o
        assert_close(f.cpu(), w.cpu(), rel_l2=1e-6, label="layer_norm")
    assert (normed[..., :4] == 7).all()
    assert (normed[..., 52:] == 7).all()


def test_large_activations_do_not_overflow(device: str) -> None:
    """Squares of 1.5e4 are beyond fp16, and so is the sum over a row."""
    x, _, weight, bias = inputs((4, 320), torch.float16)
    check(((5e3 * x.float()).half(), None, weight, bias), device)


def test_rows_of_one_value_give_the_bias(device: str) -> None:
    _, _, weight, bias = inputs((1, 40), torch.float32)
    check((torch.full((3, 40), 1e3), None, weight, bias), device)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"x": torch.ones(())}, "x: found shape"),
        ({"x": torch.ones(2, 0)}, "one channel or more"),
        ({"residual": torch.ones(4)}, "residual: found shape"),
        ({"weight": torch.ones(3)}, "weight: found shape"),
        ({"bias": torch.ones(2, 4)}, "bias: found shape"),
        ({"residual": torch.ones(2, 4).half()}, "residual: found torch.float16"),
        ({"x": torch.ones(4, 2).t()}, "x: found stride 2 on the last axis"),
        ({"out": (torch.ones(2, 4), torch.ones(4, 4))}, r"out\[1\]: found \(4, 4\)"),
    ],
)
def test_refused(change: dict[str, object], words: str) -> None:
    given = {name: torch.ones(2, 4) for name in ("x", "residual")}
    with pytest.raises(InputError, match=words):
        layer_norm(**{**given, **change})  # type: ignore[arg-type]


def test_reference_against_pytorch() -> None:
    x, residual, weight, bias = (t.double() for t in inputs((2, 5, 24), torch.float32))
    total, normed = reference.layer_norm(x, residual, weight, bias, 1e-3)
    assert_close(total, x + residual, max_abs=0, label="sum")
    assert_close(
        normed, functional.layer_norm(total, (24,), weight, bias, 1e-3), rel_l2=1e-14, label="normed"
    )


def test_the_registered_op() -> None:
    x, residual, weight, bias = inputs((2, 5, 24), torch.float32)
    torch.library.opcheck(library.layer_norm, (x, residual, weight, bias))
    torch.library.opcheck(library.layer_norm, (x.transpose(0, 1), None, None, None, 1e-6))
