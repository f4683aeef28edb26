"""``group_norm_silu`` in CUDA C++: ``csrc/cuda/group_norm_silu.cu``."""

from __future__ import annotations

import ctypes
import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Literal

import torch
from torch import Tensor

from fastdiff.errors import InputError
from fastdiff.kernels.cuda.loader import architecture, kernel, launch
from fastdiff.kernels.reference import check_group_norm_silu

__all__ = ["Gpu", "Plan", "configs", "gpu_of", "group_norm_silu", "plan"]

_SUFFIX = {torch.float16: "_f16", torch.bfloat16: "_bf16", torch.float32: "_f32"}
_MOMENTS, _STATISTICS, _PACK = 12, 8, 16
"""Bytes of the structures of the header, and of a pack."""
_MAX_THREADS = 512


@dataclass(frozen=True)
class Gpu:
    """What a plan depends on."""

    multiprocessors: int
    shared: int
    """Bytes of shared memory that one block may have."""
    clusters: bool
    """Blocks can read each other's shared memory: sm_90 and newer."""


@dataclass(frozen=True)
class Plan:
    """How one call is shared out: ``config`` of :func:`group_norm_silu`.

    "cluster": one launch; ``parts`` blocks share the pixels of ``columns`` channels, whole groups, and keep
    them in shared memory. "split": two launches with ``parts`` blocks each; "scalar": those for any
    alignment.
    """

    kind: Literal["cluster", "split", "scalar"]
    columns: int
    parts: int
    threads: int

    def shared(self, pixels: int, group_channels: int, itemsize: int) -> int:
        """Bytes of dynamic shared memory of a block (of the first launch)."""
        pack = 1 if self.kind == "scalar" else _PACK // itemsize
        groups = (self.columns + group_channels - 2) // group_channels + 1
        size = _MOMENTS * (self.threads * _max_segments(pack, group_channels) + groups)
        if self.kind == "cluster":
            rows = pixels // self.parts + 1
            size += rows * (self.columns // pack) * _PACK + _STATISTICS * groups
        return size


def _max_segments(pack: int, group_channels: int) -> int:
    """As the header's: how many groups a pack may touch."""
    if group_channels % pack == 0:
        return 1
    if pack % group_channels == 0:
        return pack // group_channels
    return (pack + group_channels - 2) // group_channels + 1


@cache
def gpu_of(device: int) -> Gpu:
    """The properties of a CUDA device."""
    properties = torch.cuda.get_device_properties(device)
    capability = (properties.major, properties.minor)
    return Gpu(properties.multi_processor_count, shared_memory(*capability), properties.major >= 9)


def shared_memory(major: int, minor: int) -> int:
    """Bytes of shared memory that a block may ask for (CUDA C++ Programming Guide, compute capabilities)."""
    if major in (9, 10, 11):
        return 227 * 1024
    return (163 if (major, minor) in ((8, 0), (8, 7)) else 99) * 1024


@cache
def configs(
    images: int, pixels: int, channels: int, groups: int, itemsize: int, packed: bool, gpu: Gpu
) -> tuple[Plan, ...]:
    """Every plan worth measuring for a size, the best guess first; ``packed``: rows start at 16-byte
    addresses.
    """
    clusters = list(_cluster_plans(images, pixels, channels, groups, itemsize, gpu)) if packed else []
    splits = list(_split_plans(images, pixels, channels, itemsize, packed, gpu))
    return tuple(dict.fromkeys(clusters + splits))


def plan(images: int, pixels: int, channels: int, groups: int, itemsize: int, packed: bool, gpu: Gpu) -> Plan:
    """The plan that is taken when nothing was measured."""
    return configs(images, pixels, channels, groups, itemsize, packed, gpu)[0]


def _cluster_plans(
    images: int, pixels: int, channels: int, groups: int, itemsize: int, gpu: Gpu
) -> Iterator[Plan]:
    """Plans of one launch that fit, those first that come closest to one block on every multiprocessor.

    Among equals wider columns win: rows of 32 bytes and more use whole sectors of memory.
    """
    per_group, pack = channels // groups, _PACK // itemsize
    aligned = pack // math.gcd(per_group, pack)  # so many groups begin and end at packs
    found: list[tuple[float, int, Plan]] = []
    for together in range(aligned, groups + 1, aligned):
        columns = together * per_group
        if groups % together or columns // pack > _MAX_THREADS:
            continue
        for parts in (1, 2, 4, 8) if gpu.clusters else (1,):
            rows = -(-pixels // parts)
            threads = _threads(columns // pack, rows)
            candidate = Plan("cluster", columns, parts, threads)
            if candidate.shared(pixels, per_group, itemsize) > gpu.shared or (parts > 1 and parts > pixels):
                continue
            blocks = images * (groups // together) * parts
            waves = math.ceil(blocks / gpu.multiprocessors) * gpu.multiprocessors / blocks
            narrow = max(1.0, 64 / (columns * itemsize))
            found.append((waves * narrow, -columns, candidate))
    found.sort(key=lambda entry: entry[:2])
    yield from (candidate for _, _, candidate in found[:4])


def _split_plans(
    images: int, pixels: int, channels: int, itemsize: int, packed: bool, gpu: Gpu
) -> Iterator[Plan]:
    """Plans of two launches: rows of at least 256 bytes, and four blocks for every multiprocessor."""
    pack = _PACK // itemsize if packed else 1
    for wanted in (256, 1024):
        columns = min(channels, wanted // itemsize // pack * pack)
        blocks = images * -(-channels // columns)
        threads = _threads(columns // pack, pixels)
        rows = threads // (columns // pack)
        parts = max(1, min(-(-4 * gpu.multiprocessors // blocks), -(-pixels // (4 * rows))))
        yield Plan("split" if packed else "scalar", columns, parts, threads)


def _threads(packs: int, rows: int) -> int:
    """A multiple of 32, nearly one of ``packs``: what the rows need, and at least four warps."""
    most = min(_MAX_THREADS, max(128, packs * rows))
    most = max(most, packs)
    return min(_MAX_THREADS, -(-(most // packs * packs) // 32) * 32)


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
    config: Plan | None = None,
) -> Tensor:
    """Group normalisation, then SiLU if asked for; :func:`fastdiff.kernels.reference.group_norm_silu`.

    ``x``: (N, …, C), fp16, bf16 or fp32, the last axis contiguous, the pixels of an image at one distance
    from each other. ``weight``, ``bias``: (C,) in the type of ``x`` or float32. Statistics are float32.
    ``out``: contiguous, allocated when None. Raises InputError for another layout than "NHWC", dtype or
    stride.
    """
    check_group_norm_silu(x, weight, bias, num_groups, layout)
    if layout != "NHWC":
        raise InputError(f"layout: found {layout!r}, wanted 'NHWC' in CUDA C++")
    if x.dtype not in _SUFFIX:
        raise InputError(f"x: found {x.dtype}, wanted float16, bfloat16 or float32")
    images, channels = x.shape[0], x.shape[-1]
    pixels = math.prod(x.shape[1:-1])
    pixel_stride, image_stride = _strides(x)
    if out is None:
        out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    elif out.shape != x.shape or out.dtype != x.dtype or not out.is_contiguous():
        raise InputError(
            f"out: found {out.dtype} {tuple(out.shape)}, wanted contiguous {x.dtype} {tuple(x.shape)}"
        )
    in_float, parameters = _parameters(x, weight, bias)
    if x.numel() == 0:
        return out
    device = x.device.index
    pack = _PACK // x.itemsize
    packed = (
        channels % pack == pixel_stride % pack == image_stride % pack == 0
        and x.data_ptr() % _PACK == out.data_ptr() % _PACK == 0
    )
    group = channels // num_groups
    chosen = config or plan(images, pixels, channels, num_groups, x.itemsize, packed, gpu_of(device))
    if chosen.kind != "scalar" and not packed:
        raise InputError(f"config: found {chosen.kind!r}, wanted 'scalar' for rows off 16-byte addresses")
    suffix, arch = _SUFFIX[x.dtype], architecture(device)
    affine = (*parameters, int(in_float), float(eps), int(silu))
    shape = (pixels, channels, group, chosen.columns, _int64(image_stride), _int64(pixel_stride))
    blocks = -(-channels // chosen.columns) * chosen.parts
    shared = chosen.shared(pixels, group, x.itemsize)
    if chosen.kind == "cluster":
        cluster = chosen.parts if chosen.parts > 1 else None
        run = kernel("group_norm_silu", f"group_norm_silu{suffix}", arch)
        launch(run, (blocks, images), chosen.threads, (x, *affine, out, *shape), shared, cluster)
        return out
    scalar = "_scalar" if chosen.kind == "scalar" else ""
    pieces = _pieces(channels, group, chosen.columns)
    parts = torch.empty((images, num_groups, pieces * chosen.parts, 3), dtype=torch.float32, device=x.device)
    first = kernel("group_norm_silu", f"group_norm_silu_moments{scalar}{suffix}", arch)
    second = kernel("group_norm_silu", f"group_norm_silu_apply{scalar}{suffix}", arch)
    grid = (blocks, images)
    launch(first, grid, chosen.threads, (x, parts, *shape, chosen.parts, pieces), shared)
    groups = (chosen.columns + group - 2) // group + 1
    arguments = (x, parts, *affine, out, *shape, chosen.parts, pieces)
    launch(second, grid, chosen.threads, arguments, _STATISTICS * groups)
    return out


def _strides(x: Tensor) -> tuple[int, int]:
    """The distances of pixels and of images in elements."""
    sizes, strides = x.shape[1:-1], x.stride()[1:-1]
    pixel = x.shape[-1]
    expected = None
    regular = x.stride(-1) == 1 or x.shape[-1] == 1
    for size, stride in zip(reversed(sizes), reversed(strides), strict=True):
        if size == 1:
            continue
        if expected is None:
            pixel = stride
        elif stride != expected:
            regular = False
        expected = stride * size
    if not regular:
        raise InputError(
            f"x: found strides {tuple(x.stride())} for shape {tuple(x.shape)}, wanted contiguous channels "
            "and evenly spaced pixels; pass x.contiguous()"
        )
    return pixel, x.stride(0)


def _parameters(
    x: Tensor, weight: Tensor | None, bias: Tensor | None
) -> tuple[bool, tuple[Tensor | None, Tensor | None]]:
    """Whether the parameters are float32 in place of x's type, and they themselves, contiguous."""
    given = [tensor for tensor in (weight, bias) if tensor is not None]
    types = {tensor.dtype for tensor in given}
    if not (types <= {x.dtype} or types <= {torch.float32}):
        found = " and ".join(str(tensor.dtype) for tensor in given)
        raise InputError(f"weight, bias: found {found}, wanted both {x.dtype} or both float32")
    weight, bias = (None if tensor is None else tensor.contiguous() for tensor in (weight, bias))
    return x.dtype != torch.float32 and types == {torch.float32}, (weight, bias)


def _pieces(channels: int, group: int, columns: int) -> int:
    """In how many blocks of columns a group lies at most."""
    return max(
        (end - 1) // columns - (end - group) // columns + 1 for end in range(group, channels + 1, group)
    )


def _int64(value: int) -> ctypes.c_int64:
    return ctypes.c_int64(value)
