"""Argument types with messages that name the value and what is wanted, and helpers of several commands."""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import json
import sys
from collections.abc import Iterator
from typing import Any

from fastdiff.errors import InputError, TargetError

__all__ = [
    "byte_size",
    "lora",
    "named_as_typed",
    "number",
    "on_terminal",
    "option",
    "require_build_extra",
    "whole",
]

_BUILD_EXTRA = ("torch", "diffusers", "transformers", "onnx", "onnxscript")


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


def option(text: str) -> tuple[str, Any]:
    """``KEY=VALUE``, for argparse. The value is JSON, numbers with commas between, or else a string."""
    key, equals, value = text.partition("=")
    if not key.strip() or not equals:
        raise argparse.ArgumentTypeError(f"{text!r} is not KEY=VALUE, such as rho=7")
    try:
        return key.strip(), json.loads(f"[{value}]" if "," in value and "[" not in value else value)
    except ValueError:
        return key.strip(), value


def lora(text: str) -> tuple[str, float]:
    """``FILE`` or ``FILE:SCALE``, for argparse; the scale is 1 where none is given."""
    file, colon, scale = text.rpartition(":")
    if not colon:
        return text, 1.0
    try:
        return file, float(scale)
    except ValueError:
        return text, 1.0


def byte_size(count: float) -> str:
    """Bytes in the unit that leaves up to four digits: ``812 B``, ``3.4 MB``."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000 or unit == "GB":
            break
        count /= 1000
    return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"


@contextlib.contextmanager
def named_as_typed(**options: str) -> Iterator[None]:
    """Errors that begin with the name of a pipeline's argument begin with the option that gave it."""
    try:
        yield
    except InputError as error:
        argument, space, rest = str(error).partition(" ")
        if argument not in options:
            raise
        raise InputError(f"{options[argument]}{space}{rest}") from error


def on_terminal() -> bool:
    """Whether progress is shown."""
    return sys.stderr is not None and sys.stderr.isatty()


def require_build_extra(purpose: str) -> None:
    """Raises TargetError when a library that only building needs is not installed."""
    missing = [name for name in _BUILD_EXTRA if importlib.util.find_spec(name) is None]
    if missing:
        raise TargetError(
            f"{purpose} needs {', '.join(missing)}, not installed here: pip install 'fastdiff[build]'"
        )
