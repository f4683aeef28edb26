"""``fastdiff::layer_norm`` in Triton: the residual sum and its normalisation in one pass over memory.

A program holds whole rows in registers: the mean first, then the variance around it. A row of 320 channels is
held as 256 + 64, one of 1280 as 1024 + 256, since Triton's tiles are powers of two.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastdiff.kernels import reference
from fastdiff.kernels.triton.aot import Build
from fastdiff.kernels.triton.launch import (
    DTYPES,
    Config,
    architecture,
    check_kernel_tensors,
    launch,
    output,
    row_stride,
    rows_of,
)

__all__ = ["builds", "configs", "layer_norm"]


@triton.jit
def _load(
    base: tl.tensor,
    row: tl.tensor,
    stride: tl.tensor,
    rows: tl.tensor,
    FIRST: tl.constexpr,
    WIDTH: tl.constexpr,
    C: tl.constexpr,
) -> tl.tensor:
    """Channels FIRST to FIRST + WIDTH of rows in float32, zeros outside."""
    channel = FIRST + tl.arange(0, WIDTH)[None, :]
    inside = row < rows
    if FIRST + WIDTH > C:
        inside = inside & (channel < C)
    return tl.load(base + row.to(tl.int64) * stride + channel, inside, 0.0).to(tl.float32)


@triton.jit
def _store(
    base: tl.tensor,
    values: tl.tensor,
    row: tl.tensor,
    stride: tl.tensor,
    rows: tl.tensor,
    FIRST: tl.constexpr,
    WIDTH: tl.constexpr,
    C: tl.constexpr,
) -> None:
    channel = FIRST + tl.arange(0, WIDTH)[None, :]
    inside = row < rows
    if FIRST + WIDTH > C:
        inside = inside & (channel < C)
    tl.store(base + row.to(tl.int64) * stride + channel, values.to(base.dtype.element_ty), inside)


@triton.jit
def _centred(
    x: tl.tensor, mean: tl.tensor, FIRST: tl.constexpr, WIDTH: tl.constexpr, C: tl.constexpr
) -> tl.tensor:
    """Distances from the mean, zeros beyond the last channel."""
    distance = x - mean[:, None]
    if FIRST + WIDTH > C:
        distance = tl.where(FIRST + tl.arange(0, WIDTH)[None, :] < C, distance, 0.0)
    return distance


@triton.jit
def _scaled(
    x: tl.tensor,
    weight: tl.tensor,
    bias: tl.tensor,
    FIRST: tl.constexpr,
    WIDTH: tl.constexpr,
    C: tl.constexpr,
    WEIGHT: tl.constexpr,
    BIAS: tl.constexpr,
) -> tl.tensor:
    channel = FIRST + tl.arange(0, WIDTH)
    if WEIGHT:
        x *= tl.load(weight + channel, channel < C, 0.0).to(tl.float32)[None, :]
    if BIAS:
        x += tl.load(bias + channel, channel < C, 0.0).to(tl.float32)[None, :]
    return x


@triton.jit(do_not_specialize=["rows"])
def _layer_norm_kernel(
    x: tl.tensor,  # (rows, C)
    residual: tl.tensor,
    weight: tl.tensor,  # (C,)
    bias: tl.tensor,
    total: tl.tensor,  # (rows, C), x + residual
    out: tl.tensor,  # (rows, C)
    rows: tl.tensor,
    x_stride: tl.tensor,  # of rows
    residual_stride: tl.tensor,
    total_stride: tl.tensor,
    out_stride: tl.tensor,
    eps: tl.tensor,
    C: tl.constexpr,
    RESIDUAL: tl.constexpr,
    WEIGHT: tl.constexpr,
    BIAS: tl.constexpr,
    BLOCK_M: tl.constexpr,
    C0: tl.constexpr,
    C1: tl.constexpr,
) -> None:
    row = (tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M))[:, None]
    x0 = _load(x, row, x_stride, rows, 0, C0, C)
    if RESIDUAL:
        x0 += _load(residual, row, residual_stride, rows, 0, C0, C)
        _store(total, x0, row, total_stride, rows, 0, C0, C)
    mean = tl.sum(x0, 1)
    x1 = x0
    if C1 > 0:
        x1 = _load(x, row, x_stride, rows, C0, C1, C)
        if RESIDUAL:
            x1 += _load(residual, row, residual_stride, rows, C0, C1, C)
            _store(total, x1, row, total_stride, rows, C0, C1, C)
        mean += tl.sum(x1, 1)
    mean = tl.div_rn(mean, tl.full([BLOCK_M], C, tl.float32))  # exact for rows of one value
    x0 = _centred(x0, mean, 0, C0, C)
    variance = tl.sum(x0 * x0, 1)
    if C1 > 0:
        x1 = _centred(x1, mean, C0, C1, C)
        variance += tl.sum(x1 * x1, 1)
    scale = tl.rsqrt(variance / C + eps)[:, None]
    _store(out, _scaled(x0 * scale, weight, bias, 0, C0, C, WEIGHT, BIAS), row, out_stride, rows, 0, C0, C)
    if C1 > 0:
        _store(
            out, _scaled(x1 * scale, weight, bias, C0, C1, C, WEIGHT, BIAS), row, out_stride, rows, C0, C1, C
        )


def layer_norm(
    x: Tensor,
    residual: Tensor | None = None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    *,
    out: tuple[Tensor, Tensor] | None = None,
    config: Config | None = None,
) -> tuple[Tensor, Tensor]:
    """:func:`reference.layer_norm` of fp16, bf16 or fp32 with evenly spaced rows.

    The first result is ``x`` itself where there is no residual. The statistics are those of the sum before it
    is rounded. ``out``: both results; the first may be ``x`` or ``residual``, and is not written without one.
    """
    reference.check_layer_norm(x, residual, weight, bias)
    check_kernel_tensors(x=x, residual=residual, weight=weight, bias=bias)
    total, normed = out or (None, None)
    shape, channels = tuple(x.shape), x.shape[-1]
    total = x if residual is None else output(total, shape, x, "out[0]")
    normed = output(normed, shape, x, "out[1]")
    rows = rows_of(x)
    if not rows:
        return total, normed
    config = config or configs(channels, architecture(x))[0]
    # Pointers that the kernel does not follow still need an address.
    tensors = tuple(x if given is None else given for given in (x, residual, weight, bias))
    names = ("x", "residual", "out[0]", "out[1]")
    strides = (row_stride(t, n) for t, n in zip((*tensors[:2], total, normed), names, strict=True))
    launch(
        _layer_norm_kernel,
        (triton.cdiv(rows, config["BLOCK_M"]),),
        *(*tensors, total, normed, rows, *strides, eps),
        config=config,
        C=channels,
        RESIDUAL=residual is not None,
        WEIGHT=weight is not None,
        BIAS=bias is not None,
    )
    return total, normed


def _pieces(channels: int) -> tuple[int, int]:
    """The powers of two that a row is held in, the second 0 where one is not wider than both."""
    one = triton.next_power_of_2(channels)
    first = max(1, one // 2)
    second = triton.next_power_of_2(max(1, channels - first))
    return (first, second) if channels > 32 and first + second < one else (one, 0)


def configs(channels: int, arch: int) -> tuple[Config, ...]:
    """Tilings worth measuring, the default first: 1024 channels by 4 warps, whole rows."""
    first, second = _pieces(channels)
    rows = max(1, 1024 // first)
    return tuple(
        Config.of(warps, 1, BLOCK_M=block, C0=first, C1=second)
        for block, warps in ((rows, 4), (1, 1), (1, 2), (2 * rows, 4), (2 * rows, 8))
    )


def builds(dtype: torch.dtype, arch: int) -> Iterator[Build]:
    """The transformers of SD 1.5 and SDXL and their text encoders; with a residual, and without."""
    pointers = ("x", "residual", "weight", "bias", "total", "out")
    strides = ("x_stride", "residual_stride", "total_stride", "out_stride")
    types = {
        **dict.fromkeys(pointers, f"*{DTYPES[dtype]}"),
        "rows": "i32",
        **dict.fromkeys(strides, "i32"),
        "eps": "fp32",
    }
    for channels, residual in ((320, True), (640, True), (768, True), (1280, True), (1280, False)):
        yield Build(
            name=f"layer_norm C={channels}{' residual' if residual else ''}",
            kernel=_layer_norm_kernel,
            signature=types,
            constants={"C": channels, "RESIDUAL": residual, "WEIGHT": True, "BIAS": True},
            config=configs(channels, arch)[0],
            aligned=(*pointers, *strides),
        )
