"""What runs each call: measured at build for the sizes asked for, and looked up for all others."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

from fastdiff.targets.cuda.calls import Call
from fastdiff.targets.cuda.implementations import Option, implementation

__all__ = ["Choices", "Measured"]

_DEFAULT = Option("torch")


@dataclass(frozen=True)
class Measured:
    """The options of a call from the fastest on, and how long each took.

    ``extent`` is the call's, ``options`` pairs of an option and seconds. ``refused`` says of options that
    were left out why: they failed, or computed something else.
    """

    extent: tuple[int, ...]
    options: tuple[tuple[Option, float], ...]
    refused: tuple[tuple[Option, str], ...] = ()


@dataclass
class Choices:
    """Measurements by the kind of call. Calling it with a call gives the option that runs it."""

    measured: dict[str, list[Measured]] = field(default_factory=dict)

    def add(self, call: Call, measured: Measured) -> None:
        """Keep a measurement."""
        self.measured.setdefault(call.kind, []).append(measured)

    def __call__(self, call: Call) -> Option:
        """The fastest option at the measured sizes nearest to the call's; PyTorch's own for an unknown kind.

        Distance is the sum over all sizes of the logarithm of their ratio. An option that does not take the
        call, for its strides say, or whose configuration is for other sizes, is passed over.
        """
        known = [entry for entry in self.measured.get(call.kind, ()) if len(entry.extent) == len(call.extent)]
        for entry in sorted(known, key=lambda entry: _distance(entry.extent, call.extent)):
            for option, _ in entry.options:
                chosen = implementation(call.node.op, option.implementation)
                measured = entry.extent == call.extent or chosen.universal(option.config)
                if chosen.applies(call) and (measured or chosen.fits(call, option.config)):
                    return option
        return _DEFAULT

    def elsewhere(self, call: Call) -> Option:
        """What runs a call like this one at sizes that nobody measured, where the chosen option may not."""
        for entry in self.measured.get(call.kind, ()):
            for option, _ in entry.options if entry.extent == call.extent else ():
                if implementation(call.node.op, option.implementation).universal(option.config):
                    return option
        return _DEFAULT

    def best(self, call: Call) -> float:
        """Seconds of the fastest option of a call that has been measured at its sizes."""
        for entry in self.measured.get(call.kind, ()):
            if entry.extent == call.extent and entry.options:
                return entry.options[0][1]
        raise KeyError(call.key)

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {
            kind: [
                {
                    "extent": list(entry.extent),
                    "options": [_option_json(option, seconds) for option, seconds in entry.options],
                    "refused": [
                        {**_option_json(option, 0.0), "seconds": None, "reason": reason}
                        for option, reason in entry.refused
                    ],
                }
                for entry in entries
            ]
            for kind, entries in self.measured.items()
        }

    @staticmethod
    def from_json(document: dict[str, Any]) -> Choices:
        """The inverse of ``to_json``."""
        measured = {
            kind: [
                Measured(
                    tuple(entry["extent"]),
                    tuple((_option(item), float(item["seconds"])) for item in entry["options"]),
                    tuple((_option(item), str(item["reason"])) for item in entry["refused"]),
                )
                for entry in entries
            ]
            for kind, entries in document.items()
        }
        return Choices(measured)


def _distance(a: tuple[int, ...], b: tuple[int, ...]) -> float:
    return sum(abs(math.log(max(x, 1) / max(y, 1))) for x, y in zip(a, b, strict=True))


def _option_json(option: Option, seconds: float) -> dict[str, Any]:
    return {"implementation": option.implementation, "config": option.config, "seconds": seconds}


def _option(document: dict[str, Any]) -> Option:
    return Option(document["implementation"], document["config"])
