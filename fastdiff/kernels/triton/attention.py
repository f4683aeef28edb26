"""``fastdiff::attention`` in Triton: scores never leave the chip (Dao et al. 2022, Dao 2023).

A program holds BLOCK_M queries of one head and walks over the keys in blocks of BLOCK_N with the online
softmax of Milakov and Gimelshein 2018: sums, maxima and products in float32, exponentials in base 2 with the
scale folded into the exponent. Only the last block of keys is masked, and with ``causal`` the blocks on the
diagonal.

A head size that is no power of two is computed in two pieces, 40 as 32 + 16, 80 as 64 + 16, 160 as 128 + 32:
a tensor core's tile must be a power of two, and one piece would be 64, 128 and 256 wide. Of a head over
256 wide a program computes some columns of the values, and reads the queries again for each block of keys
where shared memory does not hold them. attention_tilings.py chooses all this.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastdiff.errors import InputError
from fastdiff.kernels import reference
from fastdiff.kernels.triton.aot import Build
from fastdiff.kernels.triton.attention_tilings import configs
from fastdiff.kernels.triton.launch import DTYPES, Config, architecture, check_kernel_tensors, launch, output

__all__ = ["attention", "builds", "configs"]


@triton.jit
def _piece(
    base: tl.tensor,
    row: tl.tensor,
    stride: tl.tensor,
    rows: tl.tensor,
    FIRST: tl.constexpr,
    WIDTH: tl.constexpr,
    SIZE: tl.constexpr,
    MASKED: tl.constexpr,
) -> tl.tensor:
    """Columns FIRST to FIRST + WIDTH of rows; zeros beyond column SIZE, and with MASKED beyond ``rows``."""
    column = FIRST + tl.arange(0, WIDTH)
    source = base + row[:, None] * stride + column[None, :]
    if MASKED:
        inside = row[:, None] < rows
        if FIRST + WIDTH > SIZE:
            inside = inside & (column[None, :] < SIZE)
        piece = tl.load(source, inside, 0.0)
    elif FIRST + WIDTH > SIZE:
        piece = tl.load(source, column[None, :] < SIZE, 0.0)
    else:
        piece = tl.load(source)
    return piece


@triton.jit
def _block(
    q0: tl.tensor,
    q1: tl.tensor,
    q: tl.tensor,
    q_row: tl.tensor,
    queries: tl.tensor,
    acc0: tl.tensor,
    acc1: tl.tensor,
    highest: tl.tensor,  # (BLOCK_M,) the largest score so far
    total: tl.tensor,  # (BLOCK_M,) the sum of exponentials so far, relative to it
    k: tl.tensor,
    v: tl.tensor,
    k_row: tl.tensor,
    v_row: tl.tensor,
    start: tl.tensor,
    keys: tl.tensor,
    query: tl.tensor,
    exponent: tl.tensor,
    D: tl.constexpr,
    E: tl.constexpr,
    MASKED: tl.constexpr,
    CAUSAL: tl.constexpr,
    BLOCK_N: tl.constexpr,
    D0: tl.constexpr,
    D1: tl.constexpr,
    E0: tl.constexpr,
    E1: tl.constexpr,
) -> tuple[tl.tensor, tl.tensor, tl.tensor, tl.tensor]:
    """One block of keys and values: the accumulators, maxima and sums after it."""
    key = start + tl.arange(0, BLOCK_N)
    if D > D0 + D1:  # too wide for the queries to stay: they are read again, from the caches
        scores = tl.zeros([query.shape[0], BLOCK_N], tl.float32)
        for column in tl.range(0, D, D0):
            part = _piece(q + column, query, q_row, queries, 0, D0, D0, True)
            k0 = tl.trans(_piece(k + column, key, k_row, keys, 0, D0, D0, MASKED))
            scores = tl.dot(part, k0, scores, input_precision="ieee")
    else:
        k0 = tl.trans(_piece(k, key, k_row, keys, 0, D0, D, MASKED))
        scores = tl.dot(q0, k0, input_precision="ieee")
    if D1 > 0:
        k1 = tl.trans(_piece(k, key, k_row, keys, D0, D1, D, MASKED))
        scores = tl.dot(q1, k1, scores, input_precision="ieee")
    if MASKED:
        seen = key[None, :] < keys
        if CAUSAL:
            seen = seen & (key[None, :] <= query[:, None])
        scores = tl.where(seen, scores, float("-inf"))
    new = tl.maximum(highest, tl.max(scores, 1))
    # Not scores · exponent - new · exponent: fused, its rounding would give large scores weights over 1.
    weights = tl.exp2((scores - new[:, None]) * exponent)
    shrink = tl.exp2((highest - new) * exponent)
    total = total * shrink + tl.sum(weights, 1)
    weights = weights.to(v.dtype.element_ty)
    v0 = _piece(v, key, v_row, keys, 0, E0, E, MASKED)
    acc0 = tl.dot(weights, v0, acc0 * shrink[:, None], input_precision="ieee")
    if E1 > 0:
        v1 = _piece(v, key, v_row, keys, E0, E1, E, MASKED)
        acc1 = tl.dot(weights, v1, acc1 * shrink[:, None], input_precision="ieee")
    return acc0, acc1, new, total


@triton.jit(do_not_specialize=["queries", "keys"])
def _attention_kernel(
    q: tl.tensor,  # (B, N, H·D)
    k: tl.tensor,  # (B, M, H·D)
    v: tl.tensor,  # (B, M, H·E)
    out: tl.tensor,  # (B, N, H·E)
    queries: tl.tensor,
    keys: tl.tensor,
    q_batch: tl.tensor,  # strides of batch and token
    q_row: tl.tensor,
    k_batch: tl.tensor,
    k_row: tl.tensor,
    v_batch: tl.tensor,
    v_row: tl.tensor,
    out_batch: tl.tensor,
    out_row: tl.tensor,
    exponent: tl.tensor,  # scale · log2(e), positive
    D: tl.constexpr,
    E: tl.constexpr,
    CAUSAL: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    D0: tl.constexpr,
    D1: tl.constexpr,
    E0: tl.constexpr,
    E1: tl.constexpr,
) -> None:
    first = tl.program_id(0) * BLOCK_M
    SLICES: tl.constexpr = (E + E0 + E1 - 1) // (E0 + E1)
    head = tl.program_id(1) // SLICES
    column = tl.program_id(1) % SLICES * (E0 + E1)  # of the head's values, the first that is computed here
    batch = tl.program_id(2).to(tl.int64)
    query = first + tl.arange(0, BLOCK_M)
    q += batch * q_batch + head * D
    k += batch * k_batch + head * D
    v += batch * v_batch + head * E + column
    out += batch * out_batch + head * E + column

    q0 = _piece(q, query, q_row, queries, 0, D0, D, True)
    q1 = q0
    acc0 = tl.zeros([BLOCK_M, E0], tl.float32)
    acc1 = acc0
    if D1 > 0:
        q1 = _piece(q, query, q_row, queries, D0, D1, D, True)
    if E1 > 0:
        acc1 = tl.zeros([BLOCK_M, E1], tl.float32)
    highest = tl.full([BLOCK_M], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)

    if CAUSAL:  # every query of the block sees the keys up to its first one
        whole = tl.minimum(keys, first + 1) // BLOCK_N * BLOCK_N
        end = tl.minimum(keys, first + BLOCK_M)
    else:
        whole = keys // BLOCK_N * BLOCK_N
        end = keys
    for start in tl.range(0, whole, BLOCK_N):
        acc0, acc1, highest, total = _block(
            q0, q1, q, q_row, queries, acc0, acc1, highest, total,
            k, v, k_row, v_row, start, keys, query, exponent, D, E, False, False, BLOCK_N, D0, D1, E0, E1,
        )  # fmt: skip
    if CAUSAL:
        for start in tl.range(whole, end, BLOCK_N, num_stages=1):
            acc0, acc1, highest, total = _block(
                q0, q1, q, q_row, queries, acc0, acc1, highest, total,
                k, v, k_row, v_row, start, keys, query, exponent, D, E, True, True, BLOCK_N, D0, D1, E0, E1,
            )  # fmt: skip
    elif whole < end:
        acc0, acc1, highest, total = _block(
            q0, q1, q, q_row, queries, acc0, acc1, highest, total,
            k, v, k_row, v_row, whole, keys, query, exponent, D, E, True, False, BLOCK_N, D0, D1, E0, E1,
        )  # fmt: skip

    share = 1.0 / total
    target = out + query[:, None] * out_row
    column = tl.arange(0, E0)[None, :]
    inside = query[:, None] < queries
    if E0 > E:
        tl.store(target + column, (acc0 * share[:, None]).to(out.dtype.element_ty), inside & (column < E))
    else:
        tl.store(target + column, (acc0 * share[:, None]).to(out.dtype.element_ty), inside)
    if E1 > 0:
        column = E0 + tl.arange(0, E1)[None, :]
        if E0 + E1 > E:
            inside = inside & (column < E)
        tl.store(target + column, (acc1 * share[:, None]).to(out.dtype.element_ty), inside)


def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    num_heads: int,
    scale: float,
    causal: bool = False,
    *,
    out: Tensor | None = None,
    config: Config | None = None,
) -> Tensor:
    """:func:`reference.attention` of fp16, bf16 or fp32 with a contiguous last axis; ``scale`` is positive.

    Without keys the result is zeros. ``out``: (B, N, H·e) with a contiguous last axis.
    """
    reference.check_attention(query, key, value, num_heads)
    check_kernel_tensors(query=query, key=key, value=value)
    if not 0 < scale < math.inf:
        raise InputError(f"scale: found {scale}, wanted a positive number")
    batch, queries, width = query.shape
    keys, size, value_size = key.shape[1], width // num_heads, value.shape[2] // num_heads
    out = output(out, (batch, queries, value.shape[2]), query)
    if not keys or not out.numel():
        return out.zero_()
    config = config or configs(size, value_size, queries, keys, query.dtype, architecture(query))[0]
    strides = (
        stride
        for x in (query, key, value, out)
        for stride in (x.stride(0) if batch > 1 else 0, x.stride(1) if x.shape[1] > 1 else 0)
    )
    slices = triton.cdiv(value_size, config["E0"] + config["E1"])
    launch(
        _attention_kernel,
        (triton.cdiv(queries, config["BLOCK_M"]), num_heads * slices, batch),
        *(query, key, value, out, queries, keys, *strides, scale / math.log(2)),
        config=config,
        D=size,
        E=value_size,
        CAUSAL=causal,
    )
    return out


# (head size, queries, keys, causal): self-attention of SD 1.5 and SDXL by level, that with a prompt, CLIP,
# the VAE, ``scenes``, whose heads of 40 have so few tokens that the tiling for a prompt serves them.
_SHIPPED = (
    *((40, 4096, 4096, False), (80, 1024, 1024, False), (160, 256, 256, False), (64, 4096, 4096, False)),
    *((40, 4096, 77, False), (80, 1024, 77, False), (160, 256, 77, False), (64, 4096, 77, False)),
    *((64, 77, 77, True), (512, 4096, 4096, False), (48, 16, 77, False)),
)


def builds(dtype: torch.dtype, arch: int) -> Iterator[Build]:
    """The attention of SD 1.5, SDXL and ``scenes``."""
    tensors = ("q", "k", "v", "out")
    strides = tuple(f"{tensor}_{axis}" for tensor in tensors for axis in ("batch", "row"))
    types = {
        **dict.fromkeys(tensors, f"*{DTYPES[dtype]}"),
        **dict.fromkeys(("queries", "keys", *strides), "i32"),
        "exponent": "fp32",
    }
    for size, queries, keys, causal in _SHIPPED:
        yield Build(
            name=f"attention d={size} {'causal' if causal else 'self' if queries == keys else 'cross'}",
            kernel=_attention_kernel,
            signature=types,
            constants={"D": size, "E": size, "CAUSAL": causal},
            config=configs(size, size, queries, keys, dtype, arch)[0],
            aligned=(*tensors, *strides),
        )
