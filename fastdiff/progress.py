"""The progress bar of everything that takes longer than a moment."""

from __future__ import annotations

import shutil
from typing import Any

__all__ = ["progress_bar"]

_WIDTH = 100


def progress_bar(total: int | None, unit: str, *, keep: bool, description: str = "") -> Any:
    """A tqdm bar on standard error, with rate and time left; ``keep`` leaves it there when it is closed.
    ``total`` None is for work whose amount shows while it is done.

    Its place is not left to tqdm, which draws nothing on a terminal that does not tell its size.
    """
    from tqdm import tqdm

    width = min(_WIDTH, shutil.get_terminal_size().columns - 1)
    return tqdm(total=total, unit=unit, desc=description, leave=keep, ncols=max(width, 20), nrows=2)
