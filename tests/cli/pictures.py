"""What tests of img2img and inpaint share: their files, and the comparison with the same call in Python."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from fastdiff.image import read_metadata
from tests.tasks.oracle import drawn, hole

__all__ = ["equal", "write_files"]


def write_files(folder: Path) -> None:
    """``in.png`` and ``mask.png`` of 32 x 32, ``photo.jpg`` 53 wide and 37 high, and files that are none."""
    drawn().save(folder / "in.png")
    hole().save(folder / "mask.png")
    drawn(37, 53).save(folder / "photo.jpg")
    (folder / "text.png").write_text("hello", encoding="utf-8")
    data = (folder / "in.png").read_bytes()
    (folder / "half.png").write_bytes(data[: len(data) // 2])
    (folder / "folder.png").mkdir()


def equal(path: Path, result: Any, index: int = 0) -> None:
    """The file holds a picture of ``result`` and its metadata, bit for bit."""
    with Image.open(path) as picture:
        np.testing.assert_array_equal(np.asarray(picture), np.asarray(result.images[index]))
    assert read_metadata(path) == result.metadata[index]
