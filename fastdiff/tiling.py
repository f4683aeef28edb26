"""A picture through the autoencoder in overlapping tiles, and when memory asks for it.

As diffusers' ``AutoencoderKL.enable_tiling``: tiles start every three quarters of their side, and in the
quarter that two share the earlier one fades linearly into the later. The mid-block of a VAE attends to the
whole of what it is given, so that tiles differ from the whole picture a little, in tone more than in detail.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from fastdiff.errors import InputError

if TYPE_CHECKING:
    from fastdiff.targets.session import Session

__all__ = ["TILES", "Way", "check_tile", "choose_way", "decoder_bytes", "tiled"]

Array = NDArray[np.float32]
TILES = (128, 96, 64, 48, 32)
"""Sides of tiles in latent pixels that the automatic choice tries, and of which "on" takes 64, as diffusers
for a VAE of Stable Diffusion 1.x."""
_ON = 64
_OVERLAP = 4
"""Of a tile's side, one part in so many is shared with the next tile."""
_SHARE = 0.8
"""Of the memory that is free, how much a decoder may plan with."""
_BYTES_PER_PIXEL, _DECODER_BYTES = 8192.0, 198e6
"""What PyTorch's decoder of Stable Diffusion 1.5 takes at its peak per picture pixel, and its weights in
fp32: for targets that do not know what they take. Activations grow with the square root of the weights."""


@dataclass(frozen=True)
class Way:
    """How a batch goes through the autoencoder.

    tile   side of a tile in latent pixels, None for whole pictures
    batch  pictures at once
    factor how many picture pixels a latent one covers
    """

    tile: int | None
    batch: int
    factor: int = 1

    @property
    def pixels(self) -> int | None:
        """Side of a tile in picture pixels."""
        return None if self.tile is None else self.tile * self.factor


def check_tile(value: object, factor: int) -> str | int:
    """``auto``, ``on``, ``off``, or a side of tiles in picture pixels. Raises InputError for another value.

    ``factor`` is how many picture pixels a latent one covers.
    """
    multiple, least = _OVERLAP * factor, 2 * _OVERLAP * factor
    wanted = f"auto, on, off, or a side in pixels from {least} on that is a multiple of {multiple}"
    if isinstance(value, str) and value in ("auto", "on", "off"):
        return value
    text = value.strip() if isinstance(value, str) else value
    if isinstance(text, str) and text.isdecimal():
        text = int(text)
    if isinstance(text, bool) or not isinstance(text, (int, np.integer)):
        raise InputError(f"tile is {value!r}: it must be {wanted}")
    if text < least or text % multiple:
        raise InputError(f"tile is {text}: it must be {wanted}")
    return int(text)


def choose_way(
    tile: str | int,
    factor: int,
    shape: tuple[int, int, int],
    needed: Callable[[int, int, int], int] | None,
    available: int | None,
) -> Way:
    """Tile and batch for ``shape``: pictures, latent height and width.

    ``needed`` gives the bytes for such a shape and ``available`` those that are free; without one of them
    "auto" tiles nothing. Otherwise it takes the pictures as they are if they fit, one after the other if they
    fit so, and else the largest tile that does.
    """
    batch, height, width = shape
    side = _ON if tile == "on" else tile // factor if isinstance(tile, int) else None
    if side is not None:
        return Way(side if max(height, width) > side else None, batch, factor)
    if tile == "off" or needed is None or available is None:
        return Way(None, batch, factor)
    room = _SHARE * available
    for count in dict.fromkeys((batch, 1)):
        if needed(count, height, width) <= room:
            return Way(None, count, factor)
    smaller = [side for side in TILES if side < max(height, width)]
    fitting = [side for side in smaller if needed(1, min(side, height), min(side, width)) <= room]
    chosen = fitting[0] if fitting else smaller[-1] if smaller else None
    return Way(chosen, 1, factor)


def tiled(
    run: Callable[[Array], tuple[Array, ...]], array: Array, tile: int, size_in: int, size_out: int
) -> tuple[Array, ...]:
    """``run`` on tiles of ``array`` [batch, channels, h, w], and its results put together.

    A latent pixel is ``size_in`` elements of the array and ``size_out`` of the results in each direction;
    ``tile`` counts latent pixels.
    """
    height, width = (side // size_in for side in array.shape[2:])
    step = tile - tile // _OVERLAP
    tops, lefts = range(0, height, step), range(0, width, step)
    results: list[Array] = []
    above: list[tuple[Array, ...]] = []
    for top in tops:
        row: list[tuple[Array, ...]] = []
        for left in lefts:
            parts = _one(run, array, (top, left), tile, size_in, size_out)
            for k, part in enumerate(parts):
                fade = tile // _OVERLAP * size_out
                if above:
                    _blend(above[len(row)][k], part, fade, axis=2)
                if row:
                    _blend(row[-1][k], part, fade, axis=3)
            row.append(parts)
        for k, first in enumerate(row[0]):
            if top == 0:
                results += [np.empty((*first.shape[:2], height * size_out, width * size_out), np.float32)]
            for left, parts in zip(lefts, row, strict=True):
                part = parts[k][:, :, : step * size_out, : step * size_out]
                y, x = top * size_out, left * size_out
                results[k][:, :, y : y + part.shape[2], x : x + part.shape[3]] = part
        above = row
    return tuple(results)


def _one(
    run: Callable[[Array], tuple[Array, ...]],
    array: Array,
    at: tuple[int, int],
    tile: int,
    size_in: int,
    size_out: int,
) -> tuple[Array, ...]:
    """The results of the tile at ``at``, in latent pixels. A rim of one pixel is computed with its neighbour,
    as modules take two and more.
    """
    begins, ends, extra = [], [], []
    for start, side in zip(at, array.shape[2:], strict=True):
        end = min(start + tile, side // size_in)
        begin = max(min(start, end - 2), 0)
        begins.append(begin * size_in)
        ends.append(end * size_in)
        extra.append((start - begin) * size_out)
    results = run(np.ascontiguousarray(array[:, :, begins[0] : ends[0], begins[1] : ends[1]]))
    return tuple(np.array(result[:, :, extra[0] :, extra[1] :]) for result in results)


def _blend(before: Array, after: Array, extent: int, axis: int) -> None:
    """Let the end of ``before`` fade into the beginning of ``after``, in place."""
    extent = min(before.shape[axis], after.shape[axis], extent)
    weight = (np.arange(extent, dtype=np.float32) / np.float32(extent)).reshape(-1, *(1,) * (3 - axis))
    end = np.take(before, range(before.shape[axis] - extent, before.shape[axis]), axis=axis)
    start = after[:, :, :extent] if axis == 2 else after[:, :, :, :extent]
    start[...] = end * (1 - weight) + start * weight


def decoder_bytes(session: Session, weights: int, factor: int) -> Callable[[int, int, int], int]:
    """The bytes that a session still needs for pictures, latent height and width, weights not counted.

    What the target plans where it does, less what it holds since an earlier call, and otherwise what PyTorch
    would need.
    """

    def needed(batch: int, height: int, width: int) -> int:
        planned = session.planned_bytes({"batch": batch, "height": height, "width": width})
        if planned is not None:
            return max(planned - session.held_bytes(), 0)
        per_pixel = _BYTES_PER_PIXEL * (weights / _DECODER_BYTES) ** 0.5
        return int(batch * height * width * factor**2 * per_pixel)

    return needed
