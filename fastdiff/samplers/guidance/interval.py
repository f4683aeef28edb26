"""Guidance in a part of the steps: Kynkäänniemi et al., "Applying Guidance in a Limited Interval Improves
Sample and Distribution Quality in Diffusion Models".
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from fastdiff.errors import InputError
from fastdiff.samplers.guidance.method import finite
from fastdiff.samplers.table import StepTable

__all__ = ["Interval"]

UNITS = ("sigma", "share")


@dataclass(frozen=True)
class Interval:
    """Steps outside have no guidance, and need only the evaluation with the prompt.

    unit "sigma"  guidance where ``low`` < σ ≤ ``high``, as in the paper, with σ = noise/signal of the
                  state, Karras et al.'s σ. The paper takes 0.28 to 5.42 for Stable Diffusion XL
    unit "share"  guidance in the steps from ``low`` to ``high`` as shares of all, 0 to 1, in the order of
                  sampling: int(low·n) ≤ i < int(high·n), like start and stop of diffusers' guiders
    """

    low: float = 0.0
    high: float = math.inf
    unit: str = "sigma"

    def __post_init__(self) -> None:
        if self.unit not in UNITS:
            raise InputError(f"unit of the guidance interval is {self.unit!r}, wanted {' or '.join(UNITS)}")
        finite("the guidance interval", low=self.low)
        most = math.inf if self.unit == "sigma" else 1.0
        # a NaN fails the comparison
        if not isinstance(self.high, int | float) or not 0 <= self.low <= self.high <= most:
            wanted = "0 ≤ low ≤ high" if self.unit == "sigma" else "0 ≤ low ≤ high ≤ 1"
            raise InputError(f"the guidance interval is {self.low} to {self.high}, wanted {wanted}")

    def holds(self, table: StepTable) -> tuple[bool, ...]:
        """Which steps lie inside. Raises `InputError` where σ is asked for and a step has no noise level."""
        count = len(table.steps)
        if self.unit == "share":
            first, last = int(self.low * count), int(self.high * count)
            return tuple(first <= index < last for index in range(count))
        inside = []
        for step in table.steps:
            if step.point is None:
                raise InputError(
                    f"a guidance interval in sigma needs the noise level of every step, but sampler "
                    f"{table.sampler!r} has steps without; give the interval as shares of the steps"
                )
            inside.append(self.low < step.point.ratio <= self.high)
        return tuple(inside)
