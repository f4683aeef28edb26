"""The noise levels that a sampler visits, as every solver sees them.

At a point of the path the state is x = α·x₀ + σ·ε. Solvers are written in α, σ and λ = log(α/σ) and hold for
every process: variance preserving (α² + σ² = 1), noise added to an unscaled sample (α = 1) or a straight line
from data to noise (α = 1 − σ).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from fastdiff.samplers.prediction import Linear, Prediction

__all__ = ["Point"]


@dataclass(frozen=True)
class Point:
    """A noise level at which the denoiser is evaluated, or at which the path ends.

    timestep     what the denoiser is told
    alpha        the state is alpha·x₀ + sigma·ε
    sigma        0 at the end of most paths
    prediction   what the denoiser's output means, for its input
    input_scale  the denoiser sees input_scale·x
    denoised     x₀ as a combination of x and the output, for denoisers whose output is none of the kinds in
                 `Prediction`: preconditioned as in Karras et al., or a consistency model
    """

    timestep: float
    alpha: float
    sigma: float
    prediction: Prediction = Prediction.EPSILON
    input_scale: float = 1.0
    denoised: Linear | None = None

    @property
    def log_snr(self) -> float:
        """λ = log(α/σ), half the logarithm of the signal-to-noise ratio; infinite without noise."""
        if self.sigma == 0:
            return math.inf
        return math.log(self.alpha / self.sigma) if self.alpha else -math.inf

    @property
    def ratio(self) -> float:
        """σ/α: the noise level of x/α, Karras et al.'s σ."""
        return self.sigma / self.alpha if self.alpha else math.inf

    @property
    def x0(self) -> Linear:
        """The predicted clean sample, a combination of the state x and the output."""
        if self.denoised is not None:
            return self.denoised
        c = self.input_scale
        x0 = self.prediction.x0(c * self.alpha, c * self.sigma)
        return Linear(c * x0.sample, x0.output)

    @property
    def epsilon(self) -> Linear:
        """The predicted noise, a combination of the state x and the output."""
        if self.denoised is not None:
            x0 = self.denoised
            return Linear((1 - self.alpha * x0.sample) / self.sigma, -self.alpha * x0.output / self.sigma)
        c = self.input_scale
        epsilon = self.prediction.epsilon(c * self.alpha, c * self.sigma)
        return Linear(c * epsilon.sample, epsilon.output)

    def to(self, following: Point) -> Linear:
        """α'·x₀ + σ'·ε: where the predicted sample and noise lie at ``following``.

        The update of DDIM (Song, Meng and Ermon, Eq. 12, σ = 0), and Euler's step in σ/α.
        """
        update = following.alpha * self.x0
        return update + following.sigma * self.epsilon if following.sigma else update
