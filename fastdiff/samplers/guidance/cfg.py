"""Classifier-free guidance: Ho and Salimans, "Classifier-Free Diffusion Guidance"."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from fastdiff.samplers.guidance.method import Array, Combine, Evaluation, Method
from fastdiff.samplers.table import Step

__all__ = ["CFG"]


@dataclass(frozen=True)
class CFG(Method):
    """m = uncond + w·(cond − uncond): the scores' p(x|c)^w·p(x)^(1−w) at every noise level.

    1 is no guidance. Eq. 6 of the paper has cond + w'·(cond − uncond), so w = 1 + w'; see ``original`` of
    `Guidance`. With a negative prompt its output takes the place of uncond.
    """

    name: ClassVar[str] = "cfg"
    linear: ClassVar[bool] = True

    def folded(self, step: Step, scale: float) -> float:
        """The scale itself."""
        return scale

    def start(self) -> Combine:
        """Without state."""
        return _combine


def _combine(row: Evaluation) -> Array:
    guided: Array = row.uncond + row.cond.dtype.type(row.scale) * (row.cond - row.uncond)
    return guided
