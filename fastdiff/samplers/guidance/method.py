"""What every method of guidance is: a way to combine the model's outputs of one step."""

from __future__ import annotations

import math
from abc import ABC
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

from numpy.typing import NDArray

from fastdiff.errors import InputError
from fastdiff.samplers.table import Step

__all__ = ["Combine", "Evaluation", "Method", "finite"]

Array = NDArray[Any]


@dataclass(frozen=True)
class Evaluation:
    """One step's outputs of the model, all of the shape [batch, …] of ``sample``.

    step      the row of the table
    scale     w
    sample    what the model saw, ``step.input_scale · x``
    cond      output with the prompt
    uncond    output without it, or with the negative prompt in its place
    negative  output with the negative prompt, for methods of three branches
    """

    step: Step
    scale: float
    sample: Array
    cond: Array
    uncond: Array
    negative: Array | None = None


Combine = Callable[[Evaluation], Array]
"""Makes the output m that the solver sees. Holds the state of one run."""


@dataclass(frozen=True)
class Method(ABC):
    """A method of guidance; subclasses are named after theirs and have its parameters as fields.

    A method that is linear says in `folded` which scale of plain guidance a step needs. One that can also be
    computed from the outputs says so in `start`.
    """

    name: ClassVar[str]
    branches: ClassVar[int] = 2  # 2: with the prompt and without; 3: and with the negative prompt
    linear: ClassVar[bool] = False
    rescales: ClassVar[bool] = True  # whether the output may be rescaled
    original: ClassVar[bool] = True  # whether the scale may be that of Ho and Salimans

    def is_off(self, scale: float) -> bool:
        """Whether ``scale`` leaves the output with the prompt as it is."""
        return scale == 1

    def zeroes(self, index: int) -> bool:
        """Whether the output of step ``index`` is 0, whatever the model says."""
        return False

    def check(self, step: Step) -> None:  # noqa: B027 (most methods need nothing)
        """Raises `InputError` for a guided step that lacks what the method needs."""

    def folded(self, step: Step, scale: float) -> float:
        """The scale w with which uncond + w·(cond − uncond) gives this method's step: linear methods only.

        Raises `InputError` for a step that has none.
        """
        raise NotImplementedError(f"{self.name} is not linear")

    def start(self) -> Combine:
        """A new run: methods that are not linear, and those that are and may be rescaled."""
        raise NotImplementedError(f"{self.name} is folded into the table")


def finite(owner: str, **values: float) -> None:
    """Raises `InputError` for the first of ``values`` that is no finite number."""
    for name, value in values.items():
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise InputError(f"{name} of {owner} is {value!r}, wanted a finite number")
