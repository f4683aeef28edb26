"""fastdiff::avg_pool2d: the reference against PyTorch, and the registered op."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from fastdiff.errors import InputError
from fastdiff.kernels import library, reference
from tests.compare import assert_close

# Whole squares, something left over at the right and the bottom, one square, an empty batch.
SHAPES = [(2, 6, 12, 5), (1, 7, 11, 16), (1, 3, 3, 1), (0, 6, 6, 2)]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("factor", [1, 2, 3])
def test_against_pytorch(shape: tuple[int, ...], factor: int) -> None:
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    found = reference.avg_pool2d(x, factor)
    wanted = functional.avg_pool2d(x.double().permute(0, 3, 1, 2), factor).permute(0, 2, 3, 1)
    assert_close(found, wanted, rel_l2=1e-6, label="avg_pool2d")


def test_the_registered_op() -> None:
    torch.library.opcheck(library.avg_pool2d, (torch.randn(2, 5, 6, 4), 2))
    torch.library.opcheck(library.avg_pool2d, (torch.randn(2, 5, 6, 9)[..., 2:6], 3))
    with pytest.raises(InputError, match="four axes"):
        library.avg_pool2d(torch.ones(2, 3, 4), 2)
    with pytest.raises(InputError, match="factor: found 0"):
        library.avg_pool2d(torch.ones(2, 3, 5, 4), 0)
