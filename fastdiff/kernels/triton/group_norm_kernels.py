"""The device code of :mod:`fastdiff.kernels.triton.group_norm_silu`.

A program holds a tile of P_BLOCK pixels × C_BLOCK channels, of which the first PER·CG belong to its PER
groups of CG channels. Sums run over pixels first; a matrix of zeros and ones then adds up the channels of a
group, so that groups need not be powers of two.

Each mean is a pair (its rounding to float32, what that is off by), and partial results are joined as Chan et
al. 1983, "Algorithms for computing the sample variance", join them.
"""

from __future__ import annotations

import triton
import triton.language as tl

__all__ = ["SIZES", "apply", "combine", "one_pass", "statistics"]

SIZES = ["pixels", "chunk", "chunks"]
"""The run-time sizes, which the kernels are not specialised on."""


@triton.jit
def _group_sums(
    values: tl.tensor,
    CG: tl.constexpr,
    C_BLOCK: tl.constexpr,
    G_BLOCK: tl.constexpr,
) -> tl.tensor:
    """(C_BLOCK,) to (G_BLOCK,): sums over the CG channels of each group."""
    member = (tl.arange(0, C_BLOCK) // CG)[:, None] == tl.arange(0, G_BLOCK)[None, :]
    return tl.sum(tl.where(member, values[:, None], 0.0), axis=0)


@triton.jit
def _per_channel(
    values: tl.tensor,
    CG: tl.constexpr,
    C_BLOCK: tl.constexpr,
    G_BLOCK: tl.constexpr,
) -> tl.tensor:
    """(G_BLOCK,) to (C_BLOCK,): the value of each channel's group, 0 beyond the last group."""
    member = (tl.arange(0, C_BLOCK) // CG)[:, None] == tl.arange(0, G_BLOCK)[None, :]
    return tl.sum(tl.where(member, values[None, :], 0.0), axis=1)


@triton.jit
def _channel_sums(
    C_BLOCK: tl.constexpr,
    bias: tl.tensor,
    vector: tl.tensor,
    sample: tl.tensor,
    vector_stride: tl.tensor,
    channels: tl.tensor,
    valid: tl.tensor,
) -> tl.tensor:
    """What is added to every pixel of a sample: bias + vector, (C_BLOCK,) float32."""
    added = tl.zeros([C_BLOCK], tl.float32)
    if bias is not None:
        added += tl.load(bias + channels, valid, 0.0).to(tl.float32)
    if vector is not None:
        added += tl.load(vector + sample * vector_stride + channels, valid, 0.0).to(tl.float32)
    return added


@triton.jit
def _at(
    base: tl.tensor,
    stride: tl.tensor,
    origin: tl.tensor,
    pixel: tl.tensor,
    channels: tl.tensor,
) -> tl.tensor:
    """Pointers to a tile."""
    return base + origin * stride + (pixel[:, None] * stride + channels[None, :])


@triton.jit
def _tile(
    x: tl.tensor,
    x_stride: tl.tensor,
    residual: tl.tensor,
    residual_stride: tl.tensor,
    added: tl.tensor,
    ADD: tl.constexpr,
    origin: tl.tensor,
    pixel: tl.tensor,
    channels: tl.tensor,
    mask: tl.tensor,
) -> tl.tensor:
    """A float32 tile of the sum that is normalised, rounded as it is where it is stored.

    Its pixels are ``origin``, 64 bits, + ``pixel``, 32: what each thread computes for itself is short.
    """
    loaded = tl.load(_at(x, x_stride, origin, pixel, channels), mask, 0.0)
    tile = loaded.to(tl.float32)
    if ADD:
        tile += added[None, :]
    if residual is not None:
        other = tl.load(_at(residual, residual_stride, origin, pixel, channels), mask, 0.0)
        tile += other.to(tl.float32)
    return tile.to(loaded.dtype).to(tl.float32)


@triton.jit
def _normalised(
    tile: tl.tensor,
    high: tl.tensor,
    low: tl.tensor,
    rstd: tl.tensor,
    weight: tl.tensor,
    norm_bias: tl.tensor,
    channels: tl.tensor,
    valid: tl.tensor,
    SILU: tl.constexpr,
) -> tl.tensor:
    """A tile after the norm, with the statistics of each channel's group, and SiLU."""
    if weight is not None:
        rstd = rstd * tl.load(weight + channels, valid, 0.0).to(tl.float32)
    y = ((tile - high[None, :]) - low[None, :]) * rstd[None, :]
    if norm_bias is not None:
        y += tl.load(norm_bias + channels, valid, 0.0).to(tl.float32)[None, :]
    if SILU:
        y = y * tl.sigmoid(y)
    return y


@triton.jit(do_not_specialize=SIZES)
def one_pass(
    x: tl.tensor,
    bias: tl.tensor,
    vector: tl.tensor,
    residual: tl.tensor,
    weight: tl.tensor,
    norm_bias: tl.tensor,
    total: tl.tensor,
    y: tl.tensor,
    pixels: tl.tensor,
    x_stride: tl.tensor,
    vector_stride: tl.tensor,
    residual_stride: tl.tensor,
    total_stride: tl.tensor,
    y_stride: tl.tensor,
    eps: tl.tensor,
    C: tl.constexpr,
    CG: tl.constexpr,
    PER: tl.constexpr,
    SILU: tl.constexpr,
    P_BLOCK: tl.constexpr,
    C_BLOCK: tl.constexpr,
    G_BLOCK: tl.constexpr,
) -> None:
    """All pixels of PER groups of one sample, read once. Grid: (blocks of groups, samples)."""
    sample = tl.program_id(1).to(tl.int64)
    channel = tl.arange(0, C_BLOCK)
    channels = tl.program_id(0) * (PER * CG) + channel
    valid = (channel < PER * CG) & (channels < C)
    pixel = tl.arange(0, P_BLOCK)
    origin = sample * pixels
    mask = (pixel < pixels)[:, None] & valid[None, :]
    added = _channel_sums(C_BLOCK, bias, vector, sample, vector_stride, channels, valid)
    ADD: tl.constexpr = bias is not None or vector is not None
    tile = _tile(x, x_stride, residual, residual_stride, added, ADD, origin, pixel, channels, mask)
    if total is not None:
        at = _at(total, total_stride, origin, pixel, channels)
        tl.store(at, tile.to(total.dtype.element_ty), mask)

    count = pixels.to(tl.float32) * CG
    # Where something was added, what lies beyond the picture is no longer 0.
    mean = _group_sums(tl.sum(tl.where(mask, tile, 0.0), axis=0), CG, C_BLOCK, G_BLOCK) / count
    centred = tl.where(mask, tile - _per_channel(mean, CG, C_BLOCK, G_BLOCK)[None, :], 0.0)
    if x.dtype.element_ty == tl.float32:
        # The mean's own rounding shows only in inputs that are as fine as float32.
        low = _group_sums(tl.sum(centred, axis=0), CG, C_BLOCK, G_BLOCK) / count
        centred = tl.where(mask, centred - _per_channel(low, CG, C_BLOCK, G_BLOCK)[None, :], 0.0)
    variance = _group_sums(tl.sum(centred * centred, axis=0), CG, C_BLOCK, G_BLOCK) / count
    rstd = _per_channel(tl.div_rn(1.0, tl.sqrt_rn(variance + eps)), CG, C_BLOCK, G_BLOCK)
    zero = tl.zeros([C_BLOCK], tl.float32)
    result = _normalised(centred, zero, zero, rstd, weight, norm_bias, channels, valid, SILU)
    tl.store(_at(y, y_stride, origin, pixel, channels), result.to(y.dtype.element_ty), mask)


@triton.jit(do_not_specialize=SIZES)
def statistics(
    x: tl.tensor,
    bias: tl.tensor,
    vector: tl.tensor,
    residual: tl.tensor,
    total: tl.tensor,
    partial: tl.tensor,
    pixels: tl.tensor,
    chunk: tl.tensor,
    x_stride: tl.tensor,
    vector_stride: tl.tensor,
    residual_stride: tl.tensor,
    total_stride: tl.tensor,
    C: tl.constexpr,
    CG: tl.constexpr,
    PER: tl.constexpr,
    P_BLOCK: tl.constexpr,
    C_BLOCK: tl.constexpr,
    G_BLOCK: tl.constexpr,
) -> None:
    """Mean and sum of squares around it of ``chunk`` pixels of PER groups.

    ``partial``: (samples, chunks, 3, groups) of the mean's two parts and the sum of squares. Each element of
    the tile runs Welford's recurrence (1962) over its pixels; they are joined at the end. ``chunk`` is a
    multiple of P_BLOCK. Grid: (chunks, blocks of groups, samples).
    """
    sample = tl.program_id(2).to(tl.int64)
    channel = tl.arange(0, C_BLOCK)
    channels = tl.program_id(1) * (PER * CG) + channel
    valid = (channel < PER * CG) & (channels < C)
    added = _channel_sums(C_BLOCK, bias, vector, sample, vector_stride, channels, valid)
    ADD: tl.constexpr = bias is not None or vector is not None
    first = tl.program_id(0) * chunk
    length = tl.minimum(chunk, pixels - first)
    origin = sample * pixels + first
    pixel = tl.arange(0, P_BLOCK)
    mean = tl.zeros([P_BLOCK, C_BLOCK], tl.float32)
    squares = tl.zeros([P_BLOCK, C_BLOCK], tl.float32)
    seen = 0.0
    mask = valid[None, :]
    whole = length // P_BLOCK * P_BLOCK
    for start in range(0, whole, P_BLOCK):
        here = origin + start
        tile = _tile(x, x_stride, residual, residual_stride, added, ADD, here, pixel, channels, mask)
        if total is not None:
            at = _at(total, total_stride, here, pixel, channels)
            tl.store(at, tile.to(total.dtype.element_ty), mask)
        seen += 1.0
        off = tile - mean
        mean += off * (1.0 / seen)
        squares += off * (tile - mean)
    if whole < length:  # in the last chunk of a picture
        last = origin + whole
        inside = (pixel < length - whole)[:, None]
        both = inside & valid[None, :]
        rest = _tile(x, x_stride, residual, residual_stride, added, ADD, last, pixel, channels, both)
        if total is not None:
            to = _at(total, total_stride, last, pixel, channels)
            tl.store(to, rest.to(total.dtype.element_ty), both)
        change = tl.where(inside, rest - mean, 0.0)
        mean += change * (1.0 / (seen + 1.0))
        squares += tl.where(inside, change * (rest - mean), 0.0)

    # How many pixels each row of the tile has seen.
    counts = ((length - pixel + P_BLOCK - 1) // P_BLOCK).to(tl.float32)[:, None]
    scale = 1.0 / (length.to(tl.float32) * CG)
    high = _group_sums(tl.sum(counts * mean, axis=0), CG, C_BLOCK, G_BLOCK) * scale
    mean -= _per_channel(high, CG, C_BLOCK, G_BLOCK)[None, :]
    low = _group_sums(tl.sum(counts * mean, axis=0), CG, C_BLOCK, G_BLOCK) * scale
    mean -= _per_channel(low, CG, C_BLOCK, G_BLOCK)[None, :]
    within = _group_sums(tl.sum(squares + counts * mean * mean, axis=0), CG, C_BLOCK, G_BLOCK)

    GROUPS: tl.constexpr = C // CG
    group = tl.program_id(1) * PER + tl.arange(0, G_BLOCK)
    mine = (tl.arange(0, G_BLOCK) < PER) & (group < GROUPS)
    slot = partial + (sample * tl.num_programs(0) + tl.program_id(0)) * (3 * GROUPS) + group
    tl.store(slot, high, mine)
    tl.store(slot + GROUPS, low, mine)
    tl.store(slot + 2 * GROUPS, within, mine)


@triton.jit(do_not_specialize=SIZES)
def combine(
    partial: tl.tensor,
    moments: tl.tensor,
    pixels: tl.tensor,
    chunk: tl.tensor,
    chunks: tl.tensor,
    eps: tl.tensor,
    C: tl.constexpr,
    CG: tl.constexpr,
    CHUNK_BLOCK: tl.constexpr,
    G_BLOCK: tl.constexpr,
) -> None:
    """Join the chunks' statistics. Grid: (blocks of G_BLOCK groups, samples).

    ``moments``: (samples, 3, groups) of the mean's two parts and 1 / sqrt(variance + eps).
    """
    GROUPS: tl.constexpr = C // CG
    sample = tl.program_id(1).to(tl.int64)
    group = tl.program_id(0) * G_BLOCK + tl.arange(0, G_BLOCK)
    index = tl.arange(0, CHUNK_BLOCK)
    mine = group < GROUPS
    mask = (index < chunks)[:, None] & mine[None, :]
    at = partial + (sample * chunks + index)[:, None] * (3 * GROUPS) + group[None, :]
    base = tl.load(partial + sample * chunks * (3 * GROUPS) + group, mine, 0.0)
    high = tl.load(at, mask, 0.0)
    low = tl.load(at + GROUPS, mask, 0.0)
    within = tl.load(at + 2 * GROUPS, mask, 0.0)
    # As float32 only after the last product of integers: 2^31 elements per group and more are allowed.
    counts = tl.minimum(chunk, pixels - index * chunk).to(tl.float32)[:, None] * CG
    total = pixels.to(tl.float32) * CG
    off = tl.where(mask, (high - base[None, :]) + low, 0.0)
    mean = tl.sum(tl.where(mask, counts * off, 0.0), axis=0) / total
    around = off - mean[None, :]
    variance = tl.sum(tl.where(mask, within + counts * around * around, 0.0), axis=0) / total
    to = moments + sample * (3 * GROUPS) + group
    tl.store(to, base, mine)
    tl.store(to + GROUPS, mean, mine)
    tl.store(to + 2 * GROUPS, tl.div_rn(1.0, tl.sqrt_rn(variance + eps)), mine)


@triton.jit(do_not_specialize=SIZES)
def apply(
    x: tl.tensor,
    bias: tl.tensor,
    vector: tl.tensor,
    residual: tl.tensor,
    moments: tl.tensor,
    weight: tl.tensor,
    norm_bias: tl.tensor,
    y: tl.tensor,
    pixels: tl.tensor,
    x_stride: tl.tensor,
    vector_stride: tl.tensor,
    residual_stride: tl.tensor,
    y_stride: tl.tensor,
    C: tl.constexpr,
    CG: tl.constexpr,
    SILU: tl.constexpr,
    P_BLOCK: tl.constexpr,
    C_BLOCK: tl.constexpr,
) -> None:
    """Normalise one tile with its groups' ``moments``. Grid: (blocks of pixels, of channels, samples)."""
    GROUPS: tl.constexpr = C // CG
    sample = tl.program_id(2).to(tl.int64)
    channels = tl.program_id(1) * C_BLOCK + tl.arange(0, C_BLOCK)
    valid = channels < C
    pixel = tl.arange(0, P_BLOCK)
    first = tl.program_id(0) * P_BLOCK
    origin = sample * pixels + first
    mask = (pixel < pixels - first)[:, None] & valid[None, :]
    added = _channel_sums(C_BLOCK, bias, vector, sample, vector_stride, channels, valid)
    ADD: tl.constexpr = bias is not None or vector is not None
    tile = _tile(x, x_stride, residual, residual_stride, added, ADD, origin, pixel, channels, mask)
    at = moments + sample * (3 * GROUPS) + channels // CG
    high = tl.load(at, valid, 0.0)
    low = tl.load(at + GROUPS, valid, 0.0)
    rstd = tl.load(at + 2 * GROUPS, valid, 0.0)
    result = _normalised(tile, high, low, rstd, weight, norm_bias, channels, valid, SILU)
    tl.store(_at(y, y_stride, origin, pixel, channels), result.to(y.dtype.element_ty), mask)
