"""Pictures that a call is given: files, PIL images and arrays, as the RGB picture or mask that is meant."""

from __future__ import annotations

import hashlib
import io
import os
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from fastdiff.errors import InputError

__all__ = ["FITS", "Picture", "fitted", "read_mask", "read_picture", "to_sample"]

FITS = ("exact", "resize", "crop", "fill")
"""What is done with a picture of another size than the one wanted: refuse it; change its aspect; enlarge or
shrink until the size is covered and cut off what stands out; until it fits, and stretch its rim."""


@dataclass(frozen=True)
class Picture:
    """A picture of 8 bits, RGB or, for a mask, L. ``source`` names it: ``{"sha256": …, "of": …, "size": …}``
    with the hash of the file, or of the pixels as the caller gave them. ``file`` is the path, if it was one.
    """

    image: Image.Image
    source: dict[str, Any]
    file: str | None = None


def read_picture(given: object, name: str = "image") -> Picture:
    """A path, a PIL image or an array as RGB, turned as its EXIF orientation says.

    Arrays are [height, width], [height, width, 1, 3 or 4]: integers of 8 or 16 bits, or floats from 0 to 1.
    16 bits are rounded to 8. Transparent parts are laid on white. Raises InputError for what is no picture.
    """
    return _read(given, name, "white", "RGB")


def read_mask(given: object, name: str = "mask") -> Picture:
    """A mask as shades of grey: white is painted anew, black stays. What is transparent stays.

    Otherwise as `read_picture`.
    """
    return _read(given, name, "black", "L")


def fitted(picture: Image.Image, height: int, width: int, fit: str, name: str = "image") -> Image.Image:
    """The picture in the size asked for, by one of `FITS`; Lanczos is the filter.

    Raises InputError for "exact" and another size, and for a name that is none of these.
    """
    if fit not in FITS:
        raise InputError(f"fit is {fit!r}: it must be one of {', '.join(FITS)}")
    if picture.size == (width, height):
        return picture
    if fit == "exact":
        raise InputError(
            f"{name} is {picture.height} x {picture.width} (height x width), wanted {height} x {width}: "
            "resize it, or set fit to resize, crop or fill"
        )
    if fit == "resize":
        return picture.resize((width, height), Image.Resampling.LANCZOS)
    return _scaled(picture, height, width, covers=fit == "crop")


def to_sample(image: Image.Image) -> NDArray[np.float32]:
    """The picture as the VAE takes it: float32 [1, channels, height, width] from −1 to 1."""
    pixels = np.asarray(image, dtype=np.float32) / np.float32(255)
    if pixels.ndim == 2:
        pixels = pixels[..., None]
    return np.ascontiguousarray(2 * pixels.transpose(2, 0, 1)[None] - 1, dtype=np.float32)


