"""Checks of arguments: each returns the value in its own type or raises InputError that names it."""

from __future__ import annotations

import math
import operator

from fastdiff.errors import InputError

__all__ = ["integer", "number", "show", "texts"]


def texts(name: str, value: object) -> tuple[str, ...]:
    """A string, or a list of strings, that can be written in UTF-8."""
    given = (value,) if isinstance(value, str) else value
    if not isinstance(given, (list, tuple)):
        raise InputError(
            f"{name} is of type {type(value).__name__}: it must be a string or a list of strings"
        )
    if not given:
        raise InputError(f"{name} is an empty list: give at least one string")
    for index, text in enumerate(given):
        if not isinstance(text, str):
            raise InputError(f"{name} {index} is of type {type(text).__name__}: it must be a string")
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            where = f"{text[error.start]!r} at position {error.start}"
            raise InputError(f"{name} holds {where}, which is no character: give text in UTF-8") from None
    return tuple(given)


def integer(name: str, value: object, minimum: int, maximum: int | None = None) -> int:
    """A whole number, of any integer type, from ``minimum`` to ``maximum``."""
    limits = f"{minimum} or more" if maximum is None else f"from {minimum} to {maximum}"
    try:
        found = operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        found = None
    if found is None or isinstance(value, bool):
        raise InputError(f"{name} is {show(value)}: it must be a whole number, {limits}")
    if found < minimum or (maximum is not None and found > maximum):
        raise InputError(f"{name} is {found}: it must be {limits}")
    return found


def number(name: str, value: object) -> float:
    """A finite number."""
    try:
        if isinstance(value, (bool, str, bytes)):
            raise TypeError
        found = float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError, OverflowError):
        raise InputError(f"{name} is {show(value)}: it must be a number") from None
    if not math.isfinite(found):
        raise InputError(f"{name} is {found}: it must be a finite number")
    return found


def show(value: object) -> str:
    """A value for a message, in one line and short."""
    text = " ".join(repr(value).split())
    return text if len(text) <= 60 else f"{text[:57]}..."
