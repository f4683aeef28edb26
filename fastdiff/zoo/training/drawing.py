"""Draw a scene as an anti-aliased sRGB picture.

Shapes are drawn as masks with eight by eight samples per pixel and composited back to front.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from fastdiff.zoo.training.scene import COLOURS, NEUTRALS, Background, Scene

__all__ = ["RING_HOLE", "draw", "shape_mask"]

SAMPLES = 8
RING_HOLE = 0.55
"""Radius of a ring's hole as a fraction of the ring's."""


def draw(scene: Scene, size: int = 64) -> NDArray[np.uint8]:
    """The picture of ``scene``, uint8 ``[size, size, 3]``, sRGB."""
    picture = _background(scene.background, size)
    for o in scene.drawing_order():
        alpha = shape_mask(o.shape, o.x * size, o.y * size, o.radius * size, size)[..., None]
        picture += alpha * (np.array(COLOURS[o.colour], np.float32) - picture)
    return (picture + 0.5).astype(np.uint8)


def shape_mask(shape: str, x: float, y: float, radius: float, size: int) -> NDArray[np.float32]:
    """Coverage of each pixel in 0..1, float32 ``[size, size]``; centre and radius in pixels."""
    x0, y0 = max(int(x - radius) - 1, 0), max(int(y - radius) - 1, 0)
    x1, y1 = min(int(x + radius) + 2, size), min(int(y + radius) + 2, size)
    mask = np.zeros((size, size), np.float32)
    if x1 <= x0 or y1 <= y0:
        return mask
    tile = Image.new("L", ((x1 - x0) * SAMPLES, (y1 - y0) * SAMPLES), 0)
    _fill(ImageDraw.Draw(tile), shape, (x - x0) * SAMPLES, (y - y0) * SAMPLES, radius * SAMPLES)
    mask[y0:y1, x0:x1] = np.asarray(tile.reduce(SAMPLES), np.float32) / 255
    return mask


def _fill(pen: ImageDraw.ImageDraw, shape: str, x: float, y: float, r: float) -> None:
    if shape in ("circle", "ring"):
        pen.ellipse((x - r, y - r, x + r, y + r), fill=255)
        if shape == "ring":
            hole = r * RING_HOLE
            pen.ellipse((x - hole, y - hole, x + hole, y + hole), fill=0)
    elif shape == "square":
        half = 0.88 * r
        pen.rectangle((x - half, y - half, x + half, y + half), fill=255)
    elif shape == "triangle":
        pen.polygon([(x, y - r), (x + r, y + 0.8 * r), (x - r, y + 0.8 * r)], fill=255)
    elif shape == "cross":
        arm = 0.32 * r
        pen.rectangle((x - arm, y - r, x + arm, y + r), fill=255)
        pen.rectangle((x - r, y - arm, x + r, y + arm), fill=255)
    elif shape == "star":
        radii = (1.08 * r, 0.45 * r)
        angles = [math.pi * k / 5 for k in range(10)]
        corners = [
            (x + radii[k % 2] * math.sin(t), y - radii[k % 2] * math.cos(t)) for k, t in enumerate(angles)
        ]
        pen.polygon(corners, fill=255)
    else:
        raise ValueError(f"unknown shape {shape!r}")


def _background(b: Background, size: int) -> NDArray[np.float32]:
    first, second = (np.array(NEUTRALS[name], np.float32) for name in (b.first, b.second))
    line = (np.arange(size, dtype=np.float32) + 0.5) / size
    if b.kind == "plain":
        weight = np.zeros((size, size), np.float32)
    elif b.kind == "gradient":
        weight = np.broadcast_to(line[None, :] if b.vertical else line[:, None], (size, size))
    else:
        band = np.floor(line / (b.period / 2) + b.phase) % 2
        if b.kind == "striped":
            weight = np.broadcast_to(band[None, :] if b.vertical else band[:, None], (size, size))
        else:
            weight = (band[None, :] + band[:, None]) % 2
    return np.asarray(first + weight[..., None] * (second - first), np.float32)
