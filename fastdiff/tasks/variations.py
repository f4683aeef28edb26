"""Variations of a picture: its noise on the way to that of another seed.

As Stable Diffusion web UI's "variation seed": a seed's picture stays recognisable while the other seed's
strength is small.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastdiff.arguments import integer
from fastdiff.errors import InputError
from fastdiff.samplers import Generator
from fastdiff.tasks.plan import check_share

__all__ = ["Variation", "check_variation", "slerp"]

Array = NDArray[np.float32]
_MAX_SEED = 2**64 - 1
_PARALLEL = 0.9995
"""Cosine from which on two directions count as one."""


@dataclass(frozen=True)
class Variation:
    """``strength`` of the way from the call's noise, 0, to that of ``seed``, 1."""

    seed: int
    strength: float

    def settings(self) -> dict[str, Any]:
        """As arguments of the pipeline."""
        return {"variation_seed": self.seed, "variation_strength": self.strength}

    def apply(self, noise: Array) -> Array:
        """The noise in between; ``noise`` is [pictures, channels, h, w]."""
        other = Generator(self.seed).randn(noise.shape)
        mixed = [slerp(self.strength, a, b) for a, b in zip(noise, other, strict=True)]
        return np.stack(mixed).astype(np.float32)


def check_variation(seed: object, strength: object) -> Variation | None:
    """The variation that a call asks for. Raises InputError for one of the two without the other."""
    if seed is None and strength is None:
        return None
    if seed is None or strength is None:
        missing, given = ("seed", "strength") if seed is None else ("strength", "seed")
        raise InputError(f"variation_{given} without variation_{missing}: give both, or none")
    checked = integer("variation_seed", seed, 0, _MAX_SEED)
    return Variation(checked, check_share("variation_strength", strength, zero=True))


def slerp(share: float, first: Array, second: Array) -> Array:
    """Spherical interpolation of two pictures' noise, [channels, h, w], by columns as the web UI does.

    Every column of h numbers is a vector of its own; all are interpolated in a straight line where they are
    nearly parallel on average, and so is a column whose two vectors lie on one line.
    """
    axis = -2
    norms = [np.linalg.norm(each, axis=axis, keepdims=True) for each in (first, second)]
    cosine = ((first / norms[0]) * (second / norms[1])).sum(axis, keepdims=True)
    if cosine.mean() > _PARALLEL:
        return np.asarray((1 - share) * first + share * second, np.float32)
    angle = np.arccos(np.clip(cosine, -1, 1))
    straight = np.abs(cosine) >= 1
    sine = np.where(straight, 1, np.sin(angle))

    def weight(part: float) -> Array:
        return np.where(straight, part, np.sin(part * angle) / sine)

    return np.asarray(weight(1 - share) * first + weight(share) * second, np.float32)
