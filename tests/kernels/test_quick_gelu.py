"""fastdiff::quick_gelu: the reference against transformers, and the registered op."""

from __future__ import annotations

import pytest
import torch
from transformers.activations import QuickGELUActivation

from fastdiff.kernels import library, reference
from tests.compare import assert_close


@pytest.mark.parametrize("shape", [(), (1,), (3, 7), (2, 5, 33)])
def test_against_transformers(shape: tuple[int, ...]) -> None:
    x = 4 * torch.randn(shape, generator=torch.Generator().manual_seed(0))
    wanted = QuickGELUActivation()(x.double())
    assert_close(reference.quick_gelu(x), wanted, rel_l2=1e-6, label="quick_gelu")


def test_the_registered_op() -> None:
    torch.library.opcheck(library.quick_gelu, (torch.randn(2, 3, 10),))
