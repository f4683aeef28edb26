"""fastdiff::geglu: the reference against PyTorch's GELU, and the registered op."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from fastdiff.errors import InputError
from fastdiff.kernels import library, reference
from tests.compare import assert_close


# One value, a prime half, a vector alone, many rows.
@pytest.mark.parametrize("shape", [(2,), (3, 14), (1, 5, 62), (2, 17, 64)])
def test_against_pytorch(shape: tuple[int, ...]) -> None:
    x = 4 * torch.randn(shape, generator=torch.Generator().manual_seed(0))
    a, b = x.double().chunk(2, -1)
    assert_close(reference.geglu(x), a * functional.gelu(b), rel_l2=1e-6, label="geglu")


def test_the_registered_op() -> None:
    torch.library.opcheck(library.geglu, (torch.randn(2, 3, 10),))
    with pytest.raises(InputError, match="an even last axis"):
        library.geglu(torch.ones(2, 3))
