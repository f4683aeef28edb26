"""DPM-Solver-12 and -23 with adaptive steps: Lu et al., "DPM-Solver: A Fast ODE Solver for Diffusion
Probabilistic Model Sampling in Around 10 Steps", Appendix C, with k-diffusion's controller and noise.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

import numpy as np
from numpy.typing import NDArray

from fastdiff.errors import InputError, NumericError
from fastdiff.samplers.adaptive import AdaptiveRun, Model, Observe, adaptive_run, no_table
from fastdiff.samplers.prediction import Prediction
from fastdiff.samplers.process import Process
from fastdiff.samplers.random import NoiseSource
from fastdiff.samplers.runge_kutta import evaluations_spent, worst_rms
from fastdiff.samplers.sampler import Sampler
from fastdiff.samplers.schedule import NoiseSchedule

__all__ = ["SAMPLERS", "Controller", "dpm_adaptive", "dpm_solver_pair"]

Float64 = NDArray[np.float64]


@dataclass
class Controller:
    """k-diffusion's PID control of the step size h in λ.

    The factor of the next h is a product of powers of 1/error, now and at the last two accepted steps, within
    1 ± π/2 by an arctangent. A step is accepted where the factor is at least ``accept_safety``.
    """

    h: float
    order: float
    pcoeff: float = 0.0
    icoeff: float = 1.0
    dcoeff: float = 0.0
    accept_safety: float = 0.81
    inverse_errors: list[float] = field(default_factory=list)

    def accepts(self, error: float) -> bool:
        """Whether the step with ``error``, 1 at the tolerance, is good; sets ``h`` for the next."""
        inverse = 1 / (error + 1e-8)
        before = self.inverse_errors or [inverse, inverse]
        p, i, d = self.pcoeff, self.icoeff, self.dcoeff
        powers = (p + i + d, -(p + 2 * d), d)
        factor = math.prod(
            e ** (power / self.order) for e, power in zip((inverse, *before), powers, strict=True)
        )
        factor = 1 + math.atan(factor - 1)
        self.h *= factor
        accepted = factor >= self.accept_safety
        self.inverse_errors = [inverse, before[0]] if accepted else before
        return accepted


def dpm_solver_pair(
    epsilon: Callable[[float, Float64], Float64],
    x: Float64,
    first: Float64,
    now: float,
    following: float,
    order: int,
) -> tuple[Float64, Float64]:
    """Results of orders ``order`` − 1 and ``order`` (2 or 3) at λ = ``following``, from x at λ = ``now``.

    x = x₀ + e^−λ·ε, ``epsilon`` gives ε at λ and x, ``first`` is ε at the start. Algorithms 1 and 2 of the
    paper with α = 1, r₁ = 1/2 for order 2, r₁ = 1/3 and r₂ = 2/3 for order 3.
    """
    h = following - now

    def euler(share: float) -> Float64:
        return x - math.exp(-now - share * h) * math.expm1(share * h) * first

    def corrected(share: float, at: float, weight: float, difference: Float64) -> Float64:
        level = math.exp(-now - share * h)
        return euler(share) - level * weight / at * difference

    if order == 2:
        change = epsilon(now + h / 2, euler(1 / 2)) - first
        return euler(1), corrected(1, 1 / 2, math.expm1(h) / 2, change)
    r1, r2 = 1 / 3, 2 / 3
    change = epsilon(now + r1 * h, euler(r1)) - first
    low = corrected(1, r1, math.expm1(h) / 2, change)
    middle = corrected(r2, r1 / r2, math.expm1(r2 * h) / (r2 * h) - 1, change)
    change = epsilon(now + r2 * h, middle) - first
    return low, corrected(1, r2, math.expm1(h) / h - 1, change)


def dpm_adaptive(
    process: Process,
    prediction: Prediction,
    model: Model,
    x: Float64,
    *,
    order: int,
    rtol: float,
    atol: float,
    controller: Callable[[], Controller],
    eta: float = 0.0,
    s_noise: float = 1.0,
    max_evaluations: int,
    noise: NoiseSource | None = None,
    observe: Observe | None = None,
) -> tuple[Float64, int]:
    """From x at ``t_max`` to x at ``t_min``, and the evaluations.

    Everything happens in x/α. The error of a step is the root mean square, over the image that has the
    largest, of the two results' difference over max(atol, rtol·max(|x_low|, |x_low of the step before|)).
    ``eta`` puts ancestral noise behind every step, ``s_noise`` scales it.

    Raises `InputError` for a process that starts without signal.
    """
    start, end = process.log_snr(process.t_max), process.log_snr(process.t_min)
    if math.isinf(start):
        raise InputError(
            "sampler 'dpm_adaptive' cannot start without signal; set sigma_max to a finite ratio of noise to "
            "signal, such as 100, or use sampler 'rk45'"
        )
    control = controller()
    evaluations = 0

    def epsilon(at: float, x: Float64) -> Float64:
        nonlocal evaluations
        if evaluations == max_evaluations:
            raise evaluations_spent(max_evaluations, (now - start) / (end - start))
        evaluations += 1
        t = min(max(process.time_at(at), process.t_min), process.t_max)
        point = process.point(t, prediction)
        state = point.alpha * x
        return point.epsilon.sample * state + point.epsilon.output * model(point, state)

    now, x = start, x / process.alpha(process.t_max)
    before, first = x, None
    while now < end - 1e-5:
        following = min(end, now + control.h)
        target, up = following, 0.0
        if eta:
            target = min(end, -math.log(_ancestral_sigma_down(now, following, eta)))
            up = math.sqrt(max(math.exp(-2 * following) - math.exp(-2 * target), 0.0))
        first = epsilon(now, x) if first is None else first
        low, high = dpm_solver_pair(epsilon, x, first, now, target, order)
        scale = np.maximum(atol, rtol * np.maximum(np.abs(low), np.abs(before)))
        error = worst_rms((low - high) / scale)
        if not math.isfinite(error):
            raise NumericError(f"NaN or infinity in the solution at λ = {now:g}; the model gave it")
        if control.accepts(error):
            before, x, now, first = low, high, following, None
            if up and noise is not None:
                x = x + up * s_noise * noise.randn(x.shape)
            if observe is not None:
                alpha = process.alpha(process.time_at(now))
                observe((now - start) / (end - start), alpha * x, evaluations)
    return process.alpha(process.t_min) * x, evaluations


def _ancestral_sigma_down(now: float, following: float, eta: float) -> float:
    """The level that a step goes down to before noise brings it to that of ``following``."""
    high, low = math.exp(-2 * now), math.exp(-2 * following)
    up2 = min(low, eta**2 * low * (high - low) / high)
    return math.sqrt(low - up2)


def _run(schedule: NoiseSchedule) -> AdaptiveRun:
    """Reads solver_order (3, or 2), rtol (0.05), atol (0.0078), h_init (0.05), pcoeff (0), icoeff (1), dcoeff
    (0), accept_safety (0.81), eta (0, up to 1) and s_noise (1): k-diffusion's defaults. As there, the sample
    is left at the last level unless final_sigmas_type is "zero".
    """
    settings = schedule.settings("dpm_adaptive")
    order = settings.integer("solver_order", 3, minimum=2)
    if order > 3:
        raise InputError(f"solver_order is {order}, sampler 'dpm_adaptive' wants 2 or 3; correct it")
    eta = settings.number("eta", 0.0)
    if not 0 <= eta <= 1:
        raise InputError(f"eta is {eta:g}, sampler 'dpm_adaptive' wants 0 to 1; correct it")
    controller = partial(
        Controller,
        settings.positive("h_init", 0.05),
        # With noise the error is that of an SDE solver of order 1.5.
        1.5 if eta else order,
        settings.number("pcoeff", 0.0),
        settings.number("icoeff", 1.0),
        settings.number("dcoeff", 0.0),
        settings.positive("accept_safety", 0.81),
    )
    solver = partial(
        dpm_adaptive,
        order=order,
        rtol=settings.positive("rtol", 0.05),
        atol=settings.positive("atol", 0.0078),
        controller=controller,
        eta=eta,
        s_noise=settings.number("s_noise", 1.0),
    )
    return adaptive_run("dpm_adaptive", schedule, settings, solver, final="sigma_min", stochastic=eta != 0)


SAMPLERS = (
    Sampler(
        "dpm_adaptive",
        no_table("dpm_adaptive"),
        order=3,
        evaluations=3,
        stochastic=False,
        paper="Lu et al., DPM-Solver: A Fast ODE Solver for Diffusion Probabilistic Model Sampling in Around "
        "10 Steps",
        any_steps=True,
        adaptive=_run,
    ),
)
