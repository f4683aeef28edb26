"""Argument types with messages that name the value and what is wanted, and helpers of several commands."""

from __future__ import annotations

import argparse
import sys

__all__ = ["byte_size", "number", "on_terminal", "whole"]


def whole(text: str) -> int:
    """A whole number, for argparse."""
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number") from None


def number(text: str) -> float:
    """A number, for argparse; what it may be is checked where it is used."""
    try:
        return float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number") from None


def byte_size(count: float) -> str:
    """Bytes in the unit that leaves up to four digits: ``812 B``, ``3.4 MB``."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000 or unit == "GB":
            break
        count /= 1000
    return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"


def on_terminal() -> bool:
    """Whether progress is shown."""
    return sys.stderr is not None and sys.stderr.isatty()
