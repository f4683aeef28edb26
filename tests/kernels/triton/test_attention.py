"""attention in Triton against the reference in float64, over head sizes, lengths, strides and tilings."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from fastdiff.errors import InputError
from fastdiff.kernels import reference
from fastdiff.kernels.triton.attention import attention, configs
from fastdiff.kernels.triton.attention_tilings import pieces
from fastdiff.kernels.triton.launch import Config, architecture
from tests.compare import assert_close

# Rounding of float32; of weights and result in the others, where the interpreter cuts bfloat16 off instead.
TOLERANCE = {torch.float32: 1e-6, torch.float16: 5e-4, torch.bfloat16: 8e-3}


def inputs(
    batch: int, n: int, m: int, heads: int, size: int, value_size: int, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(n + m)
    shapes = ((batch, n, heads * size), (batch, m, heads * size), (batch, m, heads * value_size))
    query, key, value = (torch.randn(shape, generator=generator).to(dtype) for shape in shapes)
    return query, key, value


def check(
    tensors: tuple[Tensor, Tensor, Tensor],
    heads: int,
    device: str,
    causal: bool = False,
    config: Config | None = None,
    scale: float | None = None,
) -> None:
    query = tensors[0]
    scale = scale or (query.shape[2] // heads) ** -0.5
    found = attention(*(x.to(device) for x in tensors), heads, scale, causal, config=config)
    wanted = reference.attention(*(x.double() for x in tensors), heads, scale, causal)
    assert found.dtype == query.dtype
    assert_close(found.cpu().float(), wanted, rel_l2=TOLERANCE[query.dtype], label="attention")


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
# Head sizes of one piece (32, 64, 128), of two (40, 80, 96, 160), smaller than a tile (5), wider than a
# program (512, 272 in parts of 16); one query, one key, a prompt's 77, lengths that fill no block.
@pytest.mark.parametrize(
    ("batch", "n", "m", "heads", "size", "value_size"),
    [
        (2, 70, 77, 2, 40, 40),
        (1, 130, 200, 2, 80, 80),
        (1, 65, 131, 1, 160, 160),
        (2, 1, 77, 3, 64, 64),
        (1, 64, 1, 2, 32, 32),
        (1, 3, 5, 3, 5, 7),
        (1, 37, 300, 1, 96, 24),
        (1, 50, 129, 1, 128, 160),
        (1, 140, 70, 1, 512, 512),
        (1, 10, 40, 1, 272, 272),
    ],
)
def test_against_reference(
    batch: int, n: int, m: int, heads: int, size: int, value_size: int, dtype: torch.dtype, device: str
) -> None:
    check(inputs(batch, n, m, heads, size, value_size, dtype), heads, device)


# A text encoder's 77 tokens; more queries than keys; more keys than queries; one of each; a wide head.
@pytest.mark.parametrize(
    ("n", "m", "size"), [(77, 77, 64), (150, 70, 40), (33, 200, 40), (1, 1, 32), (70, 70, 512)]
)
def test_causal(n: int, m: int, size: int, device: str) -> None:
    check(inputs(2, n, m, 1, size, size, torch.float16), 1, device, causal=True)


@pytest.mark.parametrize("size", [40, 64, 160, 512])
@pytest.mark.parametrize("arch", [80, 90])
@pytest.mark.parametrize("n", [50, 300])
def test_every_tiling(size: int, arch: int, n: int, device: str) -> None:
    tensors = inputs(1, n, 140, 1, size, size, torch.float16)
    if device == "cuda":  # another GPU's tilings may not fit this one
        arch = architecture(tensors[0].to(device))
    for config in configs(size, size, n, 140, torch.float16, arch):
        check(tensors, 1, device, config=config)


@pytest.mark.parametrize("keys", [0, 5])
def test_without_keys_or_queries(keys: int, device: str) -> None:
    query, key, value = (x.to(device) for x in inputs(2, 3, keys, 2, 8, 8, torch.float16))
    assert attention(query[:, :0], key, value, 2, 1.0).shape == (2, 0, 16)
    if not keys:
        assert (attention(query, key, value, 2, 1.0) == 0).all()


def test_parts_of_a_merged_projection(device: str) -> None:
    """Queries, keys and values side by side in one tensor, and an ``out`` with wide rows."""
    merged = torch.randn(2, 45, 3 * 80, generator=torch.Generator().manual_seed(0)).to(device)
    query, key, value = merged.split(80, 2)
    buffer = torch.full((2, 50, 100), 7.0, device=device)
    out = buffer[:, 2:47, 10:90]
    assert attention(query, key, value, 2, 0.2, out=out) is out
    wanted = reference.attention(*(x.cpu().double() for x in (query, key, value)), 2, 0.2)
    assert_close(out.cpu(), wanted, rel_l2=1e-6, label="attention")
    outside = buffer.clone()
    outside[:, 2:47, 10:90] = 7
    assert (outside == 7).all()


def test_every_other_image_and_token(device: str) -> None:
    """Batch and token strides that are not those of any contiguous tensor."""
    tensors = tuple(
        torch.randn(4, 40, 64, generator=torch.Generator().manual_seed(i)).to(device)[::2, ::2]
        for i in range(3)
    )
    found = attention(*tensors, 2, 0.2)
    wanted = reference.attention(*(x.cpu().double() for x in tensors), 2, 0.2)
    assert_close(found.cpu(), wanted, rel_l2=1e-6, label="attention")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_large_scores_do_not_overflow(dtype: torch.dtype, device: str) -> None:
    """Scores of 1e9: the largest takes all the weight, and nothing is infinite on the way."""
    query, key, value = inputs(1, 40, 50, 1, 40, 40, dtype)
    check(((1e4 * query.float()).to(dtype), (1e4 * key.float()).to(dtype), value), 1, device, scale=1.0)


def test_equal_scores_give_the_mean(device: str) -> None:
    _, key, value = inputs(1, 1, 100, 1, 40, 40, torch.float32)
    found = attention(torch.zeros(1, 3, 40, device=device), key.to(device), value.to(device), 1, 1.0)
    assert_close(found.cpu(), value.double().mean(1, keepdim=True).expand(1, 3, 40), rel_l2=1e-6)


@pytest.mark.parametrize(
    ("size", "wanted"),
    [(5, (16, 0)), (24, (32, 0)), (40, (32, 16)), (56, (64, 0)), (80, (64, 16)), (160, (128, 32))],
)
def test_pieces(size: int, wanted: tuple[int, int]) -> None:
    assert pieces(size) == wanted


@pytest.mark.parametrize("scale", [0.0, -1.0, float("nan"), float("inf")])
def test_scale_refused(scale: float) -> None:
    with pytest.raises(InputError, match="scale: found"):
        attention(*inputs(1, 2, 2, 1, 8, 8, torch.float32), 1, scale)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"num_heads": 3}, "num_heads: found 3"),
        ({"key": torch.ones(1, 4, 8).half()}, "key: found torch.float16"),
        ({"query": torch.ones(1, 8, 5).transpose(1, 2)}, "query: found stride 5 on the last axis"),
        ({"out": torch.ones(1, 4, 8)}, r"out: found \(1, 4, 8\)"),
        (
            {name: torch.ones(1, 4, 265) for name in ("query", "key", "value")} | {"num_heads": 1},
            "head size: found 265",
        ),
    ],
)
def test_refused(change: dict[str, object], words: str) -> None:
    given = {"query": torch.ones(1, 5, 8), "key": torch.ones(1, 4, 8), "value": torch.ones(1, 4, 8)}
    with pytest.raises(InputError, match=words):
        attention(**{**given, "num_heads": 2, "scale": 1.0, **change})  # type: ignore[arg-type]
