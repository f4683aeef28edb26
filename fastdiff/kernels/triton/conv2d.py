"""``fastdiff::conv2d`` in Triton: a GEMM that gathers its rows from a picture with channels last.

Bytes: the picture, the weight and the residual once, the result once; 2·B·H'·W'·kh·kw·I·O operations. Each
tap of the kernel reads the picture again, from L2. Padding and ``upsample`` are in the addresses: neither a
padded nor an enlarged picture is written.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastdiff.kernels import reference
from fastdiff.kernels.triton.activation import activate
from fastdiff.kernels.triton.aot import Build
from fastdiff.kernels.triton.gemm_configs import gemm_configs
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
from fastdiff.kernels.triton.linear import grouped_tile
from fastdiff.kernels.triton.specialise import specialise

__all__ = ["builds", "configs", "conv2d", "pack_weight"]

_SIZES = ["rows", "height", "width", "seen_height", "seen_width", "out_height", "out_width"]
_FEW = 16  # input channels below which a step of the sum runs over several taps


@triton.jit(do_not_specialize=_SIZES)
def _conv2d_kernel(
    x: tl.tensor,
    weight: tl.tensor,
    bias: tl.tensor,
    vector: tl.tensor,
    residual: tl.tensor,
    y: tl.tensor,
    rows: tl.tensor,  # pixels of all results
    height: tl.tensor,
    width: tl.tensor,
    seen_height: tl.tensor,  # of the enlarged picture, as far as the kernel sees it
    seen_width: tl.tensor,
    out_height: tl.tensor,
    out_width: tl.tensor,
    x_stride: tl.tensor,
    vector_stride: tl.tensor,
    residual_stride: tl.tensor,
    y_stride: tl.tensor,
    scale: tl.tensor,
    I: tl.constexpr,  # noqa: E741
    O: tl.constexpr,  # noqa: E741
    KH: tl.constexpr,
    KW: tl.constexpr,
    STRIDE: tl.constexpr,
    TOP: tl.constexpr,
    LEFT: tl.constexpr,
    UP: tl.constexpr,
    FLAT: tl.constexpr,  # a step runs over taps and channels, not over channels of one tap
    ACTIVATION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    GROUP: tl.constexpr,
) -> None:
    K: tl.constexpr = KH * KW * I
    m, n = grouped_tile(tl.cdiv(rows, BLOCK_M), tl.cdiv(O, BLOCK_N), GROUP)
    first = m * BLOCK_M
    row = tl.arange(0, BLOCK_M)
    inside = row < rows - first
    column = n * BLOCK_N + tl.arange(0, BLOCK_N)
    k = tl.arange(0, BLOCK_K)
    # Where in the picture each row's first tap is. The first row's image is in the pointer, in 64 bits.
    area = out_height * out_width
    image = (first + row) // area
    within = (first + row) % area
    top = within // out_width * STRIDE - TOP
    left = within % out_width * STRIDE - LEFT
    source = x + (first // area).to(tl.int64) * height * width * x_stride
    start = (image - first // area) * height * width
    factor = weight + tl.where(column < O, column, 0)[None, :] * K + k[:, None]

    total = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    if FLAT:
        for at in range(0, K, BLOCK_K):
            term = at + k
            down = top[:, None] + (term // I // KW)[None, :]
            right = left[:, None] + (term // I % KW)[None, :]
            taken = inside[:, None] & (down >= 0) & (down < seen_height) & (right >= 0) & (right < seen_width)
            pixel = start[:, None] + down // UP * width + right // UP
            known = taken & (term < K)[None, :]
            a = tl.load(source + (pixel * x_stride + (term % I)[None, :]), known, 0.0)
            b = tl.load(factor + at, (term < K)[:, None], 0.0)
            total = tl.dot(a, b, total, input_precision="ieee")
    else:
        PER_TAP: tl.constexpr = (I + BLOCK_K - 1) // BLOCK_K
        for step in range(KH * KW * PER_TAP):
            tap = step // PER_TAP
            channel = step % PER_TAP * BLOCK_K
            down = top + tap // KW
            right = left + tap % KW
            taken = inside & (down >= 0) & (down < seen_height) & (right >= 0) & (right < seen_width)
            pixel = start + down // UP * width + right // UP
            here = source + channel + (pixel[:, None] * x_stride + k[None, :])
            if I % BLOCK_K == 0:
                a = tl.load(here, taken[:, None], 0.0)
                b = tl.load(factor + (tap * I + channel))
            else:
                a = tl.load(here, taken[:, None] & (k < I - channel)[None, :], 0.0)
                b = tl.load(factor + (tap * I + channel), (k < I - channel)[:, None], 0.0)
            total = tl.dot(a, b, total, input_precision="ieee")

    valid = column < O
    mask = inside[:, None] & valid[None, :]
    if bias is not None:
        total += tl.load(bias + column, valid, 0.0).to(tl.float32)[None, :]
    if vector is not None:
        added = tl.load(vector + (image[:, None] * vector_stride + column[None, :]), mask, 0.0)
        total += added.to(tl.float32)
    total = activate(total, ACTIVATION)
    long = first.to(tl.int64)
    if residual is not None:
        other = residual + long * residual_stride + (row[:, None] * residual_stride + column[None, :])
        total += tl.load(other, mask, 0.0).to(tl.float32)
    to = y + long * y_stride + (row[:, None] * y_stride + column[None, :])
    tl.store(to, (total * scale).to(y.dtype.element_ty), mask)


def pack_weight(weight: Tensor) -> Tensor:
    """A weight (O, I, kh, kw) with its input channels next to each other in memory, (O, kh, kw, I) there.

    The same layout that cuDNN wants for pictures with channels last.
    """
    return weight.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)


def conv2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    vector: Tensor | None,
    residual: Tensor | None,
    stride: int,
    padding: Sequence[int],
    upsample: int = 1,
    activation: str = "none",
    scale: float = 1.0,
    size: Sequence[int] | None = None,
    *,
    out: Tensor | None = None,
    config: Config | None = None,
) -> Tensor:
    """:func:`reference.conv2d` of fp16, bf16 or fp32 with evenly spaced pixels.

    A ``weight`` that :func:`pack_weight` has not laid out is laid out in every call. ``out`` may be
    ``residual``. Products of fp32 are not rounded to TF32.
    """
    reference.check_conv2d(x, weight, bias, vector, residual, stride, padding, upsample, activation, size)
    outputs, inputs, kernel_height, kernel_width = weight.shape
    top, bottom, left, right = padding
    seen_height, seen_width = reference.upsampled_size(x, upsample, size)
    height = (seen_height + top + bottom - kernel_height) // stride + 1
    width = (seen_width + left + right - kernel_width) // stride + 1
    out = output(out, (x.shape[0], height, width, outputs), x)
    packed = weight.permute(0, 2, 3, 1).contiguous()
    check_kernel_tensors(x=x, weight=packed, bias=bias, vector=vector, residual=residual, out=out)
    rows = rows_of(out)
    if not rows:
        return out
    terms = kernel_height * kernel_width * inputs
    config = config or configs(rows, inputs, outputs, terms, architecture(x), x.dtype)[0]
    launch(
        _conv2d_kernel,
        (triton.cdiv(rows, config["BLOCK_M"]) * triton.cdiv(outputs, config["BLOCK_N"]),),
        *(x, packed, bias, vector, residual, out),
        *(rows, x.shape[1], x.shape[2], seen_height, seen_width, height, width, row_stride(x, "x")),
        0 if vector is None else vector.stride(0),
        0 if residual is None else row_stride(residual, "residual"),
        *(row_stride(out, "out"), float(scale)),
        config=config,
        I=inputs,
        O=outputs,
        KH=kernel_height,
        KW=kernel_width,
        STRIDE=stride,
        TOP=top,
        LEFT=left,
        UP=upsample,
        FLAT=inputs < _FEW,
        ACTIVATION=activation,
    )
    return out


def configs(
    rows: int, inputs: int, outputs: int, terms: int, arch: int, dtype: torch.dtype
) -> tuple[Config, ...]:
    """Tilings worth measuring for ``rows`` pixels and sums of ``terms``, those that seem fastest first."""
    k_block = 64 if dtype != torch.float32 else 32
    if inputs < _FEW:
        k_block = max(16, min(k_block, triton.next_power_of_2(terms)))
    elif inputs % k_block:
        k_block = max(16, min(k_block, inputs & -inputs))
    return gemm_configs(rows, outputs, k_block, dtype, arch)


def builds(dtype: torch.dtype, arch: int) -> Iterator[Build]:
    """Of SD 1.5 a ResNet block's convolutions, the U-Net's first and an upsampler's."""
    kind = f"*{DTYPES[dtype]}"
    for rows, inputs, outputs, up, optional in (
        (8192, 320, 320, 1, ("bias", "vector")),
        (8192, 640, 320, 1, ("bias", "residual")),
        (8192, 4, 320, 1, ("bias",)),
        (2048, 1280, 1280, 2, ("bias",)),
    ):
        yield specialise(
            f"conv2d {rows}, {inputs}, {outputs}, upsample {up}",
            _conv2d_kernel,
            dict.fromkeys(("x", "weight", "y", *optional), kind),
            {
                "I": inputs,
                "O": outputs,
                "KH": 3,
                "KW": 3,
                "STRIDE": 1,
                "TOP": 1,
                "LEFT": 1,
                "UP": up,
                "FLAT": inputs < _FEW,
                "ACTIVATION": "none",
            },
            configs(rows, inputs, outputs, 9 * inputs, arch, dtype)[0],
            sizes=_SIZES,
            numbers=("scale",),
        )
