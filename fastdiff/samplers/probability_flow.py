"""The probability-flow ODE of any process, as a straight line from data to noise.

Song et al., "Score-Based Generative Modeling through Stochastic Differential Equations", Eq. 13. With
y = x/(α + σ) and u = σ/(α + σ) every process x = α·x₀ + σ·ε becomes y = (1 − u)·x₀ + u·ε, and its ODE
dy/du = ε − x₀. What is linear in the ODE is thereby solved exactly: constant x₀ and ε give one straight step.
Unlike σ/α, u and the slope are bounded at both ends, for α = 0 as well as for σ = 0.
"""

from __future__ import annotations

import math

from fastdiff.samplers.path import Point
from fastdiff.samplers.prediction import Linear, Prediction
from fastdiff.samplers.process import Process

__all__ = ["share_at", "straight_point", "straight_scale", "straight_slope"]


def share_at(process: Process, t: float) -> float:
    """U at time ``t``."""
    alpha, sigma = process.alpha(t), process.sigma(t)
    return sigma / (alpha + sigma)


def straight_point(process: Process, u: float, prediction: Prediction) -> Point:
    """The point of the process at ``u``, within ``t_min`` and ``t_max``."""
    log_snr = math.log1p(-u) - math.log(u) if u < 1 else -math.inf
    t = process.t_max if math.isinf(log_snr) else process.time_at(log_snr)
    return process.point(min(max(t, process.t_min), process.t_max), prediction)


def straight_scale(point: Point) -> float:
    """x/y."""
    return point.alpha + point.sigma


def straight_slope(point: Point) -> Linear:
    """dy/du as a combination of the state x and the model's output."""
    return point.epsilon + -1.0 * point.x0
