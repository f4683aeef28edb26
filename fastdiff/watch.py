"""How a caller follows a call while it runs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fastdiff.preview import Preview
    from fastdiff.samplers import Callback

__all__ = ["Watch"]


@dataclass(frozen=True)
class Watch:
    """``callback(step, total, latents)`` after each evaluation of the U-Net, a bar of ``progress``, and
    ``preview(step, total, pictures)`` after each ``preview_every``-th evaluation and the last.
    """

    callback: Callback | None = None
    progress: bool = False
    preview: Preview | None = None
    preview_every: int = 1
