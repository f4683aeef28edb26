"""Denoisers that are preconditioned as in Karras et al., "Elucidating the Design Space of Diffusion-Based
Generative Models", and the noise levels that they are sampled at.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from fastdiff.errors import InputError
from fastdiff.samplers.path import Point
from fastdiff.samplers.placement import SIGMA_SPACINGS, given_sigmas, placed_sigmas, sigma_spacing
from fastdiff.samplers.prediction import Linear, Prediction
from fastdiff.samplers.schedule import NoiseSchedule
from fastdiff.samplers.settings import Settings

__all__ = ["EDM", "STABLE_AUDIO", "Family", "Preconditioning", "edm_levels", "family_of"]


@dataclass(frozen=True)
class Family:
    """What checkpoints of a family use where their config says nothing.

    arctan   the network is told arctan(σ)·2/π instead of log(σ)/4
    classes  diffusers' classes that are made for them
    """

    sigma_min: float
    sigma_max: float
    sigma_data: float
    spacing: str
    prediction: str
    arctan: bool
    classes: tuple[str, ...]


EDM = Family(
    0.002, 80.0, 0.5, "karras", "epsilon", False, ("EDMEulerScheduler", "EDMDPMSolverMultistepScheduler")
)
STABLE_AUDIO = Family(
    0.3, 500.0, 1.0, "exponential", "v_prediction", True, ("CosineDPMSolverMultistepScheduler",)
)


def family_of(schedule: NoiseSchedule, settings: Settings) -> Family | None:
    """The family of the config's class; EDM for other configs with ``sigma_data``; None for the rest."""
    name = schedule.config.get("_class_name")
    named = next((family for family in (EDM, STABLE_AUDIO) if name in family.classes), None)
    return named or (EDM if settings.is_set("sigma_data") else None)


@dataclass(frozen=True)
class Preconditioning:
    """D(x; σ) = c_skip·x + c_out·F(c_in·x; c_noise): Eq. 7 and Table 1 of the paper.

    sigma_data  standard deviation of the data
    sign        −1 for networks that predict the negative of the paper's F, diffusers' "v_prediction"
    arctan      c_noise is arctan(σ)·2/π instead of log(σ)/4
    """

    sigma_data: float
    sign: float = 1.0
    arctan: bool = False

    @classmethod
    def read(cls, settings: Settings, family: Family) -> Preconditioning:
        """From sigma_data and prediction_type. Raises `InputError` for another prediction than ε and v."""
        kind = settings.choice("prediction_type", family.prediction, [kind.value for kind in Prediction])
        if kind not in ("epsilon", "v_prediction"):
            raise InputError(
                f"prediction_type is {kind!r}, wanted 'epsilon' or 'v_prediction' for a denoiser with EDM's "
                "preconditioning; correct it, or remove sigma_data"
            )
        sigma_data = settings.positive("sigma_data", family.sigma_data)
        return cls(sigma_data, -1.0 if kind == "v_prediction" else 1.0, family.arctan)

    def at(self, sigma: float) -> Point:
        """The point of level ``sigma``; its timestep is c_noise, rounded to float32 as in diffusers."""
        total = math.hypot(sigma, self.sigma_data)
        log = math.log(sigma) / 4 if sigma else 0.0
        noise = math.atan(sigma) / math.pi * 2 if self.arctan else log
        denoised = Linear((self.sigma_data / total) ** 2, self.sign * sigma * self.sigma_data / total)
        return Point(float(np.float32(noise)), 1.0, sigma, input_scale=1 / total, denoised=denoised)


def edm_levels(settings: Settings, steps: int, family: Family) -> list[float]:
    """The noise levels of the steps and the last one, ``steps`` + 1, float32 values as in diffusers.

    Reads sigma_min, sigma_max, sigma_schedule or the options of `placement`, rho, sigmas and
    final_sigmas_type. Raises `InputError` where sigma_min is above sigma_max.
    """
    low = settings.positive("sigma_min", family.sigma_min)
    high = settings.positive("sigma_max", family.sigma_max)
    if low > high:
        raise InputError(f"sigma_min is {low:g}, wanted at most sigma_max, {high:g}")
    settings.unused("rho", "sigma_schedule")  # by other spacings, and with levels that are given
    sigmas = given_sigmas(settings, steps)
    if sigmas is None:
        named = settings.choice("sigma_schedule", family.spacing, SIGMA_SPACINGS)
        sigmas = placed_sigmas(settings, sigma_spacing(settings) or named, low, high, steps)
    elif sigmas[-1] <= 0:
        raise InputError("sigmas ends with 0, where no step can start; leave it out, 0 is appended")
    to_zero = settings.choice("final_sigmas_type", "zero", ("zero", "sigma_min")) == "zero"
    last = 0.0 if to_zero else min(low, float(sigmas[-1]))
    return [float(sigma) for sigma in np.append(sigmas, last).astype(np.float32)]
