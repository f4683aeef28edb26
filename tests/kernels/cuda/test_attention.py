"""csrc/cuda/attention.cu through its launcher, on a GPU and, lane by lane, emulated on the CPU.

tests/cpp/test_cuda_attention.cpp runs more of the algorithm; here arguments and layouts go all the way.
"""

from __future__ import annotations

import math
import re
from pathlib import Path

import pytest
import torch
from torch import Tensor

from fastdiff.errors import InputError
from fastdiff.kernels import reference
from fastdiff.kernels.cuda.attention import TILINGS, attention, configs
from tests.compare import assert_close

# P and the result are each rounded once to the type, by up to half an ulp: relative errors of 2^-11 at most
# and 2^-12.3 on average for fp16, so sqrt(2) · 2^-12.3 = 2.8e-4 for random numbers, and twice that as the
# bound. bf16 has three bits fewer.
BOUNDS = {torch.float16: 6e-4, torch.bfloat16: 5e-3}
ALL_TILINGS = [(size, rows) for size, tilings in TILINGS.items() for rows in tilings]

# (batch, heads, queries, keys). Keys come in groups of 32 and tiles of 32 or 64, queries in blocks of 32 to
# 128.
SMALL = [
    pytest.param((1, 1, 1, 1), id="one of everything"),
    pytest.param((2, 3, 1, 77), id="one query, a prompt, two images of three heads"),
    pytest.param((1, 1, 129, 65), id="a block of one query, a tile of one key"),
]
LARGE = [
    pytest.param((3, 5, 130, 32), id="exactly one group"),
    pytest.param((1, 1, 997, 1111), id="no multiple of anything"),
    pytest.param((2, 8, 64, 64), id="the lowest level of SD 1.5 at 512 pixels"),
    pytest.param((2, 8, 1024, 77), id="cross-attention of SD 1.5"),
    pytest.param((1, 2, 4096, 4096), id="the top level: 128 groups"),
]


def random(*shape: int, dtype: torch.dtype, device: str, seed: int = 0) -> Tensor:
    generator = torch.Generator(device).manual_seed(seed)
    return torch.randn(*shape, generator=generator, device=device).to(dtype)


def inputs(
    size: tuple[int, int, int, int], head: int, dtype: torch.dtype, device: str
) -> tuple[Tensor, Tensor, Tensor]:
    batch, heads, queries, keys = size
    shapes = ((batch, queries, heads * head), (batch, keys, heads * head), (batch, keys, heads * head))
    query, key, value = (random(*shape, dtype=dtype, device=device, seed=i) for i, shape in enumerate(shapes))
    return query, key, value


def expected(query: Tensor, key: Tensor, value: Tensor, heads: int, scale: float) -> Tensor:
    """The reference of the same numbers in double precision, head by head: scores need memory."""
    parts = zip(*(x.double().chunk(heads, 2) for x in (query, key, value)), strict=True)
    return torch.cat([reference.attention(q, k, v, 1, scale) for q, k, v in parts], 2)


def check(size: tuple[int, int, int, int], head: int, rows: int, dtype: torch.dtype, device: str) -> None:
    query, key, value = inputs(size, head, dtype, device)
    found = attention(query, key, value, size[1], head**-0.5, config=rows)
    assert found.dtype == dtype
    assert found.is_contiguous()
    wanted = expected(query, key, value, size[1], head**-0.5)
    assert_close(found.float(), wanted, rel_l2=BOUNDS[dtype], label="y")


@pytest.mark.parametrize("dtype", list(BOUNDS))
@pytest.mark.parametrize(("head", "rows"), ALL_TILINGS)
@pytest.mark.parametrize("size", SMALL)
def test_matches_reference(
    device: str, size: tuple[int, int, int, int], head: int, rows: int, dtype: torch.dtype
) -> None:
    check(size, head, rows, dtype, device)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", list(BOUNDS))
@pytest.mark.parametrize(("head", "rows"), ALL_TILINGS)
@pytest.mark.parametrize("size", LARGE)
def test_matches_reference_where_it_is_used(
    size: tuple[int, int, int, int], head: int, rows: int, dtype: torch.dtype
) -> None:
    check(size, head, rows, dtype, "cuda")


@pytest.mark.parametrize("head", list(TILINGS))
def test_parts_of_a_projection(device: str, head: int) -> None:
    # A gap of 8 after each row, rows that are not numbers after the last key, a result in a wider array.
    heads, width = 3, 3 * head
    merged = random(2, 70, 3 * width + 8, dtype=torch.float16, device=device)
    merged[:, 67:] = math.nan
    query, key, value = (merged[:, :67, i * width : (i + 1) * width] for i in range(3))
    wide = torch.full((2, 70, width + 16), 7.0, dtype=torch.float16, device=device)
    out = wide[:, 2:69, 8 : 8 + width]
    assert attention(query, key, value, heads, 0.2, out=out) is out
    assert_close(out.float(), expected(query, key, value, heads, 0.2), rel_l2=BOUNDS[torch.float16])
    out.fill_(7.0)
    assert bool((wide == 7.0).all())


