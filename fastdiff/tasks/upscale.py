"""Pictures in another size before they are painted anew: of their pixels, or of their latents."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from fastdiff.arguments import number, show
from fastdiff.errors import InputError
from fastdiff.resample import LATENT_METHODS, interpolate

__all__ = ["METHODS", "check_method", "check_scale", "enlarged", "enlarged_latents", "scaled_side"]

Array = NDArray[np.float32]
_PIXELS = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}
_LARGEST = 2**20
"""Longest side of a picture, in pixels."""
METHODS = (*_PIXELS, *(f"latent_{name}" for name in LATENT_METHODS))
"""Filters of pixels, and those of latents, which cost no decoding and encoding."""


def check_method(method: object) -> str:
    """One of `METHODS`. Raises InputError."""
    if not isinstance(method, str) or method not in METHODS:
        raise InputError(f"method is {show(method)}: it must be one of {', '.join(METHODS)}")
    return method


def check_scale(scale: object) -> float:
    """A factor above 1. Raises InputError."""
    factor = number("scale", scale)
    if factor <= 1:
        raise InputError(f"scale is {factor:g}: it must be more than 1, such as 2")
    return factor


def scaled_side(side: int, scale: float, multiple: int) -> int:
    """The side times ``scale``, down to a ``multiple``. Raises InputError for more than Pillow can hold."""
    if side * scale > _LARGEST:
        raise InputError(
            f"scale is {scale:g}: a side of {side} pixels would be longer than {_LARGEST}; use a smaller one"
        )
    return max(int(side * scale) // multiple * multiple, multiple)


def enlarged(image: Any, height: int, width: int, method: str) -> Image.Image:
    """The picture by a filter of pixels."""
    resized: Image.Image = image.resize((width, height), _PIXELS[method])
    return resized


def enlarged_latents(latents: Array, height: int, width: int, method: str) -> Array:
    """The latents by a filter of latents, ``height`` and ``width`` in latent pixels."""
    return interpolate(latents, height, width, method.removeprefix("latent_"))
