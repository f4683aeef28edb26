"""Arrays to pictures, pictures to PNG files that know how they were made, and contact sheets."""

from __future__ import annotations

import errno
import json
import os
import secrets
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, PngImagePlugin

from fastdiff.errors import InputError, OutputError

__all__ = ["check_output", "contact_sheet", "numbered", "read_metadata", "to_images", "write_png"]

_KEY = "fastdiff"
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def to_images(sample: NDArray[np.float32]) -> list[Image.Image]:
    """The VAE's output [N, 3, H, W], nominally in -1..1, as N pictures of 8 bits per channel, or grey.

    The arithmetic is that of diffusers' ``VaeImageProcessor``: to 0..1 in float32, clamped, times 255,
    rounded half to even. Raises InputError for another shape or for values that are not numbers.
    """
    if sample.ndim != 4 or sample.shape[1] not in (1, 3):
        raise InputError(
            f"pictures have shape {list(sample.shape)}: it must be [N, 3, height, width] or 1 channel"
        )
    if not np.isfinite(sample).all():
        raise InputError("pictures hold NaN or infinity: they cannot be shown")
    scaled = np.clip(sample * np.float32(0.5) + np.float32(0.5), 0, 1) * np.float32(255)
    pixels = np.ascontiguousarray(scaled.round().astype(np.uint8).transpose(0, 2, 3, 1))
    return [Image.fromarray(picture[:, :, 0] if picture.shape[2] == 1 else picture) for picture in pixels]


def check_output(path: str | os.PathLike[str]) -> Path:
    """``path`` if a PNG can be written there. Raises OutputError; replacing a file is fine."""
    path = Path(path)
    if path.suffix.lower() != ".png":
        better = path.with_suffix(".png") if path.name else "out.png"
        raise OutputError(f"{path}: pictures are written as PNG; use {better}")
    folder = path.parent
    if path.is_dir():
        raise OutputError(f"{path} is a folder: give the name of a PNG file, such as {path / 'out.png'}")
    if path.exists() and not path.is_file():
        raise OutputError(f"{path} is not a regular file: give the name of a PNG file")
    if folder.exists() and not folder.is_dir():
        raise OutputError(f"{path}: {folder} is a file, wanted a folder; give another name")
    if not folder.is_dir():
        raise OutputError(f"{path}: folder {folder} does not exist; create it first")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise OutputError(f"{path}: folder {folder} cannot be written; change its permissions or use another")
    return path


def numbered(path: str | os.PathLike[str], count: int) -> list[Path]:
    """File names of ``count`` pictures: ``out.png`` for one, ``out-1.png``, ``out-2.png`` … for several.

    Raises OutputError as ``check_output`` does, before anything is computed.
    """
    path = check_output(path)
    if count == 1:
        return [path]
    return [check_output(path.with_stem(f"{path.stem}-{number}")) for number in range(1, count + 1)]


def write_png(path: str | os.PathLike[str], image: Image.Image, metadata: Mapping[str, Any]) -> Path:
    """Write a PNG file with ``metadata`` (JSON values) inside, atomically; returns its path.

    The file appears under its name when it is complete and flushed to disk; a file of that name is replaced.
    Raises OutputError for a full disk or a folder that cannot be written, and leaves nothing behind.
    """
    path = check_output(path)
    target = Path(os.path.realpath(path))  # a link stays a link, its file is replaced
    partial = target.with_name(f".{secrets.token_hex(8)}.fastdiff.partial")
    info = PngImagePlugin.PngInfo()
    info.add_text("Software", f"fastdiff {metadata.get('fastdiff', '')}".strip())
    info.add_itxt(_KEY, json.dumps(metadata, ensure_ascii=False, allow_nan=False))
    try:
        try:
            with partial.open("xb") as stream:
                image.save(stream, format="PNG", pnginfo=info)
                stream.flush()
                os.fsync(stream.fileno())
            partial.replace(target)
        except BaseException:  # Ctrl-C too: nothing half-written stays
            partial.unlink(missing_ok=True)
            raise
    except OSError as error:
        if error.errno in _FULL:
            reason = "no space left on the disk; free some or give another folder"
        else:
            reason = f"cannot be written ({error.strerror or error}); give another name or folder"
        raise OutputError(f"{path}: {reason}") from error
    return path


def read_metadata(path: str | os.PathLike[str]) -> dict[str, Any]:
    """What ``write_png`` put into a PNG file: how the picture was made.

    ``pipe(**metadata["settings"]).images[metadata["index"]]`` is the picture again, on the engine whose hash
    is ``metadata["engine"]``. Raises InputError for a file that is no PNG or that holds no such data.
    """
    try:
        with Image.open(path, formats=["PNG"]) as image:
            image.load()  # text chunks may follow the pixels
            text = image.info.get(_KEY)
    except (OSError, SyntaxError, ValueError) as error:
        raise InputError(
            f"{path} cannot be read as PNG ({error}): give a picture that fastdiff wrote"
        ) from error
    try:
        metadata = json.loads(text) if text is not None else None
    except ValueError:
        metadata = None
    if not isinstance(metadata, dict):
        raise InputError(f"{path} holds no fastdiff metadata: give a picture that fastdiff wrote")
    return metadata


def contact_sheet(
    images: Sequence[Image.Image],
    captions: Sequence[str] = (),
    *,
    columns: int | None = None,
    scale: int = 1,
    margin: int = 12,
) -> Image.Image:
    """Pictures in a grid on white, each with its caption below, wrapped to the picture's width.

    ``columns`` None makes the sheet about square; ``scale`` enlarges each picture by a whole factor without
    smoothing. Raises InputError for no pictures or for captions that are not one per picture.
    """
    from PIL import ImageDraw, ImageFont

    if not images:
        raise InputError("a contact sheet of no pictures: give at least one")
    if captions and len(captions) != len(images):
        raise InputError(f"{len(captions)} captions for {len(images)} pictures: give one for each, or none")
    if scale < 1 or margin < 0 or (columns is not None and columns < 1):
        raise InputError(f"scale {scale}, margin {margin}, columns {columns}: give 1, 0, 1 or more")
    columns = columns or max(1, round(len(images) ** 0.5))
    rows = -(-len(images) // columns)
    width = max(image.width for image in images) * scale
    height = max(image.height for image in images) * scale
    font = ImageFont.load_default()
    ruler = ImageDraw.Draw(Image.new("RGB", (1, 1)))
    blocks = [_wrap(caption, lambda line: ruler.textlength(line, font), width) for caption in captions]
    bottoms = (ruler.multiline_textbbox((0, 0), block, font)[3] for block in blocks)
    caption_height = max((int(bottom) + 6 for bottom in bottoms), default=0)
    cell = (width + margin, height + caption_height + margin)
    sheet = Image.new("RGB", (columns * cell[0] + margin, rows * cell[1] + margin), "white")
    draw = ImageDraw.Draw(sheet)
    for index, image in enumerate(images):
        left, top = margin + index % columns * cell[0], margin + index // columns * cell[1]
        size = (image.width * scale, image.height * scale)
        sheet.paste(image.convert("RGB").resize(size, Image.Resampling.NEAREST), (left, top))
        if blocks:
            draw.multiline_text((left, top + height + 4), blocks[index], "black", font)
    return sheet


def _wrap(text: str, length: Callable[[str], float], width: int) -> str:
    """``text`` in lines of whole words, no longer than ``width`` where words allow it."""
    lines: list[str] = []
    for word in text.split():
        if lines and length(f"{lines[-1]} {word}") <= width:
            lines[-1] += f" {word}"
        else:
            lines.append(word)
    return "\n".join(lines)
