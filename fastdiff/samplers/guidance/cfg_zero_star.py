"""CFG-Zero*: Fan et al., "CFG-Zero*: Improved Classifier-Free Guidance for Flow Matching Models"."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from fastdiff.errors import InputError
from fastdiff.samplers.guidance.images import divided, inner, per_image
from fastdiff.samplers.guidance.method import Array, Combine, Evaluation, Method

__all__ = ["CFGZeroStar"]


@dataclass(frozen=True)
class CFGZeroStar(Method):
    """m = s·uncond + w·(cond − s·uncond) with s = ⟨cond, uncond⟩/‖uncond‖² of each image, and 0 at first.

    s is the paper's optimized scale: s·uncond is the projection of cond. In the first ``zero_steps`` steps m
    is 0, the paper's zero-init, where a flow stays where it is; the model is not evaluated.
    Made for flows, whose output is a velocity; for other predictions the formula is applied to the output.
    """

    name: ClassVar[str] = "cfg_zero_star"
    zero_steps: int = 1

    def __post_init__(self) -> None:
        if isinstance(self.zero_steps, bool) or not isinstance(self.zero_steps, int) or self.zero_steps < 0:
            raise InputError(
                f"zero_steps of guidance 'cfg_zero_star' is {self.zero_steps!r}, wanted a whole number, 0 "
                "or more"
            )

    def zeroes(self, index: int) -> bool:
        """Whether step ``index`` is one of the first ones, inside an interval or not."""
        return index < self.zero_steps

    def start(self) -> Combine:
        """Without state."""
        return _combine


def _combine(row: Evaluation) -> Array:
    s = divided(inner(row.cond, row.uncond), inner(row.uncond, row.uncond), 0.0)
    projected = per_image(s, row.uncond) * row.uncond
    guided: Array = projected + row.cond.dtype.type(row.scale) * (row.cond - projected)
    return guided
