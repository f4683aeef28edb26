"""``fastdiff::geglu`` in Triton: one read of both halves, one write, float32 in between."""

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

__all__ = ["builds", "configs", "geglu"]

_SQRT_HALF = tl.constexpr(0.7071067811865476)


@triton.jit(do_not_specialize=["rows"])
def _geglu_kernel(
    x: tl.tensor,  # (rows, 2·C), rows x_stride apart
    out: tl.tensor,  # (rows, C), rows out_stride apart
    rows: tl.tensor,
    x_stride: tl.tensor,
    out_stride: tl.tensor,
    C: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_C: tl.constexpr,
) -> None:
    row = (tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M))[:, None]
    channel = (tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C))[None, :]
    inside = row < rows
    if C % BLOCK_C:
        inside = inside & (channel < C)
    source = x + row.to(tl.int64) * x_stride + channel
    a = tl.load(source, inside, 0.0).to(tl.float32)
    b = tl.load(source + C, inside, 0.0).to(tl.float32)
    y = a * (0.5 * b * (1 + tl.erf(b * _SQRT_HALF)))
    tl.store(out + row.to(tl.int64) * out_stride + channel, y.to(out.dtype.element_ty), inside)


def geglu(x: Tensor, *, out: Tensor | None = None, config: Config | None = None) -> Tensor:
    """:func:`reference.geglu` of fp16, bf16 or fp32 with evenly spaced rows; ``out``: (…, C), likewise."""
    reference.check_geglu(x)
    check_kernel_tensors(x=x)
    channels = x.shape[-1] // 2
    out = output(out, (*x.shape[:-1], channels), x)
    rows = rows_of(out)
    if not rows:
        return out
    config = config or configs(channels, architecture(x))[0]
    grid = (triton.cdiv(rows, config["BLOCK_M"]), triton.cdiv(channels, config["BLOCK_C"]))
    strides = row_stride(x, "x"), row_stride(out, "out")
    launch(_geglu_kernel, grid, x, out, rows, *strides, config=config, C=channels)
    return out


def configs(channels: int, arch: int) -> tuple[Config, ...]:
    """Tilings worth measuring, the default first: 16 bytes of fp16 per load and thread, 2 or 4 of them."""
    width = min(1024, channels & -channels)  # a divisor needs no mask
    if width < 64:
        width = min(256, triton.next_power_of_2(channels))
    return tuple(
        Config.of(warps, 1, BLOCK_M=max(1, elements * warps // width), BLOCK_C=width)
        for elements, warps in ((512, 4), (1024, 4), (512, 8))
    )


def builds(dtype: torch.dtype, arch: int) -> Iterator[Build]:
    """The feed-forward layers of SD 1.5 and SDXL."""
    pointer = f"*{DTYPES[dtype]}"
    for channels in (1280, 2560, 5120):
        yield Build(
            name=f"geglu C={channels}",
            kernel=_geglu_kernel,
            signature={
                "x": pointer,
                "out": pointer,
                "rows": "i32",
                "x_stride": "i32",
                "out_stride": "i32",
            },
            constants={"C": channels},
            config=configs(channels, arch)[0],
            aligned=("x", "out", "x_stride", "out_stride"),
        )
