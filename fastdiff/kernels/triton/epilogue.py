"""``reference.epilogue`` in Triton: what follows a library's GEMM or convolution, in one pass.

Bytes: x and the residual are read once, the result is written once; bias and vector stay in caches.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastdiff.kernels import reference
from fastdiff.kernels.triton.activation import activate, gelu
from fastdiff.kernels.triton.aot import Build
from fastdiff.kernels.triton.launch import (
    DTYPES,
    Config,
    check_kernel_tensors,
    launch,
    output,
    row_stride,
)
from fastdiff.kernels.triton.specialise import specialise

__all__ = ["builds", "configs", "epilogue"]


@triton.jit
def _addends(
    bias: tl.tensor,
    vector: tl.tensor,
    sample: tl.tensor,
    vector_stride: tl.tensor,
    channels: tl.tensor,
    valid: tl.tensor,
    C_BLOCK: tl.constexpr,
) -> tl.tensor:
    """Bias + vector of some channels of a sample, (C_BLOCK,) float32."""
    added = tl.zeros([C_BLOCK], tl.float32)
    if bias is not None:
        added += tl.load(bias + channels, valid, 0.0).to(tl.float32)
    if vector is not None:
        added += tl.load(vector + sample * vector_stride + channels, valid, 0.0).to(tl.float32)
    return added


@triton.jit(do_not_specialize=["pixels"])
def _epilogue_kernel(
    x: tl.tensor,
    bias: tl.tensor,
    vector: tl.tensor,
    residual: tl.tensor,
    y: tl.tensor,
    pixels: tl.tensor,
    x_stride: tl.tensor,
    vector_stride: tl.tensor,
    residual_stride: tl.tensor,
    y_stride: tl.tensor,
    scale: tl.tensor,
    C: tl.constexpr,  # channels of the result
    ACTIVATION: tl.constexpr,
    P_BLOCK: tl.constexpr,
    C_BLOCK: tl.constexpr,
) -> None:
    sample = tl.program_id(2).to(tl.int64)
    first = tl.program_id(0) * P_BLOCK
    pixel = tl.arange(0, P_BLOCK)
    origin = sample * pixels + first
    channels = tl.program_id(1) * C_BLOCK + tl.arange(0, C_BLOCK)
    valid = channels < C
    mask = (pixel < pixels - first)[:, None] & valid[None, :]

    at = x + origin * x_stride + (pixel[:, None] * x_stride + channels[None, :])
    value = tl.load(at, mask, 0.0).to(tl.float32)
    if bias is not None or vector is not None:
        value += _addends(bias, vector, sample, vector_stride, channels, valid, C_BLOCK)[None, :]
    if ACTIVATION == "geglu":
        gate = tl.load(at + C, mask, 0.0).to(tl.float32)
        if bias is not None or vector is not None:
            gate += _addends(bias, vector, sample, vector_stride, channels + C, valid, C_BLOCK)[None, :]
        value = value * gelu(gate)
    else:
        value = activate(value, ACTIVATION)
    if residual is not None:
        other = residual + origin * residual_stride + (pixel[:, None] * residual_stride + channels[None, :])
        value += tl.load(other, mask, 0.0).to(tl.float32)
    value = value * scale
    to = y + origin * y_stride + (pixel[:, None] * y_stride + channels[None, :])
    tl.store(to, value.to(y.dtype.element_ty), mask)


def epilogue(
    x: Tensor,
    bias: Tensor | None = None,
    vector: Tensor | None = None,
    residual: Tensor | None = None,
    activation: str = "none",
    scale: float = 1.0,
    *,
    out: Tensor | None = None,
    config: Config | None = None,
) -> Tensor:
    """:func:`reference.epilogue` of fp16, bf16 or fp32 with evenly spaced pixels.

    ``out`` may be ``x``, unless ``activation`` is "geglu", or ``residual``.
    """
    reference.check_epilogue(x, bias, vector, residual, activation)
    channels = x.shape[-1] // 2 if activation == "geglu" else x.shape[-1]
    out = output(out, (*x.shape[:-1], channels), x)
    check_kernel_tensors(x=x, bias=bias, vector=vector, residual=residual, out=out)
    if not out.numel():
        return out
    # Only a vector tells samples apart.
    samples = x.shape[0] if vector is not None else 1
    pixels = math.prod(x.shape[:-1]) // samples
    config = config or configs(channels)[0]
    launch(
        _epilogue_kernel,
        (triton.cdiv(pixels, config["P_BLOCK"]), triton.cdiv(channels, config["C_BLOCK"]), samples),
        *(x, bias, vector, residual, out, pixels, row_stride(x, "x")),
        0 if vector is None else vector.stride(0),
        0 if residual is None else row_stride(residual, "residual"),
        *(row_stride(out, "out"), float(scale)),
        config=config,
        C=channels,
        ACTIVATION=activation,
    )
    return out


def configs(channels: int) -> tuple[Config, ...]:
    """Tilings worth measuring, the default first: 16 bytes of fp16 per load and thread, 2 or 4 of them."""
    width = min(256, channels & -channels)  # a divisor needs no mask
    if width < 64:
        width = min(128, triton.next_power_of_2(channels))
    return tuple(
        Config.of(warps, 1, P_BLOCK=max(1, elements * warps // width), C_BLOCK=width)
        for elements, warps in ((512, 4), (1024, 4), (512, 8))
    )


def builds(dtype: torch.dtype, arch: int) -> Iterator[Build]:
    """After a ResNet block's convolutions and a feed-forward layer's GEMM, of SD 1.5."""
    del arch
    kind = f"*{DTYPES[dtype]}"
    for name, optional, activation in (
        ("bias, vector, silu", ("bias", "vector"), "silu"),
        ("bias, residual", ("bias", "residual"), "none"),
        ("bias, geglu", ("bias",), "geglu"),
    ):
        yield specialise(
            f"epilogue {name}",
            _epilogue_kernel,
            dict.fromkeys(("x", "y", *optional), kind),
            {"C": 1280, "ACTIVATION": activation},
            configs(1280)[0],
            sizes=("pixels",),
            numbers=("scale",),
        )
