"""The options of ``fastdiff generate`` for approximate accelerations."""

from __future__ import annotations

import argparse
from typing import Any

__all__ = ["add_approximations", "chosen_deep_cache"]


def add_approximations(parser: argparse.ArgumentParser) -> None:
    """Add the options, in a group of their own."""
    group = parser.add_argument_group(
        "approximations", "faster, and not quite the same picture; docs/approximations.md has what each costs"
    )
    group.add_argument(
        "--deep-cache",
        metavar="N",
        help="evaluate the whole model in every N-th step and its outermost layers in those between, such as "
        "3; 3,center=8,power=1.4 puts the whole evaluations closer together around the 8th; for engines of "
        "fastdiff build --deep-cache",
    )


def chosen_deep_cache(arguments: argparse.Namespace) -> dict[str, Any] | None:
    """The fields of a DeepCache, whose values are checked with the call. Raises InputError."""
    from fastdiff.errors import InputError

    text: str | None = arguments.deep_cache
    if text is None:
        return None
    every, *others = text.split(",")
    try:
        pairs = [part.split("=") for part in others]
        return {"every": int(every), **{name.strip(): float(value) for name, value in pairs}}
    except ValueError:
        raise InputError(
            f"--deep-cache is {text!r}: give a whole number, such as 3, or 3,center=8,power=1.4"
        ) from None
