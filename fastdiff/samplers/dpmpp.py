"""DPM-Solver++(2M): Lu et al., "DPM-Solver++: Fast Solver for Guided Sampling of Diffusion Probabilistic
Models".
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from fastdiff.errors import InputError
from fastdiff.samplers.prediction import Linear
from fastdiff.samplers.sampler import Sampler
from fastdiff.samplers.schedule import BETA_SCHEDULES, NoiseSchedule
from fastdiff.samplers.settings import Settings
from fastdiff.samplers.spacing import SPACINGS, karras_sigmas, sigma_to_timestep, spaced_timesteps
from fastdiff.samplers.table import Step, StepTable

__all__ = ["SAMPLERS", "dpmpp_2m"]

PREVIOUS_OUTPUT, PREVIOUS_SAMPLE = 0, 1
# Like diffusers, reads the solver types of other multistep solvers as "midpoint", so that their configs work.
SOLVER_TYPES = ("midpoint", "heun", "logrho", "bh1", "bh2")


def dpmpp_2m(schedule: NoiseSchedule, steps: int) -> StepTable:
    """Algorithm 2 of the paper: x_t = (σ_t/σ_s)·x_s + α_t·(1 − e^{−h})·D, h = λ_t − λ_s, λ = log(α/σ).

    D extrapolates x₀ from two evaluations. The first step has only one, and the last uses only one where that
    is more stable. Reads timestep_spacing, steps_offset, use_karras_sigmas, final_sigmas_type, solver_type,
    lower_order_final, euler_at_final, lambda_min_clipped and rescale_betas_zero_snr with the defaults of
    diffusers' DPMSolverMultistepScheduler.
    """
    settings = schedule.settings("dpmpp_2m")
    _refuse_other_solvers(settings)
    heun = settings.choice("solver_type", "midpoint", SOLVER_TYPES) == "heun"
    final_sigma = settings.choice("final_sigmas_type", "zero", ("zero", "sigma_min"))

    train_sigmas = schedule.sigmas(zero_terminal_snr=settings.flag("rescale_betas_zero_snr", False))
    timesteps, sigmas = _levels(schedule, settings, train_sigmas, steps)
    last = train_sigmas[0] if final_sigma == "sigma_min" else 0.0
    points = [_Point(float(sigma)) for sigma in np.append(sigmas, last).astype(np.float32)]
    few = len(timesteps) < 15
    euler_at_final = (
        settings.flag("euler_at_final", False)
        or (settings.flag("lower_order_final", True) and few)
        or final_sigma == "zero"
    )

    rows: list[Step] = []
    for i, (timestep, s, t) in enumerate(zip(timesteps, points[:-1], points[1:], strict=True)):
        h = t.log_snr - s.log_snr
        growth = -math.expm1(-h)  # 1 − e^{−h}
        x0 = schedule.prediction.x0(s.alpha, s.sigma)
        update = Linear(t.sigma / s.sigma, 0.0) + t.alpha * growth * x0
        history: tuple[tuple[int, float], ...] = ()
        if i > 0 and not (euler_at_final and i == len(timesteps) - 1):
            r = points[i - 1]
            # D = x₀ + h/(2·h_previous)·(x₀ − previous x₀); the Heun form has another factor than ½.
            half = (1 - growth / h if h else 0.0) if heun else growth / 2
            difference = t.alpha * half * h / (s.log_snr - r.log_snr)
            update = update + difference * x0
            before = -difference * schedule.prediction.x0(r.alpha, r.sigma)
            history = ((PREVIOUS_OUTPUT, before.output), (PREVIOUS_SAMPLE, before.sample))
        rows.append(
            Step(
                float(timestep),
                update,
                history=history,
                save_output=PREVIOUS_OUTPUT,
                save_sample=PREVIOUS_SAMPLE,
            )
        )
    return StepTable("dpmpp_2m", tuple(rows), slots=2)


class _Point:
    """α, σ and λ = log(α/σ) of the variance-preserving sample with the noise level σ/α = ``level``."""

    def __init__(self, level: float) -> None:
        self.alpha = 1 / math.sqrt(level**2 + 1)
        self.sigma = level * self.alpha
        self.log_snr = -math.log(level) if level else math.inf


def _levels(
    schedule: NoiseSchedule, settings: Settings, train_sigmas: NDArray[np.float32], steps: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Timesteps and noise levels in the order of sampling, without the final level."""
    if settings.flag("use_karras_sigmas", False):
        for key in ("sigma_min", "sigma_max"):
            settings.refuse(key, None, "remove it or use sampler 'euler'")
        sigmas = karras_sigmas(float(train_sigmas[0]), float(train_sigmas[-1]), steps)
        timesteps = sigma_to_timestep(sigmas, train_sigmas)
        # diffusers rounds these, but cuts them off for the cosine schedule.
        cosine = settings.choice("beta_schedule", "linear", BETA_SCHEDULES) == "squaredcos_cap_v2"
        return np.trunc(timesteps) if cosine else timesteps.round(), sigmas

    train_steps = schedule.num_train_timesteps
    spacing = settings.choice("timestep_spacing", "linspace", SPACINGS)
    offset = settings.integer("steps_offset", 0, minimum=0)
    # Timesteps with λ below the clip are skipped: the cosine schedule ends in very large negative λ.
    log_snr = -np.log(train_sigmas)
    span = train_steps - int(np.searchsorted(log_snr[::-1], settings.number("lambda_min_clipped", -math.inf)))
    if spacing == "trailing":
        timesteps = spaced_timesteps(spacing, train_steps, steps, offset, span=span)
    elif steps < span:
        timesteps = spaced_timesteps(spacing, train_steps, steps + 1, offset, span=span).round()[:-1]
    else:
        raise InputError(
            f"steps is {steps}, but sampler 'dpmpp_2m' with timestep_spacing={spacing!r} wants at most "
            f"{span - 1} for this noise schedule; use fewer steps"
        )
    return timesteps, np.interp(timesteps, np.arange(train_steps), train_sigmas)


def _refuse_other_solvers(settings: Settings) -> None:
    settings.refuse("thresholding", False, "set it to false")
    settings.refuse("solver_order", 2, "set it to 2")
    settings.choice("algorithm_type", "dpmsolver++", ("dpmsolver++", "deis"))
    settings.refuse("variance_type", None, "set it to null and use a model that predicts no variance")
    for key in ("use_exponential_sigmas", "use_beta_sigmas", "use_lu_lambdas", "use_flow_sigmas"):
        settings.refuse(key, False, "set it to false or use use_karras_sigmas")


SAMPLERS = (
    Sampler(
        "dpmpp_2m",
        dpmpp_2m,
        order=2,
        evaluations=1,
        stochastic=False,
        paper="Lu et al., DPM-Solver++: Fast Solver for Guided Sampling of Diffusion Probabilistic Models",
        classes=("DPMSolverMultistepScheduler",),
    ),
)
