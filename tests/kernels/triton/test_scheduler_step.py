"""scheduler_step in Triton against the reference in float64."""

from __future__ import annotations

import pytest
import torch

from fastdiff.errors import InputError
from fastdiff.kernels import reference
from fastdiff.kernels.triton.launch import Config
from fastdiff.kernels.triton.scheduler_step import configs, scheduler_step
from tests.compare import assert_close

COEFS = [0.7, -1.3, 0.2, 2.1]


def tensors(shape: tuple[int, ...], count: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=generator) for _ in range(count)]


def double(value: object) -> object:
    if isinstance(value, torch.Tensor):
        return value.cpu().double()
    return [double(item) for item in value] if isinstance(value, list) else value


# One element, an odd number of elements over one block, two latents of odd sizes, none.
@pytest.mark.parametrize("shape", [(1,), (1025,), (2, 4, 9, 7), (1, 4, 0, 8)], ids=str)
@pytest.mark.parametrize("guided", [False, True])
@pytest.mark.parametrize("history", range(5))
@pytest.mark.parametrize("noisy", [False, True])
def test_against_reference(
    shape: tuple[int, ...], guided: bool, history: int, noisy: bool, device: str
) -> None:
    sample, cond, uncond, noise, *kept = (value.to(device) for value in tensors(shape, 4 + history))
    given = [sample, cond, uncond if guided else None, 7.5, 0.9, -0.4, kept, COEFS[:history]]
    given += [noise, 0.3] if noisy else []
    out, output = scheduler_step(*given)
    wanted = reference.scheduler_step(*(double(value) for value in given))
    # Terms of up to 30 may cancel: the bound is on their rounding, not on the sum's.
    assert_close(out.cpu(), wanted[0], max_abs=6e-6, label="out")
    assert_close(output.cpu(), wanted[1], max_abs=6e-6, label="guided")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_a_model_in_half_precision(dtype: torch.dtype, device: str) -> None:
    sample, cond, uncond, old = (value.to(device) for value in tensors((2, 4, 5, 3), 4))
    cond, uncond, old = cond.to(dtype), uncond.to(dtype), old.to(dtype)
    out, guided = scheduler_step(sample, cond, uncond, 7.5, 0.9, -0.4, [old], [0.7])
    assert (out.dtype, guided.dtype) == (torch.float32, dtype)
    wanted = reference.scheduler_step(*double([sample, cond, uncond]), 7.5, 0.9, -0.4, double([old]), [0.7])
    # The guided output is rounded where it is stored, not on its way to the sample.
    assert_close(out.cpu(), wanted[0], rel_l2=1e-6, label="out")
    bound = 4e-4 if dtype == torch.float16 else 4e-3
    assert_close(guided.cpu().float(), wanted[1], rel_l2=bound, label="guided")


def test_bits_do_not_depend_on_the_tiling(device: str) -> None:
    sample, cond, uncond, noise, *kept = (value.to(device) for value in tensors((2, 4, 9, 7), 8))
    given = (sample, cond, uncond, 7.5, 0.9, -0.4, kept, COEFS, noise, 0.3)
    wanted = scheduler_step(*given)
    for config in (*configs(), Config.of(1, 1, BLOCK=16)):
        found = scheduler_step(*given, config=config)
        assert torch.equal(found[0], wanted[0])
        assert torch.equal(found[1], wanted[1])


def test_in_place_and_channels_last(device: str) -> None:
    sample, cond, uncond = (
        value.to(device).contiguous(memory_format=torch.channels_last) for value in tensors((2, 4, 5, 3), 3)
    )
    given = (sample, cond, uncond, 3.0, 0.9, -0.4, [], [])
    wanted = reference.scheduler_step(*(double(value) for value in given))
    found = scheduler_step(*given, out=(sample, cond))
    assert found[0] is sample
    assert found[1] is cond
    assert_close(sample.cpu(), wanted[0], rel_l2=1e-6)
    assert_close(cond.cpu(), wanted[1], rel_l2=1e-6)


def test_refused() -> None:
    x = torch.ones(1, 4, 5, 3)
    with pytest.raises(InputError, match="history_coefs: found 0, wanted 1"):
        scheduler_step(x, x, None, 1.0, 1.0, 1.0, [x], [])
    with pytest.raises(InputError, match="history: found 5 tensors, wanted at most 4"):
        scheduler_step(x, x, None, 1.0, 1.0, 1.0, [x] * 5, [1.0] * 5)
    with pytest.raises(InputError, match=r"noise: found shape \(4, 5, 3\)"):
        scheduler_step(x, x, None, 1.0, 1.0, 1.0, [], [], x[0])
    last = x.contiguous(memory_format=torch.channels_last)
    with pytest.raises(InputError, match=r"uncond: found strides \(60, 1, 12, 4\)"):
        scheduler_step(x, x, last, 1.0, 1.0, 1.0, [], [])
    with pytest.raises(InputError, match=r"sample: found strides .* wanted none that leave gaps"):
        scheduler_step(x[..., :2], x[..., :2], None, 1.0, 1.0, 1.0, [], [])
    with pytest.raises(InputError, match=r"cond: found torch.float64"):
        scheduler_step(x, x.double(), None, 1.0, 1.0, 1.0, [], [])
    with pytest.raises(InputError, match=r"out\[0\]: found \(2,\) of torch.float32"):
        scheduler_step(x, x, None, 1.0, 1.0, 1.0, [], [], out=(torch.ones(2), None))
