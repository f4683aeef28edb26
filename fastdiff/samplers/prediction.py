"""What the denoiser's output means, as linear maps to the clean sample and to the noise."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

__all__ = ["Linear", "Prediction"]


@dataclass(frozen=True)
class Linear:
    """``sample·x + output·m``: a combination of the current sample x and the model output m."""

    sample: float
    output: float

    def __rmul__(self, factor: float) -> Linear:
        return Linear(factor * self.sample, factor * self.output)

    def __add__(self, other: Linear) -> Linear:
        return Linear(self.sample + other.sample, self.output + other.output)


class Prediction(StrEnum):
    """The quantity that the denoiser predicts for its input y = α·x₀ + σ·ε.

    EPSILON  ε, Ho et al., "Denoising Diffusion Probabilistic Models"
    V        v = α·ε − σ·x₀ where α² + σ² = 1, Salimans and Ho, "Progressive Distillation for Fast Sampling of
             Diffusion Models"
    SAMPLE   x₀
    FLOW     the velocity ε − x₀, Lipman et al., "Flow Matching for Generative Modeling", with noise at t = 1
    SCORE    ∇ log p(y) = −E[ε]/σ, Song and Ermon, "Generative Modeling by Estimating Gradients of the Data
             Distribution"
    """

    EPSILON = "epsilon"
    V = "v_prediction"
    SAMPLE = "sample"
    FLOW = "flow_prediction"
    SCORE = "score"

    def x0(self, alpha: float, sigma: float) -> Linear:
        """The predicted clean sample. ε and score need α > 0."""
        match self:
            case Prediction.EPSILON:
                return Linear(1 / alpha, -sigma / alpha)
            case Prediction.V:
                return Linear(alpha, -sigma)
            case Prediction.SAMPLE:
                return Linear(0.0, 1.0)
            case Prediction.FLOW:
                return Linear(1 / (alpha + sigma), -sigma / (alpha + sigma))
            case Prediction.SCORE:
                return Linear(1 / alpha, sigma**2 / alpha)

    def epsilon(self, alpha: float, sigma: float) -> Linear:
        """The predicted noise. Prediction of the sample needs σ > 0."""
        match self:
            case Prediction.EPSILON:
                return Linear(0.0, 1.0)
            case Prediction.V:
                return Linear(sigma, alpha)
            case Prediction.SAMPLE:
                return Linear(1 / sigma, -alpha / sigma)
            case Prediction.FLOW:
                return Linear(1 / (alpha + sigma), alpha / (alpha + sigma))
            case Prediction.SCORE:
                return Linear(0.0, -sigma)
