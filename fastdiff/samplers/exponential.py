"""Exponential integrators in λ = log(α/σ): what DPM-Solver, DEIS, UniPC and SA-Solver have in common.

Along the probability-flow ODE, and along the SDE that adds noise of strength τ, the linear part of the
motion is solved exactly and the model's prediction is a function of λ under an integral. From s to t, with
h = λ_t − λ_s and Dₖ the k-th derivative of the prediction in (λ − λ_s)/h at s::

    x_t = carry·x_s + scale·Σₖ wₖ·Dₖ + noise·ε,   wₖ = z·φₖ₊₁(z)

for the predicted sample (Proposition 4.1 of Lu et al., "DPM-Solver++"; with noise, section 4 of Xue et al.,
"SA-Solver") or the predicted noise (Proposition 3.1 of Lu et al., "DPM-Solver"). Solvers differ in how they
estimate Dₖ.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

import numpy as np

from fastdiff.errors import InputError
from fastdiff.samplers.path import Point

__all__ = ["Form", "Leg", "interpolating", "leg", "phi"]


class Form(Enum):
    """Which prediction stands under the integral: the clean sample x₀ or the noise ε."""

    DATA = "data"
    NOISE = "noise"


@dataclass(frozen=True)
class Leg:
    """The exact motion between two points; see the module's formula. ``noise`` is 0 for τ = 0."""

    h: float
    carry: float
    scale: float
    z: float
    noise: float

    def w(self, k: int) -> float:
        """wₖ = z·φₖ₊₁(z) = φₖ(z) − 1/k!."""
        if k == 0:
            return math.expm1(self.z)
        if abs(self.z) < 1:
            return self.z * phi(k + 1, self.z)
        return phi(k, self.z) - 1 / math.factorial(k)


def leg(s: Point, t: Point, form: Form, tau: float = 0.0) -> Leg:
    """The motion from ``s`` to ``t``; τ is 0 for the ODE and 1 for the SDE of Song et al.

    Raises `InputError` for an SDE that would run towards more noise.
    """
    h = t.log_snr - s.log_snr
    if tau and h < 0:
        raise InputError(
            f"the noise level rises from {s.ratio:g} to {t.ratio:g}, which a sampler that adds noise cannot "
            "follow; use levels that fall, or a sampler without noise"
        )
    square = tau**2
    if form is Form.NOISE:
        noise = tau * t.sigma * math.sqrt(math.expm1(2 * h)) if tau else 0.0
        return Leg(h, t.alpha / s.alpha, -(1 + square) * t.sigma, h, noise)
    decay = math.exp(-square * h) if tau else 1.0
    noise = t.sigma * math.sqrt(-math.expm1(-2 * square * h)) if tau else 0.0
    return Leg(h, decay * t.sigma / s.sigma, -t.alpha, -(1 + square) * h, noise)


def phi(k: int, z: float) -> float:
    """φₖ(z) = ∫₀¹ e^{(1−v)z}·v^{k−1}/(k−1)! dv, and φ₀ = eᶻ: Hochbruck and Ostermann, "Exponential
    Integrators".
    """
    if abs(z) < 1:
        return math.fsum(z**j / math.factorial(j + k) for j in range(18))
    if k == 0:
        return math.exp(z)
    return (phi(k - 1, z) - 1 / math.factorial(k - 1)) / z


def interpolating(motion: Leg, nodes: Sequence[float]) -> list[float]:
    """Weights cⱼ with Σₖ wₖ·Dₖ = Σⱼ cⱼ·dⱼ, where Dₖ are those of the polynomial through all dⱼ.

    ``nodes`` are λⱼ − λ_s. Exponential Adams methods: the integral of the interpolating polynomial.
    """
    powers = np.vander(nodes, increasing=True)
    wanted = [math.factorial(k) * motion.w(k) * (motion.h**k if k else 1.0) for k in range(len(nodes))]
    return [float(c) for c in np.linalg.solve(powers.T, wanted)]
