"""A sampler as data: one row of coefficients per model evaluation.

Every solver with fixed steps computes::

    d  = p·x + q·m, clipped where the solver says so
    x' = a·x + b·m + w·d + Σ bₖ·hₖ + c·z

where x is the sample, m the model output after guidance, d an estimate such as x₀, hₖ samples, outputs or
estimates of earlier rows kept in numbered slots, and z fresh noise. A solver emits one `Step` per model
evaluation; `fastdiff.samplers.loop` runs any table against any denoiser.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from fastdiff.samplers.path import Point
from fastdiff.samplers.prediction import Linear

__all__ = ["Estimate", "Langevin", "Step", "StepTable", "Threshold", "Variance", "step_at"]


@dataclass(frozen=True)
class Threshold:
    """Dynamic thresholding: Saharia et al., "Photorealistic Text-to-Image Diffusion Models", section 2.3.

    Per image, s is the quantile ``ratio`` of |d|, at least 1 and at most ``maximum``; d becomes
    clip(d, −s, s)/s.
    """

    ratio: float
    maximum: float = 1.0


@dataclass(frozen=True)
class Estimate:
    """The term ``weight·d``, where d is ``value`` clipped to ±``limit`` and then thresholded.

    ``value`` is a combination of x and m, most often the predicted clean sample. A ``weight`` of 0 is for
    estimates that are only saved.
    """

    value: Linear
    weight: float = 0.0
    limit: float = math.inf
    threshold: Threshold | None = None


@dataclass(frozen=True)
class Variance:
    """Noise whose variance the model predicts: the second half of the output's channels, v.

    The standard deviation is exp(½·(f·high + (1 − f)·low)) with f = (v + 1)/2, Eq. 15 of Nichol and Dhariwal,
    "Improved Denoising Diffusion Probabilistic Models"; low and high are logarithms of variances. Without
    them v is the variance itself. It multiplies the step's ``noise_coef``.
    """

    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Langevin:
    """A step of Langevin dynamics whose size follows the norms of score and noise.

    x' = … + e·d + √(2e)·z with d the score and e = 2·alpha·(snr·‖z‖/‖d‖)²: the corrector of Algorithms 4 and
    5 of Song et al., "Score-Based Generative Modeling through Stochastic Differential Equations". The norms
    are each image's own, or, as in the paper's code, means over the batch.
    """

    snr: float
    alpha: float = 1.0
    batch_mean: bool = False


@dataclass(frozen=True)
class Step:
    """One model evaluation and the update that follows it.

    timestep     what the denoiser is told
    update       a and b
    input_scale  the denoiser sees ``input_scale · x``
    history      pairs (slot, bₖ), with the slots as they are before this step saves anything
    noise_coef   c; None draws no noise, 0 draws noise and does not use it
    save_sample  slot that keeps x as it is before the step, or None
    save_output  slot that keeps d, or m in a step without an estimate, or None
    estimate     d, or None
    guidance     the scale of classifier-free guidance in this step instead of the call's; 1 is none
    variance     for models that predict the variance of the noise
    langevin     for a corrector with a step size of its own; draws noise, also where noise_coef is None
    point        the noise level of the evaluation
    carried      the part of a that stands for what the step before computed: correctors and second stages
                 start over from an earlier sample, so that an edit in between reaches the model alone
    """

    timestep: float
    update: Linear
    input_scale: float = 1.0
    history: tuple[tuple[int, float], ...] = ()
    noise_coef: float | None = None
    save_sample: int | None = None
    save_output: int | None = None
    estimate: Estimate | None = None
    guidance: float | None = None
    variance: Variance | None = None
    langevin: Langevin | None = None
    point: Point | None = None
    carried: float = 0.0

    @property
    def linear(self) -> bool:
        """Whether the step is linear but for a fixed clip, so that compiled loops can run it."""
        thresholded = self.estimate is not None and self.estimate.threshold is not None
        return not thresholded and self.variance is None and self.langevin is None

    @property
    def draws_noise(self) -> bool:
        """Whether the step draws noise, used or not."""
        return self.noise_coef is not None or self.langevin is not None

    def coefficients(self) -> Iterator[float]:
        """Every factor of the step."""
        yield from (self.update.sample, self.update.output, self.input_scale, self.noise_coef or 0.0)
        yield from (coef for _, coef in self.history)
        if self.estimate is not None:
            yield from (self.estimate.value.sample, self.estimate.value.output, self.estimate.weight)


def step_at(point: Point, update: Linear, **fields: Any) -> Step:
    """A Step that evaluates the denoiser at ``point``; ``fields`` are further fields of the Step."""
    return Step(point.timestep, update, point.input_scale, point=point, **fields)


@dataclass(frozen=True)
class StepTable:
    """The steps of one sampler for one noise schedule and step count, in float64.

    sampler             its name
    steps               one row per model evaluation; some samplers make several per step asked for
    init_noise_sigma    the first sample is this times unit noise
    slots               number of history slots
    start_noise         noise of this standard deviation is added to the first sample; None draws none
    variance_channels   the model's output has twice the sample's channels, the second half a variance, which
                        only steps with a ``variance`` read
    """

    sampler: str
    steps: tuple[Step, ...]
    init_noise_sigma: float = 1.0
    slots: int = 0
    start_noise: float | None = None
    variance_channels: bool = False

    @property
    def evaluations(self) -> int:
        """Number of model evaluations, the two halves of guidance counted as one."""
        return len(self.steps)

    @property
    def timesteps(self) -> tuple[float, ...]:
        """The timesteps that the denoiser is told, in order."""
        return tuple(step.timestep for step in self.steps)

    @property
    def stochastic(self) -> bool:
        """Whether noise is drawn: at the start or in a step."""
        return self.start_noise is not None or any(step.draws_noise for step in self.steps)

    @property
    def linear(self) -> bool:
        """Whether every step is linear but for fixed clips, so that compiled loops can run the table."""
        return not self.variance_channels and all(step.linear for step in self.steps)

    def is_finite(self) -> bool:
        """Whether no coefficient is NaN or infinite."""
        coefficients = (coef for step in self.steps for coef in step.coefficients())
        starts = (self.init_noise_sigma, self.start_noise or 0.0)
        return all(map(math.isfinite, (*starts, *coefficients)))

    def guidance_scales(self, guidance: float) -> tuple[float, ...]:
        """The scale of each step in a call with ``guidance``; 1 evaluates the model with the prompt alone."""
        return tuple(guidance if step.guidance is None else step.guidance for step in self.steps)

    def with_guidance(self, scales: tuple[float | None, ...]) -> StepTable:
        """The table with a guidance scale in each step; None leaves the call's."""
        steps = tuple(replace(step, guidance=scale) for step, scale in zip(self.steps, scales, strict=True))
        return replace(self, steps=steps)
