"""A sampler as a table of coefficients.

Every fixed-step solver is linear in what it has seen: x' = a·x + b·m + Σ bₖ·hₖ + c·z, where x is the sample,
m the model output after guidance, hₖ earlier model outputs or samples kept in numbered slots, and z fresh
noise. A solver emits one `Step` per model evaluation; `fastdiff.samplers.loop` runs any table against any
denoiser.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from fastdiff.samplers.prediction import Linear

__all__ = ["Clip", "Step", "StepTable"]


@dataclass(frozen=True)
class Clip:
    """A term ``weight · clip(x0, −limit, limit)``, the one thing in a step that is not linear.

    ``x0`` is the predicted clean sample as a combination of x and m.
    """

    x0: Linear
    limit: float
    weight: float


@dataclass(frozen=True)
class Step:
    """One model evaluation and the update that follows it.

    timestep     what the denoiser is told
    update       a and b
    input_scale  the denoiser sees ``input_scale · x``
    history      pairs (slot, bₖ), with the slots as they are before this step saves anything
    noise_coef   c
    save_sample  slot that keeps x as it is before the step, or None
    save_output  slot that keeps m, or None
    clip         a clipped term to add, or None
    """

    timestep: float
    update: Linear
    input_scale: float = 1.0
    history: tuple[tuple[int, float], ...] = ()
    noise_coef: float = 0.0
    save_sample: int | None = None
    save_output: int | None = None
    clip: Clip | None = None

    def coefficients(self) -> Iterator[float]:
        """Every factor of the step."""
        yield from (self.update.sample, self.update.output, self.input_scale, self.noise_coef)
        yield from (coef for _, coef in self.history)
        if self.clip is not None:
            yield from (self.clip.x0.sample, self.clip.x0.output, self.clip.weight)


@dataclass(frozen=True)
class StepTable:
    """The steps of one sampler for one noise schedule and step count, in float64.

    sampler           its name
    steps             one row per model evaluation; PNDM makes more evaluations than the steps asked for
    init_noise_sigma  the first sample is this times unit noise
    slots             number of history slots
    stochastic        noise is drawn at every step, also where its coefficient is 0, as diffusers does
    """

    sampler: str
    steps: tuple[Step, ...]
    init_noise_sigma: float = 1.0
    slots: int = 0
    stochastic: bool = False

    @property
    def evaluations(self) -> int:
        """Number of model evaluations, the two halves of guidance counted as one."""
        return len(self.steps)

    @property
    def timesteps(self) -> tuple[float, ...]:
        """The timesteps that the denoiser is told, in order."""
        return tuple(step.timestep for step in self.steps)

    def is_finite(self) -> bool:
        """Whether no coefficient is NaN or infinite."""
        coefficients = (coef for step in self.steps for coef in step.coefficients())
        return math.isfinite(self.init_noise_sigma) and all(map(math.isfinite, coefficients))
