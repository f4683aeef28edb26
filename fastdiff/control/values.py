"""Checks that the requests of all controlling networks share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fastdiff.arguments import number as check_number
from fastdiff.errors import InputError
from fastdiff.pictures import Picture, read_picture

__all__ = ["numbers", "pictures", "share", "without"]


def numbers(name: str, value: object, count: int, default: float) -> tuple[float, ...]:
    """``count`` numbers: one for all, one for each in a list, or None for the default. Raises InputError."""
    if value is None:
        return (default,) * count
    if not isinstance(value, (list, tuple)):
        return (check_number(name, value),) * count
    if len(value) != count:
        raise InputError(
            f"{name} has {len(value)} numbers, the engine {count} of these networks: give {count}"
        )
    return tuple(check_number(f"{name} {index}", item) for index, item in enumerate(value))


def share(name: str, value: float) -> float:
    """A share of the steps. Raises InputError for one that is not from 0 to 1."""
    if not 0 <= value <= 1:
        raise InputError(f"{name} is {value:g}: it must be from 0 to 1, a share of the steps")
    return value


def pictures(name: str, value: object, prompts: int) -> tuple[Picture, ...]:
    """The pictures of one network, one for all prompts or one for each. Raises InputError."""
    given: Sequence[Any] = value if isinstance(value, (list, tuple)) else (value,)
    if len(given) not in (1, prompts):
        raise InputError(f"{name} has {len(given)} pictures for {prompts} prompts: give one, or one for each")
    return tuple(read_picture(item, name) for item in given)


def without(network: str, image: str, given: dict[str, object]) -> None:
    """Raise InputError for settings of a network that has no picture."""
    for name, value in given.items():
        if value is not None and value is not False:
            raise InputError(f"{name} without {image}: give the {network} its picture, or leave {name} out")
