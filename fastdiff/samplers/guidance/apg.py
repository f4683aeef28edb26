"""APG: Sadat et al., "Eliminating Oversaturation and Artifacts of High Guidance Scales in Diffusion
Models".
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from fastdiff.errors import InputError
from fastdiff.samplers.guidance.images import divided, inner, per_image
from fastdiff.samplers.guidance.method import Array, Combine, Evaluation, Method, finite
from fastdiff.samplers.prediction import Linear
from fastdiff.samplers.table import Step

__all__ = ["APG"]

SPACES = ("denoised", "output")


@dataclass(frozen=True)
class APG(Method):
    """Adaptive projected guidance, Algorithm 1 of the paper, for each image::

        Δ ← D(cond) − D(uncond) + momentum·(Δ of the last guided step)
        δ = Δ·min(1, threshold/‖Δ‖)
        D = D(cond) + (w − 1)·(δ⊥ + eta·δ∥),  δ∥ the part of δ along D(cond)

    eta        share of the parallel part, which oversaturates; the paper takes 0, 1 keeps all of it
    momentum   the paper's β; negative ones, −0.5 or −0.75, push away from what was done. 0 is none
    threshold  the paper's r, the largest norm of Δ over an image, such as 2.5 to 15; infinite for no limit
    space      "denoised", D is the predicted clean sample as in the paper; "output", D is the model's output,
               as in diffusers
    base       "cond" as above; "uncond" for D(uncond) + w·(δ⊥ + eta·δ∥), as in diffusers unless it is told to
               use the original formulation

    With eta 1, no momentum and no threshold both are classifier-free guidance.
    """

    name: ClassVar[str] = "apg"
    eta: float = 0.0
    momentum: float = -0.5
    threshold: float = 15.0
    space: str = "denoised"
    base: str = "cond"

    def __post_init__(self) -> None:
        finite("guidance 'apg'", eta=self.eta, momentum=self.momentum)
        if not isinstance(self.threshold, int | float) or not self.threshold > 0:
            raise InputError(
                f"threshold of guidance 'apg' is {self.threshold!r}, wanted a number above 0; "
                "infinity is none"
            )
        for name, wanted in (("space", SPACES), ("base", ("cond", "uncond"))):
            if getattr(self, name) not in wanted:
                raise InputError(
                    f"{name} of guidance 'apg' is {getattr(self, name)!r}, wanted {' or '.join(wanted)}"
                )

    def check(self, step: Step) -> None:
        """Raises `InputError` for a step without a noise level, unless the space is the output."""
        self._shown(step)

    def start(self) -> Combine:
        """The state is Δ."""
        last: Array | None = None

        def combine(row: Evaluation) -> Array:
            nonlocal last
            number = row.cond.dtype.type
            shown = self._shown(row.step)
            delta = number(shown.output) * (row.cond - row.uncond)
            if self.momentum:
                last = delta if last is None else delta + number(self.momentum) * last
                delta = last
            if self.threshold < math.inf:
                norm = np.sqrt(inner(delta, delta))
                limited = np.minimum(1.0, divided(np.full_like(norm, self.threshold), norm, 1.0))
                delta = per_image(limited, delta) * delta
            if self.eta != 1:
                along = number(shown.sample) * row.sample + number(shown.output) * row.cond
                share = divided(inner(delta, along), inner(along, along), 0.0)
                delta = delta - per_image((1 - self.eta) * share, along) * along
            base, weight = (row.cond, row.scale - 1) if self.base == "cond" else (row.uncond, row.scale)
            guided: Array = base + number(weight / shown.output) * delta
            return guided

        return combine

    def _shown(self, step: Step) -> Linear:
        """D as a combination of what the model saw and its output."""
        if self.space == "output":
            return Linear(0.0, 1.0)
        if step.point is None:
            raise InputError(
                f"guidance 'apg' needs the noise level of every step, but the step at timestep "
                f"{step.timestep:g} has none; set its space to 'output' or use another sampler"
            )
        x0 = step.point.x0
        return Linear(x0.sample / step.input_scale, x0.output)
