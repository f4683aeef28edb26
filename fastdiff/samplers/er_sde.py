"""ER-SDE: Cui et al., "Elucidating the solution space of extended reverse-time SDE for diffusion models"."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from fastdiff.errors import InputError
from fastdiff.samplers.clipping import NO_CLIPPING, Clipping, read_clipping
from fastdiff.samplers.noise_options import not_negative
from fastdiff.samplers.path import Point
from fastdiff.samplers.sampler import Sampler
from fastdiff.samplers.schedule import NoiseSchedule
from fastdiff.samplers.sigma_path import sigma_path
from fastdiff.samplers.table import Step, StepTable
from fastdiff.samplers.x0_step import x0_step

__all__ = ["NOISE_SCALES", "SAMPLERS", "er_sde_steps"]

Levels = NDArray[np.float64]
NoiseScale = Callable[[Levels], Levels]

NOISE_SCALES: dict[str, NoiseScale] = {
    "ode": lambda x: x,
    "sde": lambda x: x**2,
    "er_sde_1": lambda x: x * (np.exp(-1 / x) + 10),
    "er_sde_2": lambda x: x**1.5,
    "er_sde_3": lambda x: x**2.5,
    "er_sde_4": lambda x: x**0.9 * np.log10(1 + 100 * x**1.5),
    "er_sde_5": lambda x: x * (np.exp(x**0.3) + 10),
}
"""φ of the paper's section 4: how fast the noise of the sample is replaced. "ode" replaces none."""
_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(16)


def er_sde_steps(
    points: Sequence[Point],
    scale: str = "er_sde_5",
    order: int = 3,
    s_noise: float = 1.0,
    clip: Clipping = NO_CLIPPING,
) -> list[Step]:
    """Algorithms 1 to 3 of the paper: with r = φ(σ')/φ(σ), and integrals from σ' to σ,

    x' = r·x + (1 − r)·D + (σ' − σ + I₀)·D' + ((σ' − σ)²/2 + I₁)·D'' + √(σ'² − (r·σ)²)·z,
    I₀ = φ(σ')·∫ dτ/φ(τ), I₁ = φ(σ')·∫ (τ − σ)/φ(τ) dτ.

    D' and D'' are divided differences of the last two and three predictions; as D' is one-sided, the third
    order solver's error is of second order. σ stands for σ/α, so the VP solver is this one. The integrals are
    exact up to rounding, where the authors sum 100 places.
    """
    phi = NOISE_SCALES[scale]
    rows: list[Step] = []
    keep = order - 1  # slots; the prediction of row i is in slot i modulo their number
    for i, (here, there) in enumerate(pairwise(points)):
        save = i % keep if keep else None
        if there.sigma == 0:
            rows.append(x0_step(here, 0.0, 1.0, clip))
            continue
        sigma, following = here.sigma, there.sigma
        top = float(phi(np.array([following]))[0])
        r = top / float(phi(np.array([sigma]))[0])
        weights = [1 - r, 0.0, 0.0]
        stage = min(order, i + 1)
        if stage >= 2:
            # In log τ, where φ is smooth: ∫ f dτ = ∫ f·τ d(log τ).
            half = math.log(sigma / following) / 2
            tau = following * np.exp(half * (1 + _NODES))
            density = half * _WEIGHTS * tau / phi(tau)
            first = following - sigma + top * float(density.sum())
            newer = 1 / (sigma - points[i - 1].sigma)  # D' = newer·(D − D₁)
            weights[0] += first * newer
            weights[1] -= first * newer
        if stage >= 3:
            second = (following - sigma) ** 2 / 2 + top * float(density @ (tau - sigma))
            older = 1 / (points[i - 1].sigma - points[i - 2].sigma)
            bend = 2 * second / (sigma - points[i - 2].sigma)
            weights[0] += bend * newer
            weights[1] -= bend * (newer + older)
            weights[2] += bend * older
        noise = None if scale == "ode" else s_noise * math.sqrt(max(following**2 - (r * sigma) ** 2, 0.0))
        history = tuple(((i - j) % keep, weights[j]) for j in range(1, stage))
        rows.append(x0_step(here, r, weights[0], clip, save=save, history=history, noise_coef=noise))
    return rows


def er_sde(schedule: NoiseSchedule, steps: int) -> StepTable:
    """Reads what `sigma_path` and `read_clipping` read, solver_order (3), noise_scale and s_noise (1)."""
    settings = schedule.settings("er_sde")
    path = sigma_path(schedule, settings, steps)
    order = settings.integer("solver_order", 3, minimum=1)
    if order > 3:
        raise InputError(f"sampler 'er_sde' does not support solver_order={order}; use 1 to 3")
    scale = settings.choice("noise_scale", "er_sde_5", tuple(NOISE_SCALES))
    s_noise = not_negative(settings, "s_noise", 1.0)
    rows = er_sde_steps(path.points, scale, order, s_noise, read_clipping(settings))
    return StepTable("er_sde", tuple(rows), path.init_noise_sigma, slots=order - 1)


SAMPLERS = (
    Sampler(
        "er_sde",
        er_sde,
        order=2,
        evaluations=1,
        stochastic=True,
        paper="Cui et al., Elucidating the Solution Space of Extended Reverse-Time SDE for Diffusion Models",
    ),
)
