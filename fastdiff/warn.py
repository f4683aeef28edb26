"""Warnings about a call that name the caller's line."""

from __future__ import annotations

import contextlib
import sys
import warnings
from collections.abc import Iterator
from contextvars import ContextVar
from pathlib import Path

from fastdiff.errors import FastdiffWarning

__all__ = ["each_once", "warn"]

_PACKAGE = str(Path(__file__).resolve().parent)
_SAID: ContextVar[set[str] | None] = ContextVar("said", default=None)
"""What was warned of already, inside of `each_once`."""


@contextlib.contextmanager
def each_once() -> Iterator[None]:
    """Inside, each text is warned of once: a call of two passes has their warnings twice else."""
    before = _SAID.set(set())
    try:
        yield
    finally:
        _SAID.reset(before)


def warn(text: str) -> None:
    """A FastdiffWarning at the nearest line that is not of this package."""
    said = _SAID.get()
    if said is not None:
        if text in said:
            return
        said.add(text)
    level, frame = 1, sys._getframe()
    while frame.f_back is not None and frame.f_code.co_filename.startswith(_PACKAGE):
        level, frame = level + 1, frame.f_back
    warnings.warn(text, FastdiffWarning, stacklevel=level)
