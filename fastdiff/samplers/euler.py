"""Euler's method in the noise level: Karras et al., "Elucidating the Design Space of Diffusion-Based
Generative Models".
"""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np

from fastdiff.samplers.path import Point
from fastdiff.samplers.prediction import Prediction
from fastdiff.samplers.sampler import Sampler
from fastdiff.samplers.schedule import NoiseSchedule
from fastdiff.samplers.spacing import SPACINGS, karras_sigmas, sigma_to_timestep, spaced_timesteps
from fastdiff.samplers.table import StepTable, step_at

__all__ = ["SAMPLERS", "euler"]


def euler(schedule: NoiseSchedule, steps: int) -> StepTable:
    """Algorithm 1 of the paper without its second-order correction: x' = x + (σ' − σ)·dx/dσ.

    Here x = x₀ + σ·ε, and the denoiser sees x/√(σ² + 1). Reads timestep_spacing, steps_offset,
    use_karras_sigmas, sigma_min, sigma_max, final_sigmas_type and rescale_betas_zero_snr with the defaults of
    diffusers' EulerDiscreteScheduler.
    """
    settings = schedule.settings("euler")
    for key in ("use_exponential_sigmas", "use_beta_sigmas"):
        settings.refuse(key, False, "set it to false or use use_karras_sigmas")
    settings.refuse("interpolation_type", "linear", "set it to 'linear'")
    if schedule.prediction is Prediction.V:
        settings.refuse("timestep_type", "discrete", "set it to 'discrete'")
    spacing = settings.choice("timestep_spacing", "linspace", SPACINGS)
    offset = settings.integer("steps_offset", 0, minimum=0)
    final_sigma = settings.choice("final_sigmas_type", "zero", ("zero", "sigma_min"))

    train_sigmas = schedule.sigmas(zero_terminal_snr=settings.flag("rescale_betas_zero_snr", False))
    # diffusers holds fractional timesteps and noise levels in float32.
    timesteps = spaced_timesteps(spacing, schedule.num_train_timesteps, steps, offset).astype(np.float32)
    sigmas = np.interp(timesteps, np.arange(len(train_sigmas)), train_sigmas)
    if settings.flag("use_karras_sigmas", False):
        sigma_min, sigma_max = (
            settings.positive(key, 1.0) if settings.is_set(key) else float(spaced)
            for key, spaced in (("sigma_min", sigmas[-1]), ("sigma_max", sigmas[0]))
        )
        sigmas = karras_sigmas(sigma_min, sigma_max, steps)
        timesteps = sigma_to_timestep(sigmas, train_sigmas).astype(np.float32)
    last = train_sigmas[0] if final_sigma == "sigma_min" else 0.0
    levels = [float(sigma) for sigma in np.append(sigmas, last).astype(np.float32)]

    points = [
        Point(float(timestep), 1.0, sigma, schedule.prediction, 1 / math.sqrt(sigma**2 + 1))
        for timestep, sigma in zip(np.append(timesteps, 0), levels, strict=True)
    ]
    rows = [step_at(point, point.to(following)) for point, following in pairwise(points)]
    # The training samples at level σ have variance σ² + 1; diffusers leaves out the 1 for the spacings that
    # start at the last timestep. Rounded as there, so that the first latents are the same.
    start = np.float32(max(levels))
    if spacing == "leading":
        start = np.sqrt(np.square(start) + np.float32(1))
    return StepTable("euler", tuple(rows), init_noise_sigma=float(start))


SAMPLERS = (
    Sampler(
        "euler",
        euler,
        order=1,
        evaluations=1,
        stochastic=False,
        paper="Karras et al., Elucidating the Design Space of Diffusion-Based Generative Models",
        classes=("EulerDiscreteScheduler",),
    ),
)
