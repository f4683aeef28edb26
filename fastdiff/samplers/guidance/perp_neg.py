"""Perp-Neg: Armandpour et al., "Re-imagine the Negative Prompt Algorithm: Transform 2D Diffusion into 3D,
Alleviate Janus Problem and Beyond".
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from fastdiff.samplers.guidance.images import divided, inner, per_image
from fastdiff.samplers.guidance.method import Array, Combine, Evaluation, Method, finite

__all__ = ["PerpNeg"]


@dataclass(frozen=True)
class PerpNeg(Method):
    """m = uncond + w·(p − weight·n⊥) with p = cond − uncond, n = negative − uncond, n⊥ = n − ⟨n, p⟩/‖p‖²·p.

    Only what the negative prompt does not share with the prompt is pushed away. uncond is the output for the
    empty prompt, so that there are three evaluations per step. Independent of what the model predicts, as p
    and n are differences of outputs.
    """

    name: ClassVar[str] = "perp_neg"
    branches: ClassVar[int] = 3
    original: ClassVar[bool] = False
    weight: float = 1.0

    def __post_init__(self) -> None:
        finite("guidance 'perp_neg'", weight=self.weight)

    def is_off(self, scale: float) -> bool:
        """Never: at 1 the negative prompt still counts."""
        return False

    def start(self) -> Combine:
        """Without state."""

        def combine(row: Evaluation) -> Array:
            assert row.negative is not None
            number = row.cond.dtype.type
            positive, negative = row.cond - row.uncond, row.negative - row.uncond
            share = divided(inner(negative, positive), inner(positive, positive), 0.0)
            apart = negative - per_image(share, positive) * positive
            guided: Array = row.uncond + number(row.scale) * (positive - number(self.weight) * apart)
            return guided

        return combine