def _scaled(picture: Image.Image, height: int, width: int, *, covers: bool) -> Image.Image:
    """In the middle of a picture of the wanted size, covering it or within it, its rim stretched outwards."""
    wider = picture.width * height > width * picture.height
    if wider == covers:  # as high as wanted
        inner = (picture.width * height // picture.height, height)
    else:
        inner = (width, picture.height * width // picture.width)
    inner = (max(inner[0], 1), max(inner[1], 1))
    small = picture.resize(inner, Image.Resampling.LANCZOS)
    left, top = width // 2 - inner[0] // 2, height // 2 - inner[1] // 2
    result = Image.new(picture.mode, (width, height))
    result.paste(small, (left, top))
    if top > 0:
        for edge, at in ((0, 0), (inner[1], top + inner[1])):
            result.paste(small.resize((width, top), box=(0, edge, width, edge)), (0, at))
    if left > 0:
        for edge, at in ((0, 0), (inner[0], left + inner[0])):
            result.paste(small.resize((left, height), box=(edge, 0, edge, height)), (at, 0))
    return result


def _read(given: object, name: str, background: str, mode: str) -> Picture:
    """The picture in ``mode``, what is transparent laid on ``background``."""
    image, source = _opened(given, name)
    if image.mode in ("LAB", "HSV"):  # which Pillow turns to nothing but RGB
        image = image.convert("RGB")
    if _is_transparent(image):
        layer = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", layer.size, background), layer)
    file = os.fspath(given) if isinstance(given, (str, os.PathLike)) else None
    return Picture(image.convert(mode), source, file)


def _opened(given: object, name: str) -> tuple[Image.Image, dict[str, Any]]:
    """The upright picture with 8 bits per channel, and its source."""
    if isinstance(given, (str, os.PathLike)):
        content = _content(Path(given), name)
        image = _decoded(content, f"{name} {os.fspath(given)}")
        digest, kind = hashlib.sha256(content).hexdigest(), "file"
    else:
        if isinstance(given, Image.Image):
            image = given
        elif isinstance(given, np.ndarray):
            image = _from_array(given, name)
        else:
            raise InputError(
                f"{name} is of type {type(given).__name__}: it must be a path, a PIL image or a NumPy array"
            )
        try:
            pixels = f"{image.mode} {image.size} ".encode() + image.tobytes()
            digest = hashlib.sha256(pixels).hexdigest()
        except (OSError, SyntaxError, ValueError) as error:
            raise InputError(f"{name} is damaged ({error}): give another picture") from error
        kind = "pixels"
    if 0 in image.size:
        raise InputError(f"{name} has no pixels ({image.width} x {image.height}): give a picture")
    upright = ImageOps.exif_transpose(image)
    return _eight_bits(upright, name), {"sha256": digest, "of": kind, "size": list(upright.size)}


def _content(path: Path, name: str) -> bytes:
    try:
        if path.is_char_device() or path.is_block_device():
            raise InputError(f"{name} {str(path)!r} is a device: give the path of a picture")
        return path.read_bytes()
    except OSError as error:
        raise InputError(
            f"{name} {str(path)!r} cannot be read ({error.strerror or error}): give the path of a picture"
        ) from error
    except ValueError as error:  # a null byte in the path
        raise InputError(f"{name} is no path ({error}): give the path of a picture") from error


def _decoded(content: bytes, named: str) -> Image.Image:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            image = Image.open(io.BytesIO(content))
            image.load()
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise InputError(f"{named} is too large ({error}): give a smaller picture") from error
    except UnidentifiedImageError as error:
        raise InputError(f"{named} is no picture of a known format: give a PNG or JPEG file") from error
    except MemoryError:
        raise
    except Exception as error:  # what a decoder of Pillow's raises for damaged data is up to its format
        why = " ".join(str(error).split())
        raise InputError(f"{named} is damaged ({why}): give another picture") from error
    return image


def _from_array(array: NDArray[Any], name: str) -> Image.Image:
    channels = array.shape[2] if array.ndim == 3 else 1
    if array.ndim not in (2, 3) or channels not in (1, 3, 4):
        raise InputError(
            f"{name} has shape {list(array.shape)}: it must be [height, width] or [height, width, 1, 3 or 4]"
        )
    if array.ndim == 3 and channels == 1:
        array = array[..., 0]
    if array.dtype.kind == "f":
        if not np.isfinite(array).all():
            raise InputError(f"{name} holds NaN or infinity: give finite numbers from 0 to 1")
        if array.size and (array.min() < 0 or array.max() > 1):
            raise InputError(
                f"{name} holds floats from {array.min():g} to {array.max():g}: they must be from 0 to 1"
            )
        array = (array.astype(np.float64) * 255).round().astype(np.uint8)
    elif array.dtype == np.uint16:
        array = _rounded(array)
    elif array.dtype == np.bool_:
        array = array.astype(np.uint8) * np.uint8(255)
    elif array.dtype != np.uint8:
        raise InputError(f"{name} has dtype {array.dtype}: it must be uint8, uint16, bool or a float")
    return Image.fromarray(np.ascontiguousarray(array))


def _eight_bits(image: Image.Image, name: str) -> Image.Image:
    """A picture of 16 or 32 bits in shades of grey with 8; others as they are."""
    if image.mode.startswith("I"):
        shades = np.asarray(image).astype(np.int64)
        if shades.min() < 0 or shades.max() > 65535:
            raise InputError(
                f"{name} has values from {shades.min()} to {shades.max()}: they must be from 0 to 65535"
            )
        return Image.fromarray(_rounded(shades))
    if image.mode == "F":
        raise InputError(f"{name} has pixels of floats without a range: give 8 or 16 bits per channel")
    return image


def _rounded(shades: NDArray[Any]) -> NDArray[np.uint8]:
    return (shades / 257).round().astype(np.uint8)


def _is_transparent(image: Image.Image) -> bool:
    return image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info
