"""fastdiff::attention: the reference against PyTorch's own, the registered op, and the CPU kernel."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from fastdiff.errors import InputError
from fastdiff.kernels import attention, library, reference
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


# (batch, queries, keys, heads, head size, value size). Blocks are of 96 keys and 240 queries, panels of 1 to
# 3 registers of 4, 8 or 16 queries.
KERNEL_SIZES = [
    pytest.param((1, 1, 1, 1, 1, 1), id="one of everything"),
    pytest.param((2, 1, 77, 3, 8, 8), id="one query"),
    pytest.param((1, 5, 1, 2, 8, 8), id="one key: the result is its value"),
    pytest.param(
        (1, 33, 7, 3, 5, 5), id="head size below any register, fewer keys than a micro-kernel's rows"
    ),
    pytest.param(
        (1, 31, 97, 2, 37, 19), id="odd sizes everywhere, values narrower than keys; a block of one key"
    ),
    pytest.param((1, 48, 96, 1, 16, 40), id="exactly one panel and one block; values wider than keys"),
    pytest.param((2, 77, 77, 4, 64, 64), id="the text encoder's"),
    pytest.param((2, 64, 64, 2, 160, 160), id="Stable Diffusion's lowest level: a panel of four registers"),
    pytest.param((1, 97, 193, 2, 40, 40), id="third block of one key"),
    pytest.param((1, 241, 300, 1, 32, 32), id="two blocks of queries, the second not full"),
    pytest.param((1, 737, 111, 1, 48, 48), id="four blocks of queries"),
    pytest.param((1, 111, 111, 1, 512, 512), id="a VAE's head: smaller blocks of queries"),
]


def expected(query, key, value, heads, scale, causal=False):
    """The reference in double precision."""
    tensors = (torch.from_numpy(np.array(x, np.float64)) for x in (query, key, value))
    return reference.attention(*tensors, heads, scale, causal)


def arrays(rng, batch, n, m, heads, size, value_size):
    shapes = ((batch, n, heads * size), (batch, m, heads * size), (batch, m, heads * value_size))
    return tuple(rng.standard_normal(shape).astype(np.float32) for shape in shapes)


@pytest.mark.smoke
@pytest.mark.parametrize("size", KERNEL_SIZES)
@pytest.mark.parametrize("causal", [False, True])
def test_kernel_matches_reference(rng, isa, size, causal):
    heads, head_size = size[3:5]
    inputs = arrays(rng, *size)
    found = attention(*inputs, heads, head_size**-0.5, causal, isa=isa)
    assert found.dtype == np.float32
    wanted = expected(*inputs, heads, head_size**-0.5, causal)
    assert_close(found, wanted, rel_l2=1e-6, max_abs=5e-6, label="y")


def test_kernel_long(rng, isa):
    # 43 rounds of keys: what an online softmax loses would add up.
    inputs = arrays(rng, 1, 100, 4096, 1, 40, 40)
    found = attention(*inputs, 1, 40**-0.5, isa=isa)
    assert_close(found, expected(*inputs, 1, 40**-0.5), rel_l2=1e-6, max_abs=1e-6)


@pytest.mark.parametrize("threads", [2, 3])
def test_kernel_threads_change_nothing(rng, isa, threads):
    inputs = arrays(rng, 2, 301, 100, 3, 24, 24)
    one = attention(*inputs, 3, 0.2, True, isa=isa)
    assert np.array_equal(attention(*inputs, 3, 0.2, True, isa=isa, threads=threads), one)


@pytest.mark.parametrize("causal", [False, True])
def test_kernel_strides(rng, isa, causal):
    # Parts of one merged projection, keys that all batches share, and a result inside of a wider array.
    merged = rng.standard_normal((2, 50, 3 * 36)).astype(np.float32)
    query, key, value = merged[:, :, :36], merged[:, 3:, 36:72], merged[:, 3:, 72:]
    shared = np.broadcast_to(key[:1], key.shape)
    wide = np.full((2, 53, 80), 7.0, np.float32)
    out = wide[:, 2:52, 21:57]
    assert attention(query, shared, value, 4, 0.3, causal, out=out, isa=isa) is out
    assert_close(out, expected(query, shared, value, 4, 0.3, causal), rel_l2=1e-6)
    out[...] = 7.0
    assert (wide == 7.0).all()


def test_kernel_writes_nothing_beyond_its_result(rng, isa):
    for value_size in range(1, 40):
        inputs = arrays(rng, 1, 9, 5, 1, 3, value_size)
        wide = np.full((1, 11, value_size + 32), 7.0, np.float32)
        out = wide[:, 1:10, 16 : 16 + value_size]
        attention(*inputs, 1, 1.0, out=out, isa=isa)
        assert_close(out, expected(*inputs, 1, 1.0), rel_l2=1e-6)
        out[...] = 7.0
        assert (wide == 7.0).all()


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_kernel_large_scores(rng, isa, sign):
    # Scores of ±1e4: exp of one would overflow; the maximum grows, or shrinks, from round to round.
    query = np.full((1, 7, 4), 100.0, np.float32)
    key = np.linspace(-25 * sign, 25 * sign, 300, dtype=np.float32)[None, :, None].repeat(4, 2)
    value = rng.standard_normal((1, 300, 4)).astype(np.float32)
    found = attention(query, key, value, 1, 1.0, isa=isa)
    assert_close(found, expected(query, key, value, 1, 1.0), rel_l2=1e-5)


def test_kernel_nan_stays_in_its_query(rng, isa):
    query, key, value = arrays(rng, 1, 20, 30, 2, 8, 8)
    query[0, 3, 1] = np.nan
    found = attention(query, key, value, 2, 0.5, isa=isa)
    assert np.isnan(found[0, 3, :8]).all()
    found[0, 3, :8] = 0.0
    assert np.isfinite(found).all()


def test_kernel_empty(isa):
    empty = np.zeros((2, 0, 8), np.float32)
    some = np.ones((2, 3, 8), np.float32)
    assert attention(empty, some, some, 2, 1.0, isa=isa).shape == (2, 0, 8)
    assert (attention(some, empty, empty, 2, 1.0, isa=isa) == 0.0).all()


A = np.zeros((2, 5, 12), np.float32)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"query": A.astype(np.float16)}, "query: found dtype float16, wanted float32"),
        ({"key": torch.zeros(2, 5, 12)}, "key: found Tensor, wanted a float32 NumPy array"),
        ({"value": A[0]}, r"value: found shape \(5, 12\), wanted at least 3 axes"),
        ({"value": A[None]}, r"value: found shape \(1, 2, 5, 12\), wanted three axes"),
        ({"query": A[:, :, ::2]}, "query: found a stride of 2 floats on the last axis"),
        ({"query": A[:, ::-1]}, "query: found strides of .* none negative.*ascontiguousarray"),
        ({"query": A[:1]}, "wanted one batch, query and key of one width"),
        ({"key": A[:, :4]}, "key and value of one length"),
        ({"num_heads": 5}, "num_heads: found 5 for widths 12 and 12, wanted a divisor of both"),
        ({"num_heads": 0}, "num_heads: found 0"),
        ({"out": A[:1].copy()}, r"out: found shape \(1, 5, 12\), wanted \(2, 5, 12\)"),
        ({"out": np.broadcast_to(A[:1], A.shape)}, "out: found a read-only array"),
        ({"out": A}, "out: found an array that overlaps query"),
        ({"threads": 0}, "threads: found 0, wanted at least 1"),
        ({"isa": "mmx"}, "isa: unknown instruction set 'mmx'"),
    ],
)
def test_kernel_refuses_bad_arguments(change, message):
    with pytest.raises(InputError, match=message):
        attention(**{"query": A, "key": A, "value": A, "num_heads": 2, "scale": 1.0, **change})
