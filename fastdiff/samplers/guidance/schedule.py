"""Scales that change over the steps: Wang et al., "Analysis of Classifier-Free Guidance Weight
Schedulers".
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from fastdiff.errors import InputError
from fastdiff.samplers.guidance.method import finite

__all__ = ["SHAPES", "PerStep", "Schedule"]

SHAPES: dict[str, Callable[[float, float], float]] = {
    "constant": lambda s, p: 1.0,
    "linear": lambda s, p: 2 * s,
    "inverse_linear": lambda s, p: 2 * (1 - s),
    "cosine": lambda s, p: 1 - math.cos(math.pi * s),
    "sine": lambda s, p: 1 + math.cos(math.pi * s),
    "v_shape": lambda s, p: 4 / 3 * max(s, 1 - s),
    "lambda_shape": lambda s, p: 4 * min(s, 1 - s),
    "power": lambda s, p: (p + 1) * s**p,
    "powered_cosine": lambda s, p: (1 - math.cos(math.pi * s**p)) / 2,
}
"""Factors of the scale at the share s of the steps, 0 at the start and 1 at the end; p is the power.

The paper's with s = 1 − t/T. All have the mean 1, as there, but "powered_cosine", the half cosine, which
grows to 1: its mean is ½ at power 1.
"""


@dataclass(frozen=True)
class Schedule:
    """The scale times one of `SHAPES`, and never below ``floor``, which the paper calls clamping.

    ``power`` is that of "power" and "powered_cosine". Step i of n stands at s = (i + ½)/n.
    """

    shape: str = "constant"
    power: float = 1.0
    floor: float | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.shape, str) or self.shape not in SHAPES:
            raise InputError(f"guidance schedule {self.shape!r} is unknown; use one of {', '.join(SHAPES)}")
        finite("the guidance schedule", power=self.power)
        if self.power <= 0:
            raise InputError(f"power of the guidance schedule is {self.power:g}, wanted a number above 0")
        if self.power != 1 and self.shape not in ("power", "powered_cosine"):
            raise InputError(
                f"guidance schedule {self.shape!r} has no power, found {self.power:g}; use 'power' or "
                "'powered_cosine'"
            )
        if self.floor is not None:
            finite("the guidance schedule", floor=self.floor)

    @property
    def constant(self) -> bool:
        """Whether every step has the same scale."""
        return self.shape == "constant"

    def scales(self, scale: float, count: int) -> tuple[float, ...]:
        """The scale in each of ``count`` steps."""
        factor = SHAPES[self.shape]
        low = -math.inf if self.floor is None else self.floor
        return tuple(max(low, scale * factor((i + 0.5) / count, self.power)) for i in range(count))


@dataclass(frozen=True)
class PerStep:
    """The scale times a factor given for each step, that is for each model evaluation of the sampler."""

    factors: tuple[float, ...]

    def __post_init__(self) -> None:
        if not isinstance(self.factors, tuple) or not self.factors:
            raise InputError(
                f"factors of the guidance schedule are {self.factors!r}, wanted numbers, one a step"
            )
        for factor in self.factors:
            finite("the guidance schedule", factor=factor)

    @property
    def constant(self) -> bool:
        """Whether every step has the same scale."""
        return len(set(self.factors)) == 1

    def scales(self, scale: float, count: int) -> tuple[float, ...]:
        """The scale in each step. Raises `InputError` for another ``count`` than that of the factors."""
        if count != len(self.factors):
            raise InputError(
                f"the guidance schedule has {len(self.factors)} entries, but the sampler makes {count} "
                "evaluations; give one for each"
            )
        return tuple(scale * factor for factor in self.factors)
