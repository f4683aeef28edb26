"""fastdiff::upsample_nearest2d: the reference against PyTorch, and the registered op."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from fastdiff.errors import InputError
from fastdiff.kernels import library, reference

# One pixel, an odd map, one row, an empty batch.
SHAPES = [(1, 1, 1, 3), (2, 5, 7, 11), (1, 1, 9, 16), (0, 4, 4, 2)]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("factor", [1, 2, 3])
def test_against_pytorch(shape: tuple[int, ...], factor: int) -> None:
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    found = reference.upsample_nearest2d(x, factor)
    picture = functional.interpolate(x.permute(0, 3, 1, 2), scale_factor=float(factor), mode="nearest")
    assert torch.equal(found, picture.permute(0, 2, 3, 1))
    assert found.is_contiguous()
    assert found.untyped_storage().data_ptr() != x.untyped_storage().data_ptr() or x.numel() == 0


def test_the_registered_op() -> None:
    torch.library.opcheck(library.upsample_nearest2d, (torch.randn(2, 3, 5, 4), 2))
    torch.library.opcheck(library.upsample_nearest2d, (torch.randn(2, 3, 5, 9)[..., 2:6], 1))
    with pytest.raises(InputError, match="four axes"):
        library.upsample_nearest2d(torch.ones(2, 3, 4), 2)
    with pytest.raises(InputError, match="factor: found 0"):
        library.upsample_nearest2d(torch.ones(2, 3, 5, 4), 0)
