"""Pictures as arrays for the networks that they steer by."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

__all__ = ["clip_pixels", "pixels"]

_MEAN = np.array([0.48145466, 0.4578275, 0.40821073])
_DEVIATION = np.array([0.26862954, 0.26130258, 0.27577711])
"""Of the pictures that CLIP was trained on, by channel."""


def pixels(image: Image.Image, width: int, height: int, channels: int) -> NDArray[np.float32]:
    """[1, channels, height, width], 0 to 1, resized with Lanczos' filter; of 1 channel, grey.

    As diffusers' ``VaeImageProcessor`` does with the pictures of ControlNets.
    """
    resized = image.resize((width, height), Image.Resampling.LANCZOS)
    array = np.asarray(resized.convert("L" if channels == 1 else "RGB"), np.float32) / np.float32(255)
    array = array[..., None] if channels == 1 else array
    return np.ascontiguousarray(array.transpose(2, 0, 1)[None])


def clip_pixels(image: Image.Image, side: int) -> NDArray[np.float32]:
    """[1, 3, side, side] as CLIP's image encoder takes it: resized to the shorter side with a bicubic filter,
    the middle cut out, normalised by channel. As transformers' ``CLIPImageProcessor`` does.
    """
    image = image.convert("RGB")
    short, long = sorted(image.size)
    other = int(side * long / short)
    size = (side, other) if image.width <= image.height else (other, side)
    resized: Any = np.asarray(image.resize(size, Image.Resampling.BICUBIC))
    top, left = (resized.shape[0] - side) // 2, (resized.shape[1] - side) // 2
    cut = resized[top : top + side, left : left + side]
    scaled = (cut.astype(np.float64) * (1 / 255)).astype(np.float32)
    normal = (scaled - _MEAN.astype(np.float32)) / _DEVIATION.astype(np.float32)
    return np.ascontiguousarray(normal.transpose(2, 0, 1)[None], dtype=np.float32)