@pytest.mark.parametrize(("head", "rows"), ALL_TILINGS)
def test_scores_that_grow(device: str, head: int, rows: int) -> None:
    # Scores of up to ±200 whose maxima grow by far more than P may before offsets are raised.
    query, key, value = inputs((1, 2, 70, 300), head, torch.float16, device)
    key *= torch.linspace(0, 16, 300, device=device).half()[None, :, None]
    found = attention(query, key, value, 2, 3 * head**-0.5, config=rows)
    assert_close(found.float(), expected(query, key, value, 2, 3 * head**-0.5), rel_l2=BOUNDS[torch.float16])


@pytest.mark.parametrize("head", list(TILINGS))
def test_nan_stays_in_its_query(device: str, head: int) -> None:
    query, key, value = inputs((1, 2, 50, 100), head, torch.float16, device)
    query[0, 3, 1] = math.nan
    found = attention(query, key, value, 2, 0.3)
    assert bool(found[0, 3, :head].isnan().all())
    found[0, 3, :head] = 0.0
    assert bool(found.isfinite().all())


@pytest.mark.gpu
@pytest.mark.parametrize(("head", "rows"), ALL_TILINGS)
def test_every_run_is_the_same(head: int, rows: int) -> None:
    # Memory that is used while it is written would make some run differ.
    query, key, value = inputs((2, 8, 1024, 1024), head, torch.float16, "cuda")
    first = attention(query, key, value, 8, head**-0.5, config=rows)
    for _ in range(20):
        assert torch.equal(attention(query, key, value, 8, head**-0.5, config=rows), first)


@pytest.mark.gpu
def test_inside_a_captured_graph() -> None:
    query, key, value = inputs((2, 8, 256, 77), 40, torch.float16, "cuda")
    out = torch.empty_like(query)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        attention(query, key, value, 8, 0.2, out=out)  # loads the kernel
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        attention(query, key, value, 8, 0.2, out=out)
    query.copy_(random(*query.shape, dtype=query.dtype, device="cuda", seed=9))
    graph.replay()
    assert_close(out.float(), expected(query, key, value, 8, 0.2), rel_l2=BOUNDS[torch.float16])


def test_no_keys_no_queries(device: str) -> None:
    query = torch.ones(2, 5, 80, dtype=torch.float16, device=device)
    assert bool((attention(query, query[:, :0], query[:, :0], 2, 1.0) == 0).all())
    assert attention(query[:, :0], query, query, 2, 1.0).shape == (2, 0, 80)


def test_the_tilings_are_the_header_s() -> None:
    text = (Path(__file__).parents[3] / "csrc/cuda/attention_layout.h").read_text()
    shapes = re.findall(r"X\((\d+), (\d+), (\d+), \d+, (\d+), \d+\)", text)
    found: dict[int, dict[int, int]] = {}
    for size, rows, tiles, warps in (map(int, shape) for shape in shapes):
        assert rows == 16 * tiles * warps
        found.setdefault(size, {})[rows] = warps
    assert found == TILINGS


@pytest.mark.parametrize("size", list(TILINGS))
def test_configs_are_all_tilings(size: int) -> None:
    large, small = TILINGS[size]
    # 132 multiprocessors: 16 heads of 16 · large queries make 256 blocks, one head more 272.
    assert configs(size, 16 * large, 16, 132) == (small, large)
    assert configs(size, 16 * large, 17, 132) == (large, small)


A = torch.zeros(2, 5, 160, dtype=torch.float16)
WIDE = torch.zeros(2, 5, 328, dtype=torch.float16)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"query": A.float()}, "query: found float32, wanted float16 or bfloat16"),
        ({"key": A.bfloat16()}, "key: found bfloat16, wanted float16 as query"),
        ({"causal": True}, "causal: found True, wanted False in CUDA C"),
        ({"num_heads": 5}, "head size: found 32 and 32 of values, wanted one of 40, 64, 80, 160"),
        ({"value": A[:, :, :80]}, "head size: found 40 and 20 of values"),
        ({"num_heads": 3}, "num_heads: found 3"),
        ({"scale": 0.0}, "scale: found 0.0, wanted a positive number"),
        ({"scale": math.nan}, "scale: found nan"),
        ({"key": A[:1]}, r"key: found shape \(1, 5, 160\), wanted \(2, 5, 160\)"),
        (
            {"query": torch.zeros(2, 5, 164, dtype=torch.float16)[:, :, :160]},
            r"query: found strides \(820, 164",
        ),
        ({"query": WIDE[:, :, 4:164]}, "query: .* at byte 8 of 16"),
        ({"query": WIDE[:, :, :320:2]}, "query: found strides"),
        ({"out": A.float()}, "out: found float32, wanted float16 as query"),
        ({"out": A[:1]}, "out: found shape"),
        ({"config": 32}, "config: found 32, wanted one of 128, 64 for head size 40"),
    ],
)
def test_refused(change: dict[str, object], message: str) -> None:
    arguments = {"query": A, "key": A, "value": A, "num_heads": 4, "scale": 1.0, **change}
    with pytest.raises(InputError, match=message):
        attention(**arguments)  # type: ignore[arg-type]
