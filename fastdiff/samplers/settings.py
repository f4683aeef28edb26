"""Reading a diffusers ``scheduler_config.json`` key by key, with errors that name key, value and way out."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence

from fastdiff.errors import InputError
from fastdiff.samplers.part import WHOLE, Part

__all__ = ["Settings", "short"]


class Settings:
    """The entries of a scheduler config as one sampler understands them.

    A key that is absent takes the default of the diffusers scheduler that the sampler corresponds to.
    Defaults differ: ``timestep_spacing`` is "leading" for DDIM and "linspace" for Euler. This is what
    ``SchedulerClass.from_config(config)`` does when a checkpoint is used with another scheduler than its own.

    ``reads`` collects the keys that were asked for, with their defaults: what nobody asks for is no option.

    Every method raises `InputError` for a value of the wrong type or one that is not supported.
    """

    def __init__(
        self,
        config: Mapping[str, object],
        reader: str,
        reads: dict[str, object] | None = None,
        part: Part = WHOLE,
        begins: list[int] | None = None,
    ) -> None:
        self._config = config
        self._reader = reader
        self._reads = {} if reads is None else reads
        self._part = part
        self._begins = [] if begins is None else begins

    @property
    def reader(self) -> str:
        """Who reads, for error messages."""
        return self._reader

    def begin(self, timesteps: Sequence[float]) -> int:
        """The index of the first step that is run, 0 unless the call asks for a later part of the way.

        ``timesteps`` are those of all steps. Whoever asks starts its solver there. Raises `InputError` where
        no step is left.
        """
        first = self._part.first(timesteps)
        if first == len(timesteps):
            raise InputError(
                f"{self._reader} has none of {len(timesteps)} steps left, its last is at timestep "
                f"{timesteps[-1]:g} and the start below {self._part.below:g}; start earlier or use more steps"
            )
        self._begins.append(first)
        return first

    def _get(self, key: str, default: object) -> object:
        self._reads.setdefault(key, default)
        return self._config.get(key, default)

    def integer(self, key: str, default: int, *, minimum: int) -> int:
        """An integer of ``minimum`` or more."""
        value = self._get(key, default)
        if isinstance(value, bool) or not isinstance(value, int) or value < minimum:
            raise self._error(key, value, f"an integer of {minimum} or more")
        return value

    def number(self, key: str, default: float) -> float:
        """Any number but NaN."""
        value = self._get(key, default)
        if isinstance(value, bool) or not isinstance(value, int | float) or math.isnan(value):
            raise self._error(key, value, "a number")
        return float(value)

    def positive(self, key: str, default: float) -> float:
        """A finite number above 0."""
        value = self.number(key, default)
        if not 0 < value < math.inf:
            raise self._error(key, value, "a number above 0")
        return value

    def within(self, key: str, default: float, low: float, high: float) -> float:
        """A number from ``low`` to ``high``."""
        value = self.number(key, default)
        if not low <= value <= high:
            raise self._error(key, value, f"a number from {low:g} to {high:g}")
        return value

    def flag(self, key: str, default: bool) -> bool:
        """A boolean; null counts as false, as it does in diffusers."""
        value = self._get(key, default)
        if value is not None and not isinstance(value, bool):
            raise self._error(key, value, "true or false")
        return bool(value)

    def choice(self, key: str, default: str, allowed: Collection[str]) -> str:
        """One of the strings in ``allowed``."""
        value = self._get(key, default)
        if not isinstance(value, str) or value not in allowed:
            raise self._error(key, value, "one of " + ", ".join(repr(name) for name in allowed))
        return value

    def optional(self, key: str) -> float | None:
        """A number, or None where the key is absent or null."""
        return self.number(key, 0.0) if self.is_set(key) else None

    def numbers(self, key: str) -> tuple[float, ...] | None:
        """A list of finite numbers, or None where the key is absent or null."""
        value = self._get(key, None)
        if value is None:
            return None
        if not isinstance(value, list | tuple) or not value:
            raise self._error(key, value, "a list of numbers")
        for number in value:
            if isinstance(number, bool) or not isinstance(number, int | float) or not math.isfinite(number):
                raise self._error(key, value, "a list of finite numbers")
        return tuple(float(number) for number in value)

    def integers(self, key: str) -> tuple[int, ...]:
        """A list of integers, empty where the key is absent or null."""
        value = self._get(key, None)
        if value is None:
            return ()
        if not isinstance(value, list | tuple) or any(
            isinstance(number, bool) or not isinstance(number, int) for number in value
        ):
            raise self._error(key, value, "a list of integers")
        return tuple(value)

    def is_set(self, key: str) -> bool:
        """Whether the config has the key with another value than null."""
        return self._get(key, None) is not None

    def refuse(self, key: str, neutral: object, way_out: str) -> None:
        """Raise unless the key is absent, null or ``neutral``: any other value would change the result."""
        value = self._get(key, neutral)
        if value is not None and value is not neutral and value != neutral:
            raise InputError(
                f"{self._reader} does not support {key}={short(value)} of the scheduler config; {way_out}"
            )

    def unused(self, *keys: str) -> None:
        """Note keys that the diffusers class has too but that change nothing in its steps."""
        self._reads.update(dict.fromkeys(keys))

    def _error(self, key: str, value: object, wanted: str) -> InputError:
        return InputError(
            f"scheduler config has {key}={short(value)}, {self._reader} wants {wanted}; correct the config"
        )


def short(value: object) -> str:
    """The value as Python writes it, at most 60 characters."""
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
