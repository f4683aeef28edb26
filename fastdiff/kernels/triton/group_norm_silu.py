"""``fastdiff::group_norm_silu`` in Triton, alone or after the additions that precede a norm in a U-Net.

Bytes: a picture of ``n`` elements of ``s`` bytes must be read once and written once, 2·n·s. Where the pixels
of a group fit into a program's registers no more is moved. Else the picture is read twice, 3·n·s: once for
the statistics of chunks of pixels, which a third, small kernel joins, and once to be normalised, from the L2
cache where it fits there. :func:`add_group_norm_silu` reads each addend and writes the sum beside that; where
the sum is not kept, the second reading is of the addends.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
import triton
from torch import Tensor

from fastdiff.errors import InputError
from fastdiff.kernels import reference
from fastdiff.kernels.triton import group_norm_kernels as kernels
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

__all__ = ["add_group_norm_silu", "builds", "configs", "group_norm_silu"]

_TILE = 16384  # float32 numbers that 16 warps hold, 32 per thread
_PROGRAMS = 1024  # of the statistics: several for each multiprocessor of any GPU
_MOST_CHUNKS = 1024  # that one program of `combine` can join


def group_norm_silu(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    num_groups: int,
    eps: float = 1e-5,
    silu: bool = True,
    layout: str = "NHWC",
    *,
    out: Tensor | None = None,
    config: Config | None = None,
) -> Tensor:
    """:func:`reference.group_norm_silu` of fp16, bf16 or fp32 with evenly spaced pixels.

    ``out`` may be ``x``. Raises InputError for layout "NCHW" too.
    """
    reference.check_group_norm_silu(x, weight, bias, num_groups, layout)
    if layout != "NHWC":
        raise InputError(
            "layout: found 'NCHW', wanted 'NHWC'; call .movedim(1, -1) on a channels-last tensor"
        )
    if x.dim() < 2:
        raise InputError(f"x: found shape {tuple(x.shape)}, wanted two axes or more, (N, …, C)")
    out = output(out, tuple(x.shape), x)
    _run(_Sum(x), weight, bias, num_groups, eps, silu, None, out, config)
    return out


def add_group_norm_silu(
    x: Tensor,
    bias: Tensor | None,
    vector: Tensor | None,
    residual: Tensor | None,
    norm_weight: Tensor | None,
    norm_bias: Tensor | None,
    num_groups: int,
    eps: float = 1e-5,
    silu: bool = True,
    *,
    keep_sum: bool = True,
    out: tuple[Tensor | None, Tensor | None] = (None, None),
    config: Config | None = None,
) -> tuple[Tensor | None, Tensor]:
    """:func:`reference.add_group_norm_silu` of fp16, bf16 or fp32 with evenly spaced pixels.

    The sum is rounded to the dtype of ``x`` before it is normalised. Without ``keep_sum`` it is not written,
    and None in the result. ``out``: where the sum and the result go, each allocated when None; ``x`` and
    ``residual`` may be among them, one tensor as both may not.
    """
    reference.check_add_group_norm_silu(x, bias, vector, residual, norm_weight, norm_bias, num_groups)
    check_kernel_tensors(x=x, bias=bias, vector=vector, residual=residual)
    total = output(out[0], tuple(x.shape), x, "out[0]") if keep_sum else None
    normed = output(out[1], tuple(x.shape), x, "out[1]")
    if total is not None and total.data_ptr() == normed.data_ptr() and x.numel():
        raise InputError("out: found one tensor for the sum and the result, wanted two")
    _run(
        _Sum(x, bias, vector, residual), norm_weight, norm_bias, num_groups, eps, silu, total, normed, config
    )
    return total, normed


@dataclass(frozen=True)
class _Sum:
    """What is normalised: x + bias + vector + residual."""

    x: Tensor
    bias: Tensor | None = None
    vector: Tensor | None = None
    residual: Tensor | None = None


def _run(
    addends: _Sum,
    weight: Tensor | None,
    norm_bias: Tensor | None,
    num_groups: int,
    eps: float,
    silu: bool,
    total: Tensor | None,
    y: Tensor,
    config: Config | None,
) -> None:
    x, bias, vector, residual = addends.x, addends.bias, addends.vector, addends.residual
    check_kernel_tensors(x=x, weight=weight, norm_bias=norm_bias, out=y)
    if not x.numel():
        return
    samples, channels = x.shape[0], x.shape[-1]
    pixels = math.prod(x.shape[1:-1])
    config = config or configs(pixels, channels, num_groups)[0]
    if not _is_split(config) and config["P_BLOCK"] < pixels:
        raise InputError(
            f"config: found P_BLOCK {config['P_BLOCK']} for {pixels} pixels, wanted at least as many, or a "
            "config with APPLY_P"
        )
    tile = _tiling(config["C_BLOCK"], channels, num_groups)
    blocks = triton.cdiv(num_groups, tile["PER"])
    strides = {
        "x_stride": row_stride(x, "x"),
        "vector_stride": 0 if vector is None else vector.stride(0),
        "residual_stride": 0 if residual is None else row_stride(residual, "residual"),
    }
    total_stride = 0 if total is None else row_stride(total, "out[0]")
    y_stride = row_stride(y, "out")
    first = Config.of(config.num_warps, 1, P_BLOCK=config["P_BLOCK"], C_BLOCK=config["C_BLOCK"])
    if not _is_split(config):
        launch(
            kernels.one_pass,
            (blocks, samples),
            *(x, bias, vector, residual, weight, norm_bias, total, y),
            pixels,
            *strides.values(),
            *(total_stride, y_stride, eps),
            config=first,
            SILU=silu,
            **tile,
        )
        return

    chunk, chunks = _chunks(pixels, samples * blocks, config["P_BLOCK"])
    partial = torch.empty(samples, chunks, 3, num_groups, dtype=torch.float32, device=x.device)
    moments = torch.empty(samples, 3, num_groups, dtype=torch.float32, device=x.device)
    launch(
        kernels.statistics,
        (chunks, blocks, samples),
        *(x, bias, vector, residual, total, partial),
        *(pixels, chunk, *strides.values(), total_stride),
        config=first,
        **tile,
    )
    join = _join(chunks)
    launch(
        kernels.combine,
        (triton.cdiv(num_groups, join["G_BLOCK"]), samples),
        *(partial, moments, pixels, chunk, chunks, eps),
        config=join,
        C=channels,
        CG=tile["CG"],
    )
    if total is not None:
        x, bias, vector, residual = total, None, None, None
        strides = {"x_stride": total_stride, "vector_stride": 0, "residual_stride": 0}
    launch(
        kernels.apply,
        (triton.cdiv(pixels, config["APPLY_P"]), triton.cdiv(channels, config["APPLY_C"]), samples),
        *(x, bias, vector, residual, moments, weight, norm_bias, y),
        *(pixels, *strides.values(), y_stride),
        config=_second(config),
        C=channels,
        CG=tile["CG"],
        SILU=silu,
    )


def _is_split(config: Config) -> bool:
    return "APPLY_P" in dict(config.blocks)


def _second(config: Config) -> Config:
    """The tiling of ``apply`` within a split config."""
    return Config.of(4, 1, P_BLOCK=config["APPLY_P"], C_BLOCK=config["APPLY_C"])


def _join(chunks: int) -> Config:
    """The tiling of ``combine``."""
    if chunks <= 128:
        return Config.of(4, 1, CHUNK_BLOCK=128, G_BLOCK=16)
    return Config.of(8, 1, CHUNK_BLOCK=_MOST_CHUNKS, G_BLOCK=4)


def _tiling(c_block: int, channels: int, groups: int) -> dict[str, int]:
    """Constants for C_BLOCK channels: PER groups, so many that the rows of a program's tile are aligned."""
    size = channels // groups
    most = min(groups, c_block // size)
    if not most:
        raise InputError(f"config: found C_BLOCK {c_block}, wanted at least a group's {size} channels")
    whole = [count for count in range(1, most + 1) if count * size % 8 == 0]
    # Aligned rows are worth idle lanes, but not half of them.
    per = whole[-1] if whole and 2 * whole[-1] > most else most
    return {"C": channels, "CG": size, "PER": per, "G_BLOCK": max(2, triton.next_power_of_2(per))}


def _chunks(pixels: int, programs: int, p_block: int) -> tuple[int, int]:
    """Pixels per chunk, a multiple of ``p_block``, and how many chunks of them, for _PROGRAMS in all."""
    wanted = min(_MOST_CHUNKS, max(1, _PROGRAMS // programs))
    chunk = triton.cdiv(triton.cdiv(pixels, wanted), p_block) * p_block
    return chunk, triton.cdiv(pixels, chunk)


def configs(pixels: int, channels: int, groups: int) -> tuple[Config, ...]:
    """Tilings worth measuring, the default first: one pass where a group fits, with more or fewer groups per
    program, then split ones.
    """
    narrow = max(16, triton.next_power_of_2(channels // groups))
    rows = max(4, triton.next_power_of_2(pixels))
    single = [
        Config.of(min(16, max(4, rows * width // 1024)), 1, P_BLOCK=rows, C_BLOCK=width)
        for width in (narrow, 2 * narrow, 4 * narrow)
        if rows * width <= _TILE and (width == narrow or width < 2 * channels)
    ]
    wide = max(128, narrow)
    apply_c = min(256, channels & -channels)
    if apply_c < 64:
        apply_c = min(64, triton.next_power_of_2(channels))
    split = [
        Config.of(
            warps,
            1,
            P_BLOCK=max(1, tile // wide),
            C_BLOCK=wide,
            APPLY_P=max(1, apply_tile // apply_c),
            APPLY_C=apply_c,
        )
        for tile, warps, apply_tile in ((4096, 8, 4096), (4096, 4, 4096), (2048, 4, 2048), (8192, 8, 8192))
    ]
    return (*single, *split)


def builds(dtype: torch.dtype, arch: int) -> Iterator[Build]:
    """Of SD 1.5's U-Net a norm after a convolution, of SDXL's the largest that one pass takes, of a VAE's
    decoder the largest.
    """
    del arch
    kind = f"*{DTYPES[dtype]}"
    norm = dict.fromkeys(("x", "weight", "norm_bias", "y"), kind)
    addends = dict.fromkeys(("bias", "vector", "residual", "total"), kind)
    statistics = dict.fromkeys(("partial", "moments"), "*fp32")
    for pixels, channels, more in (
        (256, 1280, addends),
        (1024, 640, {}),
        (4096, 320, addends),
        (1 << 20, 128, {}),
    ):
        config = configs(pixels, channels, 32)[0]
        tile = _tiling(config["C_BLOCK"], channels, 32)
        first = Config.of(config.num_warps, 1, P_BLOCK=config["P_BLOCK"], C_BLOCK=config["C_BLOCK"])
        parts = [(kernels.one_pass, first)]
        if _is_split(config):
            _, chunks = _chunks(pixels, triton.cdiv(32, tile["PER"]), config["P_BLOCK"])
            parts = [
                (kernels.statistics, first),
                (kernels.combine, _join(chunks)),
                (kernels.apply, _second(config)),
            ]
        for kernel, tiling in parts:
            given = {**norm, **statistics, **more}
            if kernel is kernels.apply and "total" in more:
                given = {**norm, **statistics}  # it normalises the sum that `statistics` wrote
            names = set(kernel.arg_names) - set(dict(tiling.blocks))
            yield specialise(
                f"group_norm_silu {kernel.fn.__name__} {pixels} pixels, {channels} channels",
                kernel,
                {name: kind for name, kind in given.items() if name in names},
                {name: value for name, value in {**tile, "SILU": True}.items() if name in names},
                tiling,
                sizes=kernels.SIZES,
                numbers=("eps",),
            )
