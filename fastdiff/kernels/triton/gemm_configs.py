"""Tilings of matrix products for tensor cores, shared by ``linear`` and ``conv2d``."""

from __future__ import annotations

import torch
import triton

from fastdiff.kernels.triton.aot import shared_limit
from fastdiff.kernels.triton.launch import Config

__all__ = ["gemm_configs"]

# Multiprocessors of the largest GPU of a compute capability.
_PROCESSORS = {80: 108, 86: 84, 89: 128, 90: 132, 100: 148, 120: 170}

# BLOCK_M, BLOCK_N, warps, stages, and the share of the tensor cores' peak that a full GPU of such tiles may
# reach, roughly: what orders the candidates, until they are measured.
_TILES = (
    (128, 256, 8, 3, 1.0),
    (128, 128, 8, 4, 0.9),
    (128, 64, 4, 4, 0.75),
    (64, 128, 4, 4, 0.7),
    (64, 64, 4, 4, 0.5),
    (32, 64, 4, 5, 0.3),
    (16, 64, 4, 5, 0.18),
)
_NARROW_TILES = ((128, 16, 4, 4, 0.3), (64, 16, 4, 4, 0.2))  # for a picture's few channels
_FLOAT32_TILES = ((64, 64, 8, 2, 1.0), (32, 64, 4, 2, 0.8), (16, 32, 4, 2, 0.4))
_SPARE = 1024  # bytes of shared memory that barriers and the like may take


def gemm_configs(
    rows: int, columns: int, k_block: int, dtype: torch.dtype, arch: int, factors: int = 1
) -> tuple[Config, ...]:
    """Tilings for ``rows`` × ``columns`` results, those that seem fastest first.

    ``k_block``: terms of the sum per step; ``factors``: 2 where each program multiplies its rows by two
    tiles of weights. The estimate is waves of programs × work per program / the tile's share of the peak.
    """
    half = dtype != torch.float32
    size = 2 if half else 4
    processors = _PROCESSORS.get(arch, 132)
    found = []
    tiles = (*_TILES, *(_NARROW_TILES if columns <= 32 else ())) if half else _FLOAT32_TILES
    for m, n, warps, stages, share in tiles:
        if factors * n > 256 or (arch not in (90, 100) and m * n * factors > 128 * 128):
            continue
        step = (m + factors * n) * k_block * size
        stages = min(stages, (shared_limit(arch) - _SPARE) // step)
        if stages < 2:
            continue
        programs = triton.cdiv(rows, m) * triton.cdiv(columns, n)
        cost = triton.cdiv(programs, processors) * m * n / share
        found.append((cost, Config.of(warps, stages, BLOCK_M=m, BLOCK_N=n, BLOCK_K=k_block, GROUP=8)))
    return tuple(config for _, config in sorted(found, key=lambda pair: pair[0]))
