"""Which part of a sampler's way a call runs: from a noised picture on, or up to another model's turn.

A solver that starts in the middle starts as it does at the beginning, with nothing kept from steps before,
but where its steps lie and which of them are of lower order at the end stays as it is for the whole way.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from fastdiff.errors import InputError

if TYPE_CHECKING:
    from fastdiff.samplers.sampler import Sampler
    from fastdiff.samplers.table import StepTable

__all__ = ["WHOLE", "Part", "growing", "truncated"]


@dataclass(frozen=True)
class Part:
    """A part of the steps; by default all of them.

    skip   steps left out at the beginning
    below  further steps are left out as long as their timestep is not below this
    until  the part ends before the first step whose timestep is below this
    """

    skip: int = 0
    below: float = math.inf
    until: float = -math.inf

    @property
    def starts_later(self) -> bool:
        """Whether steps are left out at the beginning."""
        return self.skip > 0 or self.below < math.inf

    def first(self, timesteps: Sequence[float]) -> int:
        """The index of the first step of the part among all ``timesteps``; their count where none is left."""
        late = (i for i, timestep in enumerate(timesteps) if i >= self.skip and timestep < self.below)
        return next(late, len(timesteps))


WHOLE = Part()


def growing(orders: Sequence[int], begin: int) -> list[int]:
    """The orders of the steps from ``begin`` on for a solver that knows nothing of the steps before."""
    return [min(order, i + 1) for i, order in enumerate(orders[begin:])]


def truncated(sampler: Sampler, table: StepTable, part: Part) -> StepTable:
    """``table`` without the steps after ``part.until``.

    A step of several evaluations is run to its end. Raises `InputError` where no step is left, and for a
    sampler whose evaluations are not spread evenly over its steps.
    """
    rows = next((i for i, step in enumerate(table.steps) if step.timestep < part.until), len(table.steps))
    if rows == 0:
        raise InputError(
            f"the part of sampler {sampler.name!r} ends at timestep {part.until:g}, before its first step at "
            f"{table.steps[0].timestep:g}; end later or use more steps"
        )
    if rows < len(table.steps) and sampler.evaluations > 1:
        rows = min(-(-rows // sampler.evaluations) * sampler.evaluations, len(table.steps))
    return replace(table, steps=table.steps[:rows])
