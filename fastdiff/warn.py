"""Warnings about a call that name the caller's line."""

from __future__ import annotations

import sys
import warnings
from pathlib import Path

from fastdiff.errors import FastdiffWarning

__all__ = ["warn"]

_PACKAGE = str(Path(__file__).resolve().parent)


def warn(text: str) -> None:
    """A FastdiffWarning at the nearest line that is not of this package."""
    level, frame = 1, sys._getframe()
    while frame.f_back is not None and frame.f_code.co_filename.startswith(_PACKAGE):
        level, frame = level + 1, frame.f_back
    warnings.warn(text, FastdiffWarning, stacklevel=level)
