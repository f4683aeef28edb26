"""``attention`` in CUDA C++ on tensor cores: ``csrc/cuda/attention.cu``."""

from __future__ import annotations

import ctypes
import math
from functools import cache

import torch
from torch import Tensor

from fastdiff.errors import InputError
from fastdiff.kernels.cuda.loader import architecture, kernel, launch
from fastdiff.kernels.reference import check_attention

__all__ = ["TILINGS", "attention", "configs"]

TILINGS = {40: {128: 4, 64: 4}, 64: {128: 4, 64: 4}, 80: {128: 4, 64: 4}, 160: {64: 4, 32: 2}}
"""Queries of a block and its warps, by head size; FASTDIFF_ATTENTION_SHAPES of the header."""

_SUFFIX = {torch.float16: "f16", torch.bfloat16: "bf16"}
_MOST_BLOCKS = 65535
"""Of a grid's second axis."""
_SMALLEST = 2.0**-126
"""Of normal floats: a hidden score, -∞, times a scale that became 0 would be no number."""


def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    num_heads: int,
    scale: float,
    causal: bool = False,
    *,
    out: Tensor | None = None,
    config: int | None = None,
) -> Tensor:
    """Return ``softmax(scale · Q Kᵀ) V``; :func:`fastdiff.kernels.reference.attention`.

    ``query``: (B, N, H·d), ``key``, ``value``: (B, M, H·d), result: (B, N, H·d), fp16 or bf16 with d in
    TILINGS; softmax and sums are float32. The last axis is contiguous and every row begins at a multiple of
    16 bytes: parts of a merged projection are read where they lie. ``scale`` is positive. Without keys the
    result is zeros. ``out`` is like the inputs, shares no memory with them, and is allocated when None.
    ``config``: queries of a block, one of ``TILINGS[d]``.

    Raises InputError for what it does not take, ``causal`` among it.
    """
    check_attention(query, key, value, num_heads)
    batch, queries, width = query.shape
    keys, size = key.shape[1], width // num_heads
    if causal:
        raise InputError("causal: found True, wanted False in CUDA C++; use the Triton kernel")
    if size not in TILINGS or value.shape[2] != width:
        raise InputError(
            f"head size: found {size} and {value.shape[2] // num_heads} of values, wanted one of "
            f"{', '.join(map(str, TILINGS))} for both"
        )
    if not 0 < scale < math.inf:
        raise InputError(f"scale: found {scale}, wanted a positive number")
    if batch * num_heads > _MOST_BLOCKS:
        raise InputError(
            f"query: found {batch} batches of {num_heads} heads, wanted at most {_MOST_BLOCKS} heads"
        )
    if out is None:
        out = torch.empty((batch, queries, width), dtype=query.dtype, device=query.device)
    tensors = {"query": query, "key": key, "value": value, "out": out}
    for name, tensor in tensors.items():
        _check(name, tensor, query, (batch, queries, width) if name == "out" else (batch, *tensor.shape[1:]))
    if config is not None and config not in TILINGS[size]:
        wanted = ", ".join(map(str, TILINGS[size]))
        raise InputError(f"config: found {config}, wanted one of {wanted} for head size {size}")
    if keys == 0:
        return out.zero_()
    if out.numel() == 0:
        return out
    device = query.device.index
    rows = config or configs(size, queries, batch * num_heads, _multiprocessors(device))[0]
    run = kernel("attention", f"attention_{_SUFFIX[query.dtype]}_{size}_{rows}", architecture(device))
    arguments = (
        *(query, key, value, out, num_heads, queries, keys),
        *(tensor.stride(1) if tensor.shape[1] > 1 else 0 for tensor in tensors.values()),
        *(ctypes.c_int64(tensor.stride(0) if batch > 1 else 0) for tensor in tensors.values()),
        max(scale / math.log(2), _SMALLEST),
    )
    launch(run, (-(-queries // rows), batch * num_heads), 32 * TILINGS[size][rows], arguments)
    return out


def configs(size: int, queries: int, heads: int, multiprocessors: int) -> tuple[int, ...]:
    """The ``config`` worth measuring for ``heads`` heads of all images together, the best guess first.

    A warp with more queries reads keys and values from shared memory less often. Fewer, where the GPU would
    not get two blocks for each multiprocessor otherwise.
    """
    large, small = TILINGS[size]
    enough = heads * -(-queries // large) >= 2 * multiprocessors
    return (large, small) if enough else (small, large)


def _check(name: str, tensor: Tensor, like: Tensor, shape: tuple[int, ...]) -> None:
    """Raise InputError unless the kernel can read, or write, ``tensor`` where it lies."""
    if tensor.dtype not in _SUFFIX or tensor.dtype != like.dtype:
        wanted = "float16 or bfloat16" if like.dtype not in _SUFFIX else f"{like.dtype} as query"
        raise InputError(f"{name}: found {tensor.dtype}, wanted {wanted}".replace("torch.", ""))
    if tensor.shape != shape:
        raise InputError(f"{name}: found shape {tuple(tensor.shape)}, wanted {shape}")
    if tensor.numel() == 0:
        return
    # A row that is the only one, or an image, is at no distance from another.
    steps = [tensor.stride(axis) for axis in (0, 1) if tensor.shape[axis] > 1]
    if tensor.stride(2) != 1 or any(step % 8 for step in steps) or tensor.data_ptr() % 16:
        raise InputError(
            f"{name}: found strides {tensor.stride()} at byte {tensor.data_ptr() % 16} of 16, wanted a "
            "contiguous last axis and rows at multiples of 16 bytes; call .contiguous()"
        )


@cache
def _multiprocessors(device: int) -> int:
    return torch.cuda.get_device_properties(device).multi_processor_count
