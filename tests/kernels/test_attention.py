"""fastdiff::attention: the reference against PyTorch's own, and the registered op."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from fastdiff.errors import InputError
from fastdiff.kernels import library, reference
from tests.compare import assert_close


def inputs(batch: int, n: int, m: int, width: int, value_width: int | None = None) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(n * m)
    shapes = ((batch, n, width), (batch, m, width), (batch, m, value_width or width))
    return tuple(torch.randn(shape, generator=generator) for shape in shapes)


# One query, one key, a prime count (no multiple of any tile), SD's 77 tokens, head size 5, wider values.
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(
    ("batch", "n", "m", "width", "value_width", "heads"),
    [
        (1, 1, 1, 8, 8, 2),
        (2, 1, 77, 24, 24, 3),
        (1, 97, 97, 40, 40, 1),
        (2, 64, 77, 20, 20, 4),
        (1, 7, 5, 6, 9, 3),
    ],
)
def test_against_pytorch(
    batch: int, n: int, m: int, width: int, value_width: int, heads: int, causal: bool
) -> None:
    query, key, value = inputs(batch, n, m, width, value_width)
    found = reference.attention(query, key, value, heads, 0.3, causal)
    split = (x.unflatten(2, (heads, -1)).transpose(1, 2).double() for x in (query, key, value))
    wanted = functional.scaled_dot_product_attention(*split, is_causal=causal, scale=0.3)
    assert_close(found, wanted.transpose(1, 2).flatten(2), rel_l2=1e-6, label="attention")
    assert found.is_contiguous()


def test_large_scores_do_not_overflow() -> None:
    query, key, value = inputs(1, 3, 4, 8)
    found = reference.attention(1e4 * query, 1e4 * key, value, 2, 1.0)
    assert torch.isfinite(found).all()


def test_the_registered_op() -> None:
    query, key, value = inputs(2, 5, 7, 12)
    torch.library.opcheck(library.attention, (query, key, value, 3, 0.5))
    torch.library.opcheck(library.attention, (query, key, value, 3, 0.5, True))
    # parts of one merged projection: strided in memory
    merged = torch.randn(2, 5, 36)
    torch.library.opcheck(library.attention, (*merged.split(12, 2), 3, 0.5))


@pytest.mark.parametrize(
    ("shapes", "heads", "words"),
    [
        (((2, 5, 12), (2, 7, 12), (2, 7, 12)), 5, "num_heads: found 5"),
        (((2, 5, 12), (2, 7, 12), (2, 7, 12)), 0, "num_heads: found 0"),
        (((2, 5, 12), (2, 7, 10), (2, 7, 12)), 2, "of one width"),
        (((2, 5, 12), (2, 7, 12), (2, 6, 12)), 2, "of one length"),
        (((5, 12), (2, 7, 12), (2, 7, 12)), 2, "three axes"),
    ],
)
def test_refused(shapes: tuple[tuple[int, ...], ...], heads: int, words: str) -> None:
    with pytest.raises(InputError, match=words):
        library.attention(*(torch.ones(shape) for shape in shapes), heads, 1.0)
