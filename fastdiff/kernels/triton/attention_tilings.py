"""How the Triton attention cuts heads, queries and keys, by head size, lengths, dtype and GPU."""

from __future__ import annotations

import torch
import triton

from fastdiff.errors import InputError
from fastdiff.kernels.triton.launch import Config

__all__ = ["WIDEST", "configs", "pieces"]

WIDEST = 256
"""The widest head, of keys or of values, that a program holds at once."""


def pieces(size: int) -> tuple[int, int]:
    """The powers of two that a head is computed in, the second 0 where one is not wider than both."""
    one = max(16, triton.next_power_of_2(size))
    first = one // 2
    second = max(16, triton.next_power_of_2(max(1, size - first)))
    return (first, second) if first >= 16 and first + second < one else (one, 0)


def _parts(size: int, most: int) -> tuple[int, int]:
    """As :func:`pieces`, or for a head over WIDEST one part of it, computed one after the other."""
    if size <= WIDEST:
        return pieces(size)
    part = min(most, size & -size)
    if part < 16:
        raise InputError(f"head size: found {size}, wanted up to {WIDEST} or a multiple of 16")
    return part, 0


def configs(
    size: int, value_size: int, queries: int, keys: int, dtype: torch.dtype, arch: int
) -> tuple[Config, ...]:
    """Tilings worth measuring, the default first.

    Heads of 32 to 160 fill a block of 128 queries on GPUs whose tensor cores read shared memory (9.0, 10.0),
    and of 64 on the others, whose registers hold the queries too. The few keys of a prompt need no pipeline.
    """
    widest = max(size, value_size)
    roomy = arch // 10 in (9, 10)
    d0, d1 = _parts(size, 64)
    e0, e1 = _parts(value_size, 256)
    if dtype == torch.float32:
        shapes = [(32, 32, 4, 1)]
        e0 = min(e0, 128) if value_size > WIDEST else e0
    elif widest > WIDEST:
        shapes = [(64, 64, 8, 2), (64, 32, 8, 2)]
    elif keys <= 128:
        shapes = [(64, 32, 4, 2), (64, 64, 4, 2), (128, 32, 4, 2)]
        if arch // 10 == 10:  # where the first one spills for heads of 64
            shapes = shapes[1:]
    elif widest > 160:
        shapes = [(64, 32, 8, 1)]
    elif roomy:
        large = [(128, 64, 8, 3 if widest <= 128 else 2), (128, 64, 8, 2), (128, 64, 4, 3), (128, 128, 8, 2)]
        small = [(64, 64, 4, 2), (64, 64, 4, 3), (64, 32, 4, 3)]
        shapes = [*small, *large] if queries <= 256 else [*large, *small]
    elif widest <= 96:
        shapes = [(64, 64, 4, 2), (128, 64, 4, 2), (128, 64, 8, 2), (64, 32, 4, 3)]
    else:
        shapes = [(64, 32, 4, 2), (128, 32, 8, 2), (64, 64, 4, 2)]
    tilings = [
        Config.of(warps, stages, BLOCK_M=m, BLOCK_N=n, D0=d0, D1=d1, E0=e0, E1=e1)
        for m, n, warps, stages in dict.fromkeys(shapes)
    ]
    if roomy and (d1 or e1) and widest <= 128:  # one product instead of two, of which part is padding
        one0, one1 = (max(16, triton.next_power_of_2(part)) for part in (size, value_size))
        m, n, warps, stages = shapes[0]
        tilings.append(Config.of(warps, stages, BLOCK_M=m, BLOCK_N=n, D0=one0, D1=0, E0=one1, E1=0))
    if arch // 10 == 9 and size == value_size == 512 and dtype != torch.float32:
        # All 512 columns of 128 queries in shared memory, the values in two halves: 224 KiB.
        tilings.insert(0, Config.of(8, 2, BLOCK_M=128, BLOCK_N=32, D0=512, D1=0, E0=256, E1=0))
    return tuple(tilings)
