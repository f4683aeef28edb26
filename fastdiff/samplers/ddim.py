"""DDIM: Song, Meng and Ermon, "Denoising Diffusion Implicit Models", and its inversion."""

from __future__ import annotations

import math

from fastdiff.errors import InputError
from fastdiff.samplers.chain import chain_timesteps, following_timesteps, read_chain, read_shifted_chain
from fastdiff.samplers.clipping import NO_CLIPPING, Clipping, read_clipping
from fastdiff.samplers.path import Point
from fastdiff.samplers.prediction import Linear, Prediction
from fastdiff.samplers.sampler import Sampler
from fastdiff.samplers.schedule import NoiseSchedule
from fastdiff.samplers.table import Step, StepTable, step_at

__all__ = ["SAMPLERS", "ddim", "ddim_cogvideox", "ddim_inverse", "ddim_step"]

_PAPER = "Song, Meng and Ermon, Denoising Diffusion Implicit Models"


def ddim_step(
    point: Point,
    following: Point,
    eta: float = 0.0,
    clipping: Clipping = NO_CLIPPING,
    *,
    clipped_epsilon: bool = False,
) -> Step:
    """Eq. 12 of the paper: x' = α'·x₀ + √(σ'² − s²)·ε + s·z, with s as in Eq. 16.

    ``eta`` scales s from 0, deterministic, to 1, DDPM. ``clipped_epsilon`` takes ε from the clipped x₀.
    """
    a, a_to, sigma, sigma_to = point.alpha, following.alpha, point.sigma, following.sigma
    s = eta * sigma_to / sigma * math.sqrt(max(sigma**2 - (a * sigma_to / a_to) ** 2, 0.0)) if eta else 0.0
    direction = math.sqrt(max(sigma_to**2 - s**2, 0.0))
    noise = s if eta else None
    if clipped_epsilon and clipping.active:  # ε = (x − α·x₀)/σ
        _, estimate = clipping.split(point.x0, a_to - direction * a / sigma)
        return step_at(point, Linear(direction / sigma, 0.0), noise_coef=noise, estimate=estimate)
    term, estimate = clipping.split(point.x0, a_to)
    # At the end of the path ε has no weight, nor a meaning where there is no noise.
    update = term + direction * point.epsilon if direction else term
    return step_at(point, update, noise_coef=noise, estimate=estimate)


def ddim(schedule: NoiseSchedule, steps: int) -> StepTable:
    """`ddim_step` along the chain.

    Reads eta (0), use_clipped_model_output (false), timesteps, and with the defaults of diffusers'
    DDIMScheduler timestep_spacing, steps_offset, set_alpha_to_one, rescale_betas_zero_snr, clip_sample (which
    clips x₀ unless the config says otherwise), clip_sample_range, thresholding, dynamic_thresholding_ratio
    and sample_max_value.
    """
    settings = schedule.settings("ddim")
    eta = settings.number("eta", 0.0)
    clipping = read_clipping(settings, clip_sample=True)
    clipped_epsilon = settings.flag("use_clipped_model_output", False)
    chain = read_chain(settings, schedule, "ddim", set_alpha_to_one=True)
    timesteps = chain_timesteps(settings, schedule, steps)
    ends = following_timesteps(settings, schedule, timesteps, steps)
    rows = [
        ddim_step(chain.at(t), chain.at(end), eta, clipping, clipped_epsilon=clipped_epsilon)
        for t, end in zip(timesteps, ends, strict=True)
    ]
    return StepTable("ddim", tuple(rows))


def ddim_inverse(schedule: NoiseSchedule, steps: int) -> StepTable:
    """From a clean sample to the noise that DDIM makes it from: section 4.3 of the paper, the ODE backwards.

    The loop starts with the clean latents in place of noise. As in diffusers' DDIMInverseScheduler, whose
    options are read, the denoiser is told the timestep of the level that a step leads to; with
    set_alpha_to_one the first step starts without noise.
    """
    settings = schedule.settings("ddim_inverse")
    clipping = read_clipping(settings, clip_sample=True)
    chain = read_chain(settings, schedule, "ddim_inverse", set_alpha_to_one=True)
    timesteps = chain_timesteps(settings, schedule, steps, spacings=("leading", "trailing"))
    # The steps of DDIM from last to first, each from its end to its beginning.
    starts = following_timesteps(settings, schedule, timesteps, steps)
    if chain.level(starts[-1]) == 1 and schedule.prediction is Prediction.SAMPLE:
        raise InputError(
            "sampler 'ddim_inverse' cannot use prediction_type='sample' with set_alpha_to_one=True: there is "
            "no noise to predict at the first step; set set_alpha_to_one to false"
        )
    rows = [
        ddim_step(chain.at(start, told=t), chain.at(t), clipping=clipping)
        for start, t in zip(reversed(starts), reversed(timesteps), strict=True)
    ]
    return StepTable("ddim_inverse", tuple(rows))


def ddim_cogvideox(schedule: NoiseSchedule, steps: int) -> StepTable:
    """DDIM on the chain of CogVideoX, whose signal-to-noise ratio is divided by snr_shift_scale.

    Reads the options of diffusers' CogVideoXDDIMScheduler, which has keys for clipping but never clips.
    """
    settings = schedule.settings("ddim_cogvideox")
    settings.unused("clip_sample", "clip_sample_range", "sample_max_value")
    chain = read_shifted_chain(settings, schedule, "ddim_cogvideox")
    timesteps = chain_timesteps(settings, schedule, steps)
    ends = following_timesteps(settings, schedule, timesteps, steps)
    rows = [ddim_step(chain.at(t), chain.at(end)) for t, end in zip(timesteps, ends, strict=True)]
    return StepTable("ddim_cogvideox", tuple(rows))


SAMPLERS = (
    Sampler(
        "ddim",
        ddim,
        order=1,
        evaluations=1,
        stochastic=False,
        paper=_PAPER,
        classes=("DDIMScheduler", "DDIMParallelScheduler"),
    ),
    Sampler(
        "ddim_inverse",
        ddim_inverse,
        order=1,
        evaluations=1,
        stochastic=False,
        paper=_PAPER,
        classes=("DDIMInverseScheduler",),
        inverse=True,
    ),
    Sampler(
        "ddim_cogvideox",
        ddim_cogvideox,
        order=1,
        evaluations=1,
        stochastic=False,
        paper=_PAPER,
        classes=("CogVideoXDDIMScheduler",),
    ),
)
