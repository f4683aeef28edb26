"""Options of solvers that add noise, shared by all of them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from fastdiff.errors import InputError
from fastdiff.samplers.path import Point
from fastdiff.samplers.settings import Settings
from fastdiff.samplers.sigma_path import SigmaPath

__all__ = ["Churn", "ancestral_step", "churned", "not_negative"]


def not_negative(settings: Settings, key: str, default: float) -> float:
    """A finite number of 0 or more. Raises `InputError` for another."""
    value = settings.number(key, default)
    if not 0 <= value < math.inf:
        raise InputError(f"{key} is {value:g}, wanted a number of 0 or more")
    return value


def ancestral_step(sigma: float, following: float, eta: float = 1.0) -> tuple[float, float]:
    """The level to go down to without noise, and the noise that leads from there up to ``following``.

    With ``eta`` 1 this is the posterior of Ho et al., "Denoising Diffusion Probabilistic Models", Eq. 7, in
    σ; smaller ones scale the noise.
    """
    up = min(following, eta * math.sqrt(max(following**2 * (sigma**2 - following**2), 0.0)) / sigma)
    return math.sqrt(following**2 - up**2), up


@dataclass(frozen=True)
class Churn:
    """Noise before a step: S_churn, S_tmin, S_tmax and S_noise of Karras et al., Algorithm 2."""

    amount: float = 0.0
    low: float = 0.0
    high: float = math.inf
    noise: float = 1.0

    @classmethod
    def read(
        cls,
        settings: Settings,
        amount: float = 0.0,
        low: float = 0.0,
        high: float = math.inf,
        noise: float = 1.0,
    ) -> Churn:
        """From s_churn, s_tmin, s_tmax and s_noise; the arguments are the defaults."""
        return cls(
            not_negative(settings, "s_churn", amount),
            settings.number("s_tmin", low),
            settings.number("s_tmax", high),
            not_negative(settings, "s_noise", noise),
        )

    def lift(self, sigma: float, steps: int) -> tuple[float, float | None]:
        """The level σ̂ to rise to from ``sigma``, and the standard deviation of the noise; None where none."""
        gamma = min(self.amount / steps, math.sqrt(2) - 1) if self.low <= sigma <= self.high else 0.0
        higher = sigma * (1 + gamma)
        return higher, self.noise * math.sqrt(higher**2 - sigma**2) if gamma else None


def churned(path: SigmaPath, churn: Churn) -> tuple[Sequence[Point], list[float | None]]:
    """The points from which the steps start, and the noise that leads up to each.

    The noise of a step is added by the row before it, that of the first by `StepTable.start_noise`; the list
    ends with None for the end of the path.
    """
    points, noises = [], []
    for point in path.points[:-1]:
        sigma, noise = churn.lift(point.sigma, path.total)
        points.append(point if noise is None else path.at(sigma))
        noises.append(noise)
    return points, [*noises, None]
