"""The interpreter: what the kernels use of Triton's language, and that it leaves Triton as it was."""

from __future__ import annotations

import pytest
import torch
import triton
import triton.language as tl

from fastdiff.kernels.triton.geglu import geglu
from fastdiff.kernels.triton.interpreter import interpreted


@triton.jit
def _double(x: tl.tensor) -> tl.tensor:
    return 2 * x


@triton.jit(do_not_specialize=["count"])
def _kernel(x: tl.tensor, out: tl.tensor, count: tl.tensor, BLOCK: tl.constexpr) -> None:
    """The doubled sum of rows of BLOCK elements, ``count`` blocks each, by program (y, x)."""
    row = tl.program_id(1) * tl.num_programs(0) + tl.program_id(0)
    total = 0.0
    for start in tl.range(0, count * BLOCK, BLOCK):
        total += tl.sum(tl.load(x + row * count * BLOCK + start + tl.arange(0, BLOCK)).to(tl.float32), 0)
    tl.store(out + row, _double(total))


@triton.jit
def _product(a: tl.tensor, b: tl.tensor, out: tl.tensor, SIZE: tl.constexpr) -> None:
    i = tl.arange(0, SIZE)
    at = i[:, None] * SIZE + i[None, :]
    tl.store(out + at, tl.dot(tl.load(a + at), tl.load(b + at)))


@triton.jit
def _fails(x: tl.tensor) -> None:
    tl.store(x, _double(tl.load(x)).no_such_method())


def test_loops_to_a_run_time_bound_and_calls_jitted_functions() -> None:
    x = torch.randn(6, 3 * 8)
    out = torch.empty(6)
    interpreted(_kernel)[(3, 2)](x, out, 3, BLOCK=8)
    torch.testing.assert_close(out, 2 * x.sum(1))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_products(dtype: torch.dtype) -> None:
    a, b = torch.randn(2, 16, 16).to(dtype)
    out = torch.empty(16, 16)
    interpreted(_product)[(1,)](a, b, out, SIZE=16)
    torch.testing.assert_close(out, a.float() @ b.float(), rtol=1e-5, atol=1e-5)


def test_triton_is_left_as_it_was() -> None:
    def parts() -> tuple[object, ...]:
        return tl.load, tl.core.reduce, tl.math.exp2, getattr(tl.tensor, "__index__", None)

    before = parts()
    geglu(torch.randn(2, 4))
    with pytest.raises(AttributeError):
        interpreted(_fails)[(1,)](torch.ones(1))
    assert parts() == before
    with pytest.raises(RuntimeError, match="outside of the scope of a kernel"):
        _double(1)
