"""DDPM ancestral sampling: Ho, Jain and Abbeel, "Denoising Diffusion Probabilistic Models", on all timesteps
of the chain or on some of them, which are then a chain of their own: Nichol and Dhariwal, "Improved Denoising
Diffusion Probabilistic Models", section 4.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from fastdiff.errors import InputError
from fastdiff.samplers.chain import Chain, chain_timesteps, read_chain
from fastdiff.samplers.clipping import NO_CLIPPING, Clipping, read_clipping
from fastdiff.samplers.prediction import Linear, Prediction
from fastdiff.samplers.sampler import Sampler
from fastdiff.samplers.schedule import NoiseSchedule
from fastdiff.samplers.table import Step, StepTable, Variance, step_at

__all__ = ["SAMPLERS", "VARIANCE_TYPES", "ancestral", "ddpm", "unclip"]

VARIANCE_TYPES = (
    "fixed_small",
    "fixed_small_log",
    "fixed_large",
    "fixed_large_log",
    "learned",
    "learned_range",
)
_LEARNED = ("learned", "learned_range")
_LEAST_VARIANCE = 1e-20  # diffusers': keeps logarithms finite


def ancestral(
    chain: Chain,
    timesteps: Sequence[int],
    variance_type: str = "fixed_small",
    clipping: Clipping = NO_CLIPPING,
    betas: Sequence[float] | None = None,
) -> list[Step]:
    """Draw from q(x' | x, x₀) with the predicted x₀: mean by Eq. 7 of Ho et al., and β̃ (small) or β (large)
    as variance, or what the model predicts between them, Eq. 15 of Nichol and Dhariwal.

    The step from timestep 0 draws nothing, whatever it leads to. ``betas`` of the chain are taken for steps
    from a timestep to the one below; otherwise β = 1 − ᾱ/ᾱ'.
    """
    rows = []
    for t, end in pairwise((*timesteps, -1)):
        a_bar, a_bar_to = chain.level(t), chain.level(end)
        beta = betas[t] if betas is not None and end == t - 1 else 1 - a_bar / a_bar_to
        share = beta / (1 - a_bar)
        small = max((1 - a_bar_to) * share, _LEAST_VARIANCE)
        point = chain.at(t)
        mean, estimate = clipping.split(point.x0, math.sqrt(a_bar_to) * share)
        update = Linear(math.sqrt(1 - beta) * (1 - a_bar_to) / (1 - a_bar), 0.0) + mean
        noise, variance = None, None
        if t > 0:
            noise, variance = _noise(variance_type, small, beta)
        rows.append(step_at(point, update, noise_coef=noise, estimate=estimate, variance=variance))
    return rows


def _noise(variance_type: str, small: float, large: float) -> tuple[float, Variance | None]:
    match variance_type:
        case "fixed_small" | "fixed_small_log":
            return math.sqrt(small), None
        case "fixed_large" | "fixed_large_log":
            return math.sqrt(large), None
        case "learned":
            return 1.0, Variance()
        case _:
            return 1.0, Variance(math.log(small), math.log(large))


def ddpm(schedule: NoiseSchedule, steps: int) -> StepTable:
    """`ancestral` on timesteps of the chain.

    Reads timesteps and, with the defaults of diffusers' DDPMScheduler, variance_type, timestep_spacing,
    steps_offset, rescale_betas_zero_snr, clip_sample (which clips x₀ unless the config says otherwise),
    clip_sample_range, thresholding, dynamic_thresholding_ratio and sample_max_value.

    variance_type "fixed_large_log" means the standard deviation exp(½·log β) and is the same as
    "fixed_large"; diffusers takes √(log β) for it, which is no number.
    """
    settings = schedule.settings("ddpm")
    variance_type = settings.choice("variance_type", "fixed_small", VARIANCE_TYPES)
    clipping = read_clipping(settings, clip_sample=True)
    chain = read_chain(settings, schedule, "ddpm")
    timesteps = chain_timesteps(settings, schedule, steps)
    rows = ancestral(chain, timesteps, variance_type, clipping)
    return StepTable("ddpm", tuple(rows), variance_channels=variance_type in _LEARNED)


def unclip(schedule: NoiseSchedule, steps: int) -> StepTable:
    """`ancestral` as unCLIP (Ramesh et al., "Hierarchical Text-Conditional Image Generation with CLIP
    Latents") has it: timesteps evenly from the last to 0.

    Reads timesteps and, with the defaults of diffusers' UnCLIPScheduler, variance_type, clip_sample and
    clip_sample_range. As in diffusers' pipeline, a step leads to the timestep of the next.
    """
    settings = schedule.settings("unclip")
    variance_type = settings.choice("variance_type", "fixed_small_log", ("fixed_small_log", "learned_range"))
    if schedule.prediction not in (Prediction.EPSILON, Prediction.SAMPLE):
        raise InputError(
            f"sampler 'unclip' cannot use prediction_type={schedule.prediction.value!r}; use sampler 'ddpm'"
        )
    clipping = read_clipping(settings, clip_sample=True)
    if steps < 2:
        raise InputError(
            f"steps is {steps}, but sampler 'unclip' wants 2 or more, from the last timestep to 0"
        )
    alpha_bar = np.asarray(schedule.alphas_cumprod(), dtype=np.float64).tolist()
    chain = Chain(alpha_bar, 1.0, schedule.prediction)
    timesteps = chain_timesteps(settings, schedule, steps, spacing="linspace")
    betas = np.asarray(schedule.betas, dtype=np.float64).tolist()
    rows = ancestral(chain, timesteps, variance_type, clipping, betas)
    return StepTable("unclip", tuple(rows), variance_channels=variance_type in _LEARNED)


SAMPLERS = (
    Sampler(
        "ddpm",
        ddpm,
        order=1,
        evaluations=1,
        stochastic=True,
        paper="Ho, Jain and Abbeel, Denoising Diffusion Probabilistic Models",
        classes=("DDPMScheduler", "DDPMParallelScheduler"),
    ),
    Sampler(
        "unclip",
        unclip,
        order=1,
        evaluations=1,
        stochastic=True,
        paper="Ramesh et al., Hierarchical Text-Conditional Image Generation with CLIP Latents",
        classes=("UnCLIPScheduler",),
    ),
)
