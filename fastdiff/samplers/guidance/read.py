"""Guidance from and to JSON values: what a picture's metadata holds."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, fields
from typing import Any, TypeVar

from fastdiff.errors import InputError
from fastdiff.samplers.guidance.apg import APG
from fastdiff.samplers.guidance.cfg import CFG
from fastdiff.samplers.guidance.cfg_pp import CFGPlusPlus
from fastdiff.samplers.guidance.cfg_zero_star import CFGZeroStar
from fastdiff.samplers.guidance.guidance import Guidance
from fastdiff.samplers.guidance.interval import Interval
from fastdiff.samplers.guidance.method import Method
from fastdiff.samplers.guidance.perp_neg import PerpNeg
from fastdiff.samplers.guidance.schedule import PerStep, Schedule

__all__ = ["METHODS", "read_guidance", "written"]

Part = TypeVar("Part")

METHODS: dict[str, type[Method]] = {
    method.name: method for method in (CFG, CFGPlusPlus, CFGZeroStar, APG, PerpNeg)
}


def written(guidance: Guidance) -> dict[str, Any]:
    """The guidance as JSON values with every field, null for infinity; `read_guidance` gives it back."""
    schedule = asdict(guidance.schedule)
    if "factors" in schedule:
        schedule["factors"] = list(schedule["factors"])
    return {
        "scale": guidance.scale,
        "method": {"name": guidance.method.name, **_unbounded(asdict(guidance.method))},
        "schedule": schedule,
        "interval": None if guidance.interval is None else _unbounded(asdict(guidance.interval)),
        "rescale": guidance.rescale,
        "original": guidance.original,
    }


def read_guidance(value: Mapping[str, Any]) -> Guidance:
    """The guidance that ``written`` made JSON of. Absent entries take their defaults, but for ``scale``.

    ``method`` may be its name alone, and ``schedule`` that of its shape. Raises `InputError` for anything
    that is none.
    """
    _check_keys("guidance", value, (field.name for field in fields(Guidance)))
    if "scale" not in value:
        raise InputError(f"guidance is {_short(value)}, wanted an entry 'scale'")
    given = dict(value)
    if "method" in given:
        given["method"] = _method(given["method"])
    if "schedule" in given:
        given["schedule"] = _schedule(given["schedule"])
    if given.get("interval") is not None:
        interval = _mapping("the guidance interval", given["interval"])
        given["interval"] = _make(Interval, "the guidance interval", _bounded(interval, "high"))
    if not isinstance(given.get("original", False), bool):
        raise InputError(f"original of guidance is {_short(given['original'])}, wanted true or false")
    return Guidance(**given)


def _method(value: object) -> Method:
    given = {"name": value} if isinstance(value, str) else dict(_mapping("the guidance method", value))
    name = given.pop("name", None)
    if not isinstance(name, str) or name not in METHODS:
        near = difflib.get_close_matches(str(name).lower(), METHODS, n=1)
        hint = f"did you mean {near[0]}? " if near else ""
        raise InputError(f"unknown guidance method {_short(name)}; {hint}available: {', '.join(METHODS)}")
    return _make(METHODS[name], f"guidance method {name!r}", _bounded(given, "threshold"))


def _schedule(value: object) -> Schedule | PerStep:
    if isinstance(value, str):
        return Schedule(value)
    given = dict(_mapping("the guidance schedule", value))
    if "factors" in given:
        factors = given["factors"]
        given["factors"] = tuple(factors) if isinstance(factors, list) else factors
        return _make(PerStep, "the guidance schedule", given)
    return _make(Schedule, "the guidance schedule", given)


def _make(kind: type[Part], what: str, given: Mapping[str, Any]) -> Part:
    _check_keys(what, given, (field.name for field in fields(kind)))  # type: ignore[arg-type]
    return kind(**given)


def _mapping(what: str, value: object) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise InputError(f"{what} is {_short(value)}, wanted an object of names and values")
    return value


def _check_keys(what: str, value: Mapping[str, Any], known: Iterable[str]) -> None:
    names = tuple(known)
    for key in value:
        if key not in names:
            raise InputError(f"{what} has no entry {_short(key)}; it has {', '.join(names) or 'none'}")


def _short(value: object) -> str:
    text = " ".join(repr(value).split())
    return text if len(text) <= 60 else f"{text[:57]}..."


def _unbounded(values: dict[str, Any]) -> dict[str, Any]:
    """JSON has no infinity."""
    return {name: None if value == math.inf else value for name, value in values.items()}


def _bounded(values: Mapping[str, Any], name: str) -> dict[str, Any]:
    return {key: math.inf if key == name and value is None else value for key, value in values.items()}
