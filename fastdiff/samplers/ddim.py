"""DDIM: Song, Meng and Ermon, "Denoising Diffusion Implicit Models"."""

from __future__ import annotations

import math

from fastdiff.errors import InputError
from fastdiff.samplers.path import Point
from fastdiff.samplers.prediction import Prediction
from fastdiff.samplers.sampler import Sampler
from fastdiff.samplers.schedule import NoiseSchedule
from fastdiff.samplers.spacing import SPACINGS, spaced_timesteps
from fastdiff.samplers.table import Estimate, StepTable, step_at

__all__ = ["SAMPLERS", "ddim"]


def ddim(schedule: NoiseSchedule, steps: int) -> StepTable:
    """Eq. 12 of the paper: x_{t−1} = √ᾱ_{t−1}·x₀ + √(1 − ᾱ_{t−1} − σ²)·ε + σ·z.

    ``eta`` scales σ from 0, deterministic, to 1, DDPM (Eq. 16). Reads timestep_spacing, steps_offset,
    set_alpha_to_one, rescale_betas_zero_snr, clip_sample and clip_sample_range with the defaults of
    diffusers' DDIMScheduler, which clips x₀ unless the config says otherwise.
    """
    settings = schedule.settings("ddim")
    eta = settings.number("eta", 0.0)
    settings.refuse("thresholding", False, "set it to false or use another sampler")
    spacing = settings.choice("timestep_spacing", "leading", SPACINGS)
    offset = settings.integer("steps_offset", 0, minimum=0)
    limit = settings.positive("clip_sample_range", 1.0) if settings.flag("clip_sample", True) else None
    zero_terminal_snr = settings.flag("rescale_betas_zero_snr", False)
    if zero_terminal_snr and schedule.prediction is Prediction.EPSILON:
        raise InputError(
            "sampler 'ddim' cannot use prediction_type='epsilon' with rescale_betas_zero_snr=True, which "
            "leaves no signal at the first step; use sampler 'euler' or 'dpmpp_2m'"
        )

    train_steps = schedule.num_train_timesteps
    alpha_bar = [float(a) for a in schedule.alphas_cumprod(zero_terminal_snr=zero_terminal_snr)]
    final = 1.0 if settings.flag("set_alpha_to_one", True) else alpha_bar[0]
    rows = []
    for t in spaced_timesteps(spacing, train_steps, steps, offset).round().astype(int):
        previous = t - train_steps // steps
        a_t, a_prev = alpha_bar[t], alpha_bar[previous] if previous >= 0 else final
        sigma = eta * math.sqrt((1 - a_prev) / (1 - a_t) * (1 - a_t / a_prev))
        point = Point(float(t), math.sqrt(a_t), math.sqrt(1 - a_t), schedule.prediction)
        update = math.sqrt(max(1 - a_prev - sigma**2, 0.0)) * point.epsilon
        estimate = None
        if limit is None:
            update = math.sqrt(a_prev) * point.x0 + update
        else:
            estimate = Estimate(point.x0, math.sqrt(a_prev), limit)
        rows.append(step_at(point, update, noise_coef=sigma if eta else None, estimate=estimate))
    return StepTable("ddim", tuple(rows))


SAMPLERS = (
    Sampler(
        "ddim",
        ddim,
        order=1,
        evaluations=1,
        stochastic=False,
        paper="Song, Meng and Ermon, Denoising Diffusion Implicit Models",
        classes=("DDIMScheduler",),
    ),
)
