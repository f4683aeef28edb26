"""geglu in Triton against the reference in float64."""

from __future__ import annotations

import pytest
import torch

from fastdiff.errors import InputError
from fastdiff.kernels import reference
from fastdiff.kernels.triton.geglu import geglu
from fastdiff.kernels.triton.launch import Config
from tests.compare import assert_close

# The rounding of the result; to bfloat16 the interpreter cuts off instead.
TOLERANCE = {torch.float32: 5e-7, torch.float16: 4e-4, torch.bfloat16: 4e-3}


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
# One row, one channel, no power of two, rows that are no multiple of a block, a layer of SD 1.5, no row.
@pytest.mark.parametrize("shape", [(1, 2), (3, 14), (2, 7, 140), (9, 2560), (0, 64), (2, 0, 64)], ids=str)
def test_against_reference(shape: tuple[int, ...], dtype: torch.dtype, device: str) -> None:
    x = 3 * torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(dtype)
    found = geglu(x.to(device))
    assert found.dtype == dtype
    assert_close(found.cpu().float(), reference.geglu(x.double()), rel_l2=TOLERANCE[dtype], label="geglu")


def test_rows_apart_and_out(device: str) -> None:
    wide = torch.randn(5, 3, 100, generator=torch.Generator().manual_seed(1))
    buffer = torch.full((5, 3, 40), 7.0, device=device)
    found = geglu(
        wide.to(device)[..., 3:63], out=buffer[..., 5:35], config=Config.of(2, 1, BLOCK_M=2, BLOCK_C=16)
    )
    assert_close(found.cpu(), reference.geglu(wide[..., 3:63].double()), rel_l2=5e-7, label="geglu")
    assert (buffer[..., :5] == 7).all()
    assert (buffer[..., 35:] == 7).all()


def test_large_gates_do_not_overflow(device: str) -> None:
    x = torch.tensor([[1.0, -1.0, 0.5, 1e4, -1e4, 6e4]], dtype=torch.float16)
    found = geglu(x.to(device))
    assert_close(found.cpu(), [[1e4, 0.0, 3e4]], max_abs=0, label="geglu")


def test_refused() -> None:
    with pytest.raises(InputError, match="an even last axis"):
        geglu(torch.ones(2, 3))
    with pytest.raises(InputError, match="x: found dtype float64"):
        geglu(torch.ones(2, 4, dtype=torch.float64))
    with pytest.raises(InputError, match="x: found stride 2 on the last axis"):
        geglu(torch.ones(2, 8)[:, ::2])
    with pytest.raises(InputError, match=r"out: found \(2, 4\)"):
        geglu(torch.ones(2, 4), out=torch.ones(2, 4))
    with pytest.raises(InputError, match="evenly spaced rows"):
        geglu(torch.ones(2, 3, 4)[:, :2])
