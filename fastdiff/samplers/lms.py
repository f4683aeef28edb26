"""Linear multistep in the noise level: Adams–Bashforth's method for steps of any size, k-diffusion's LMS."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from fastdiff.errors import InputError
from fastdiff.samplers.path import Point
from fastdiff.samplers.prediction import Linear
from fastdiff.samplers.sampler import Sampler
from fastdiff.samplers.schedule import NoiseSchedule
from fastdiff.samplers.sigma_path import sigma_path
from fastdiff.samplers.table import Estimate, Step, StepTable, step_at

__all__ = ["SAMPLERS", "lms", "lms_steps"]

MOST = 8
_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(MOST // 2)  # exact for the polynomials of every order


def lagrange_integrals(nodes: Sequence[float], begin: float, end: float) -> list[float]:
    """∫ ℓⱼ(τ) dτ from ``begin`` to ``end`` with ℓⱼ the polynomial that is 1 at node j and 0 at the others."""
    half = (end - begin) / 2
    tau = begin + half * (1 + _NODES)
    integrals = []
    for j, node in enumerate(nodes):
        polynomial = np.ones_like(tau)
        for k, other in enumerate(nodes):
            if k != j:
                polynomial = polynomial * (tau - other) * (1 / (node - other))
        integrals.append(float(half * _WEIGHTS @ polynomial))
    return integrals


def lms_steps(points: Sequence[Point], order: int = 4) -> list[Step]:
    """The steps x' = x + Σ dⱼ·∫ ℓⱼ(σ) dσ, where d = dx/dσ, which is the predicted noise, at the last
    ``order`` points; the first steps have fewer.
    """
    rows = []
    for i, (here, there) in enumerate(pairwise(points)):
        nodes = [points[i - j].sigma for j in range(min(order, i + 1))]
        newest, *older = lagrange_integrals(nodes, here.sigma, there.sigma)
        keep = order - 1  # slots; the derivative of row i is in slot i modulo their number
        rows.append(
            step_at(
                here,
                Linear(1.0, 0.0) if keep else Linear(1.0, 0.0) + newest * here.epsilon,
                history=tuple(((i - 1 - j) % keep, weight) for j, weight in enumerate(older)),
                estimate=Estimate(here.epsilon, newest) if keep else None,
                save_output=i % keep if keep else None,
            )
        )
    return rows


def lms(schedule: NoiseSchedule, steps: int) -> StepTable:
    """Reads what `sigma_path` reads and ``order``, 1 to 8 (4), an argument of LMSDiscreteScheduler.step.

    The integrals are exact. diffusers' adaptive quadrature, asked for 1e-4, finds those of polynomials up to
    rounding too. The first steps are of lower order: Euler's first step leaves an error that falls with the
    square of the step count, whatever ``order`` from 2 on; the fourth order is that of the later steps.
    """
    settings = schedule.settings("lms")
    order = settings.integer("order", 4, minimum=1)
    if order > MOST:
        raise InputError(f"order is {order}, wanted 1 to {MOST}")
    path = sigma_path(schedule, settings, steps)
    rows = lms_steps(path.points, order)
    return StepTable("lms", tuple(rows), path.init_noise_sigma, slots=order - 1)


SAMPLERS = (
    Sampler(
        "lms",
        lms,
        order=2,
        evaluations=1,
        stochastic=False,
        paper="Crowson, k-diffusion; Liu et al., Pseudo Numerical Methods for Diffusion Models on Manifolds",
        classes=("LMSDiscreteScheduler",),
    ),
)
