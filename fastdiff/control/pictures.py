"""Pictures that a call is given: read, with what identifies them, and made arrays for a network."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from fastdiff.errors import InputError

__all__ = ["Picture", "clip_pixels", "pixels", "read_picture"]

_MEAN = np.array([0.48145466, 0.4578275, 0.40821073])
_DEVIATION = np.array([0.26862954, 0.26130258, 0.27577711])
"""Of the pictures that CLIP was trained on, by channel."""


@dataclass(frozen=True)
class Picture:
    """A picture; the file that it came from, if it did, and the SHA-256 of that file or of the pixels."""

    image: Image.Image
    file: str | None
    sha256: str

    def record(self) -> dict[str, str]:
        """What a picture's metadata says of it."""
        return {**({} if self.file is None else {"file": self.file}), "sha256": self.sha256}


def read_picture(name: str, value: object) -> Picture:
    """The picture that an argument called ``name`` gives: a file's name, a Pillow image, or an array of uint8
    [height, width, 3]. Raises InputError.
    """
    if isinstance(value, (str, os.PathLike)):
        return _read_file(name, Path(value))
    if isinstance(value, np.ndarray):
        if value.dtype != np.uint8 or value.ndim != 3 or value.shape[2] != 3 or not value.size:
            raise InputError(
                f"{name} is an array {value.dtype} {list(value.shape)}: it must be uint8 [height, width, 3]"
            )
        value = Image.fromarray(np.ascontiguousarray(value))
    if not isinstance(value, Image.Image):
        raise InputError(
            f"{name} is of type {type(value).__name__}: it must be a file's name, a Pillow image or an array"
        )
    if not min(value.size):
        raise InputError(f"{name} is a picture of {value.width} x {value.height} pixels: give one with some")
    digest = hashlib.sha256(f"{value.mode} {value.size} ".encode() + value.tobytes())
    return Picture(value, None, digest.hexdigest())


def _read_file(name: str, path: Path) -> Picture:
    if not path.is_file():
        found = "is a folder" if path.is_dir() else "does not exist"
        raise InputError(f"{name}: {path} {found}: give a picture's file")
    try:
        with Image.open(path) as opened:
            image = ImageOps.exif_transpose(opened)
            image.load()
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        reason = " ".join(str(error).split())[:120]
        raise InputError(f"{name}: {path} cannot be read as a picture ({reason}): give another") from error
    return Picture(image, os.fspath(path), digest)


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
