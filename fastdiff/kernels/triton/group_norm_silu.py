"""Group normalisation with SiLU on the GPU, alone or after the additions that precede it in a U-Net.

Bytes: a picture of ``n`` elements of ``s`` bytes must be read once and written once, 2·n·s. Where a group's
pixels fit into a program's registers they are (``_one_pass``). Else they are read twice, 3·n·s, the second time
from the L2 cache where the picture fits into it: ``_statistics`` over chunks of pixels, ``_combine`` and
``_apply``. :func:`add_group_norm_silu` reads each addend once and writes the sum once more.

Statistics are float32 and taken around means, after Chan et al. 1983, "Algorithms for computing the sample
variance", with each mean kept as a pair (its rounding, what that is off by): a mean of 1e4 standard
deviations costs no digit of the result.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def _group_sums(values, CG: tl.constexpr, C_BLOCK: tl.constexpr, G_BLOCK: tl.constexpr):
    """(C_BLOCK,) to (G_BLOCK,): sums over the CG channels of each group."""
    member = (tl.arange(0, C_BLOCK) // CG)[:, None] == tl.arange(0, G_BLOCK)[None, :]
    return tl.sum(tl.where(member, values[:, None], 0.0), axis=0)


@triton.jit
def _per_channel(values, CG: tl.constexpr, C_BLOCK: tl.constexpr, G_BLOCK: tl.constexpr):
    """(G_BLOCK,) to (C_BLOCK,): each channel's group's value, 0 beyond the last group."""
    member = (tl.arange(0, C_BLOCK) // CG)[:, None] == tl.arange(0, G_BLOCK)[None, :]
    return tl.sum(tl.where(member, values[None, :], 0.0), axis=1)


@triton.jit
def _addends(bias, vector, sample, channels, valid, C: tl.constexpr):
    """What is added to all pixels of a sample, (C_BLOCK,) float32."""
    added = tl.zeros(channels.shape, tl.float32)
    if bias is not None:
        added += tl.load(bias + channels, valid, 0.0).to(tl.float32)
    if vector is not None:
        added += tl.load(vector + sample * C + channels, valid, 0.0).to(tl.float32)
    return added


@triton.jit
def _sum(x, residual, added, rows, channels, mask, x_stride, residual_stride):
    """A tile of the sum that is normalised, float32, rounded as it is or would be stored."""
    tile = tl.load(x + rows[:, None] * x_stride + channels[None, :], mask, 0.0)
    if added is None and residual is None:
        return tile.to(tl.float32)
    total = tile.to(tl.float32)
    if added is not None:
        total += added[None, :]
    if residual is not None:
        other = tl.load(residual + rows[:, None] * residual_stride + channels[None, :], mask, 0.0)
        total += other.to(tl.float32)
    return total.to(tile.dtype).to(tl.float32)
