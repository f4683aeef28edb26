"""Where the steps of a sampler lie: which timesteps, or which noise levels, it visits.

Levels are those of Karras et al., σ = noise/signal, from ``sigma_max`` down to ``sigma_min``, both included;
samplers append the last level, mostly 0, themselves. λ = −log σ.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from fastdiff.errors import InputError
from fastdiff.samplers.beta_quantile import beta_quantiles

__all__ = [
    "ALIGN_YOUR_STEPS",
    "SPACINGS",
    "align_your_steps",
    "beta_sigmas",
    "exponential_sigmas",
    "karras_sigmas",
    "log_snr_sigmas",
    "polyexponential_sigmas",
    "sigma_to_timestep",
    "spaced_timesteps",
]

Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]

SPACINGS = ("leading", "trailing", "linspace")

ALIGN_YOUR_STEPS = {
    "sd15": (14.615, 6.475, 3.861, 2.697, 1.886, 1.396, 0.963, 0.652, 0.399, 0.152, 0.029),
    "sdxl": (14.615, 6.315, 3.771, 2.181, 1.342, 0.862, 0.555, 0.380, 0.234, 0.113, 0.029),
    "svd": (700.00, 54.5, 15.886, 7.977, 4.248, 1.789, 0.981, 0.403, 0.173, 0.034, 0.002),
}
"""Levels that Sabour et al., "Align Your Steps: Optimizing Sampling Schedules in Diffusion Models", found for
10 steps of Stable Diffusion 1.5, SDXL and Stable Video Diffusion, the last of them before 0."""


def spaced_timesteps(
    spacing: str, num_train_timesteps: int, steps: int, offset: int, *, span: int | None = None
) -> Float64:
    """Timesteps in descending order, float64 [steps]; Table 2 of Lin et al.

    "leading"   multiples of T // steps, plus ``offset``
    "trailing"  rounded multiples of T / steps counted down from T, minus 1
    "linspace"  evenly from T − 1 to 0, not rounded

    ``span`` replaces T as the place to start from; "trailing" then gives fewer than ``steps`` timesteps.
    Raises `InputError` when the model was not trained on one of the timesteps.
    """
    span = num_train_timesteps if span is None else span
    match spacing:
        case "leading":
            timesteps = np.arange(steps, dtype=np.float64)[::-1] * (span // steps) + offset
        case "trailing":
            # arange may add one element too many by rounding, which would be timestep -1.
            down = np.arange(span, 0, -num_train_timesteps / steps, dtype=np.float64)[:steps]
            timesteps = down.round() - 1
        case "linspace":
            timesteps = np.linspace(0, span - 1, steps)[::-1]
        case _:
            raise InputError(f"timestep spacing {spacing!r} is unknown; use one of {', '.join(SPACINGS)}")
    for timestep in (timesteps[0], timesteps[-1]):
        if not 0 <= timestep < num_train_timesteps:
            raise InputError(
                f"{steps} steps with timestep_spacing={spacing!r} and steps_offset={offset} visit timestep "
                f"{timestep:g}, but the model was trained on 0 to {num_train_timesteps - 1}; use fewer steps"
            )
    return timesteps


def karras_sigmas(sigma_min: float, sigma_max: float, steps: int, rho: float = 7.0) -> Float64:
    """Evenly in σ^(1/ρ), float64 [steps]; Karras et al., Eq. 5."""
    ramp = np.linspace(0, 1, steps)
    low, high = sigma_min ** (1 / rho), sigma_max ** (1 / rho)
    return np.asarray((high + ramp * (low - high)) ** rho, dtype=np.float64)


def exponential_sigmas(sigma_min: float, sigma_max: float, steps: int) -> Float64:
    """Evenly in log σ, float64 [steps]."""
    return np.exp(np.linspace(math.log(sigma_max), math.log(sigma_min), steps))


def log_snr_sigmas(sigma_min: float, sigma_max: float, steps: int) -> Float64:
    """Evenly in λ, the steps of Lu et al., "DPM-Solver", section 3.3: `exponential_sigmas`."""
    return exponential_sigmas(sigma_min, sigma_max, steps)


def polyexponential_sigmas(sigma_min: float, sigma_max: float, steps: int, rho: float = 1.0) -> Float64:
    """As the ``rho``-th power of an even ramp in log σ, float64 [steps]; k-diffusion's. 1 is exponential."""
    ramp = np.linspace(1, 0, steps) ** rho
    return np.asarray(np.exp(ramp * math.log(sigma_max / sigma_min) + math.log(sigma_min)), dtype=np.float64)


def beta_sigmas(
    sigma_min: float, sigma_max: float, steps: int, alpha: float = 0.6, beta: float = 0.6
) -> Float64:
    """At quantiles of a beta distribution between the ends, dense at both, float64 [steps].

    Lee et al., "Beta Sampling is All You Need".
    """
    ramp = beta_quantiles(1 - np.linspace(0, 1, steps), alpha, beta)
    return np.asarray(sigma_min + ramp * (sigma_max - sigma_min), dtype=np.float64)


def align_your_steps(model: str, steps: int) -> Float64:
    """The levels of `ALIGN_YOUR_STEPS`, interpolated evenly in log σ to another count, float64 [steps].

    Raises `InputError` for a model that has no table.
    """
    if model not in ALIGN_YOUR_STEPS:
        raise InputError(f"no steps for model {model!r}; use one of {', '.join(ALIGN_YOUR_STEPS)}")
    levels = np.log(ALIGN_YOUR_STEPS[model])
    at = np.linspace(0, 1, steps + 1)[:-1]
    return np.exp(np.interp(at, np.linspace(0, 1, len(levels)), levels))


def sigma_to_timestep(sigma: Float64, sigmas: Float32) -> Float64:
    """The fractional timesteps at which the training schedule ``sigmas`` has the noise levels ``sigma``.

    Linear in log σ between neighbours, clamped to the schedule's ends. ``sigmas`` is increasing.
    """
    log_sigma, log_sigmas = np.log(np.maximum(sigma, 1e-10)), np.log(sigmas)
    low = np.clip(np.searchsorted(log_sigmas, log_sigma, side="right") - 1, 0, len(sigmas) - 2)
    weight = (log_sigmas[low] - log_sigma) / (log_sigmas[low] - log_sigmas[low + 1])
    weight = np.clip(weight, 0, 1)
    return np.asarray((1 - weight) * low + weight * (low + 1), dtype=np.float64)
