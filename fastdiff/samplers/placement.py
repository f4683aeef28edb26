"""The options that say where a sampler's steps lie, shared by all samplers that take noise levels."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from fastdiff.errors import InputError
from fastdiff.samplers.settings import Settings
from fastdiff.samplers.spacing import (
    ALIGN_YOUR_STEPS,
    align_your_steps,
    beta_sigmas,
    exponential_sigmas,
    karras_sigmas,
    log_snr_sigmas,
    polyexponential_sigmas,
)

__all__ = ["SIGMA_SPACINGS", "given_sigmas", "given_timesteps", "placed_sigmas", "sigma_spacing"]

Float64 = NDArray[np.float64]

SIGMA_SPACINGS = ("karras", "exponential", "polyexponential", "beta", "log_snr", "align_your_steps")
_FLAGS = {
    "use_karras_sigmas": "karras",
    "use_exponential_sigmas": "exponential",
    "use_beta_sigmas": "beta",
    "use_lu_lambdas": "log_snr",
}


def sigma_spacing(settings: Settings) -> str | None:
    """The spacing of noise levels that is asked for, one of `SIGMA_SPACINGS`; None where timesteps lead.

    Read from ``sigma_spacing`` or from diffusers' flags, such as ``use_karras_sigmas``. Raises `InputError`
    for two at once.
    """
    asked = [name for flag, name in _FLAGS.items() if settings.flag(flag, False)]
    if settings.is_set("sigma_spacing"):
        asked.append(settings.choice("sigma_spacing", "karras", SIGMA_SPACINGS))
    if len(set(asked)) > 1:
        raise InputError(f"two spacings of the noise levels are set, {asked[0]} and {asked[1]}; keep one")
    return asked[0] if asked else None


def placed_sigmas(
    settings: Settings, spacing: str, sigma_min: float, sigma_max: float, steps: int
) -> Float64:
    """``steps`` levels from ``sigma_max`` down to ``sigma_min`` by ``spacing``, one of `SIGMA_SPACINGS`.

    Reads ``rho`` for "karras" (7) and "polyexponential" (1), and ``align_your_steps`` for the model whose
    table to take ("sd15"), which has levels of its own.
    """
    match spacing:
        case "karras":
            return karras_sigmas(sigma_min, sigma_max, steps, settings.positive("rho", 7.0))
        case "exponential":
            return exponential_sigmas(sigma_min, sigma_max, steps)
        case "polyexponential":
            return polyexponential_sigmas(sigma_min, sigma_max, steps, settings.positive("rho", 1.0))
        case "beta":
            return beta_sigmas(sigma_min, sigma_max, steps)
        case "log_snr":
            return log_snr_sigmas(sigma_min, sigma_max, steps)
        case _:
            model = settings.choice("align_your_steps", "sd15", tuple(ALIGN_YOUR_STEPS))
            return align_your_steps(model, steps)


def given_sigmas(settings: Settings, steps: int) -> Float64 | None:
    """The noise levels of option ``sigmas``, one per step, without the last; None without the option."""
    return _given(settings, "sigmas", steps)


def given_timesteps(settings: Settings, steps: int) -> Float64 | None:
    """The timesteps of option ``timesteps``, one per step; None without the option."""
    return _given(settings, "timesteps", steps)


def _given(settings: Settings, key: str, steps: int) -> Float64 | None:
    values = settings.numbers(key)
    if values is None:
        return None
    if len(values) != steps:
        raise InputError(
            f"steps is {steps}, but {key} has {len(values)} entries; ask for {len(values)} steps"
        )
    if any(later >= earlier for earlier, later in pairwise(values)):
        raise InputError(f"{key} is {list(values)}, wanted numbers that decrease; sort them")
    if values[-1] < 0:
        raise InputError(f"{key} ends with {values[-1]:g}, wanted 0 or more")
    return np.array(values, dtype=np.float64)
