"""The noise levels of solvers that work on x = x₀ + σ·ε, the form of Karras et al., "Elucidating the Design
Space of Diffusion-Based Generative Models".
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from fastdiff.errors import InputError
from fastdiff.samplers.edm_path import Family, Preconditioning, edm_levels, family_of
from fastdiff.samplers.path import Point
from fastdiff.samplers.placement import given_sigmas, given_timesteps, placed_sigmas, sigma_spacing
from fastdiff.samplers.prediction import Prediction
from fastdiff.samplers.schedule import NoiseSchedule
from fastdiff.samplers.settings import Settings
from fastdiff.samplers.spacing import SPACINGS, sigma_to_timestep, spaced_timesteps

__all__ = ["SigmaPath", "sigma_path"]

Float64 = NDArray[np.float64]


@dataclass(frozen=True)
class SigmaPath:
    """Where a sampler's steps begin and end.

    points            one per step and the last one; alpha is 1
    init_noise_sigma  the first sample is this times unit noise
    at                the point of any other noise level, for stages between the points
    begin             how many steps were left out before the first point
    """

    points: tuple[Point, ...]
    init_noise_sigma: float
    at: Callable[[float], Point]
    begin: int = 0

    @property
    def total(self) -> int:
        """How many steps the whole way has."""
        return self.begin + len(self.points) - 1

    def part(self, settings: Settings) -> SigmaPath:
        """The part that the call asks for."""
        begin = settings.begin([point.timestep for point in self.points[:-1]])
        return replace(self, points=self.points[begin:], begin=begin)


def sigma_path(
    schedule: NoiseSchedule,
    settings: Settings,
    steps: int,
    *,
    spacing: str | None = None,
    round_karras: bool = False,
    edm: Family | None = None,
) -> SigmaPath:
    """The path of ``steps`` steps for the config's denoiser.

    For a denoiser that was trained on a chain of timesteps: reads rescale_betas_zero_snr, timestep_spacing,
    steps_offset, interpolation_type, timestep_type, sigma_spacing or diffusers' flags (use_karras_sigmas …),
    sigma_min, sigma_max and rho for these, timesteps, sigmas and final_sigmas_type, with the defaults of
    diffusers' EulerDiscreteScheduler. Timesteps and levels are rounded to float32 as there. Denoisers with
    EDM's preconditioning (`edm_path`) read the options there.

    ``spacing`` is the spacing of the levels that is used unless the config has one, ``round_karras`` rounds
    the timesteps of Karras' levels, ``edm`` takes the denoiser for one of that family whatever the config.
    Raises `InputError` for options that contradict each other.
    """
    edm = edm or family_of(schedule, settings)
    if edm is not None:
        return _edm_path(settings, steps, edm)

    train_sigmas = schedule.sigmas(zero_terminal_snr=settings.flag("rescale_betas_zero_snr", False))
    # diffusers reads "continuous" for v alone, as EDM's c_noise; other predictions keep their timesteps.
    continuous = settings.choice("timestep_type", "discrete", ("discrete", "continuous")) == "continuous"
    continuous = continuous and schedule.prediction is Prediction.V

    def point(timestep: float, sigma: float) -> Point:
        if continuous:
            timestep = math.log(sigma) / 4 if sigma else 0.0
        rounded = float(np.float32(timestep))
        return Point(rounded, 1.0, sigma, schedule.prediction, 1 / math.sqrt(sigma**2 + 1))

    def at(sigma: float) -> Point:
        return point(float(sigma_to_timestep(np.array([sigma]), train_sigmas)[0]), sigma)

    # Without a spacing of the levels these change nothing, in diffusers neither.
    settings.unused("sigma_min", "sigma_max", "rho")
    timesteps, sigmas = _levels(schedule, settings, train_sigmas, steps, spacing, round_karras)
    if len(sigmas) == steps:
        to_zero = settings.choice("final_sigmas_type", "zero", ("zero", "sigma_min")) == "zero"
        sigmas = np.append(sigmas, 0.0 if to_zero else min(sigmas[-1], train_sigmas[0]))
    levels = [float(sigma) for sigma in sigmas.astype(np.float32)]
    points = [point(float(t), sigma) for t, sigma in zip(timesteps, levels, strict=False)]
    # The training samples at level σ have variance σ² + 1; diffusers leaves out the 1 for the spacings that
    # start at the last timestep. Rounded as there, so that the first latents are the same.
    start = np.float32(max(levels))
    if settings.choice("timestep_spacing", "linspace", SPACINGS) == "leading":
        start = np.sqrt(np.square(start) + np.float32(1))
    return SigmaPath((*points, at(levels[-1])), float(start), at).part(settings)


def _edm_path(settings: Settings, steps: int, family: Family) -> SigmaPath:
    preconditioning = Preconditioning.read(settings, family)
    levels = edm_levels(settings, steps, family)
    points = tuple(preconditioning.at(sigma) for sigma in levels)
    # As in diffusers' classes for these denoisers.
    return SigmaPath(points, math.sqrt(levels[0] ** 2 + 1), preconditioning.at).part(settings)


def _levels(
    schedule: NoiseSchedule,
    settings: Settings,
    train_sigmas: NDArray[np.float32],
    steps: int,
    spacing: str | None,
    round_karras: bool,
) -> tuple[Float64, Float64]:
    """Timesteps [steps], and noise levels [steps], or [steps + 1] where these have an end of their own."""
    asked = sigma_spacing(settings)
    sigmas, timesteps = given_sigmas(settings, steps), given_timesteps(settings, steps)
    if timesteps is not None and (sigmas is not None or asked):
        other = "sigmas" if sigmas is not None else f"the spacing {asked!r} of noise levels"
        raise InputError(f"timesteps and {other} are set; keep one")
    if sigmas is not None:
        if sigmas[-1] <= 0:
            raise InputError("sigmas ends with 0, where no step can start; leave it out, 0 is appended")
        return sigma_to_timestep(sigmas, train_sigmas), sigmas

    train_steps = schedule.num_train_timesteps
    if timesteps is None:
        kind = settings.choice("timestep_spacing", "linspace", SPACINGS)
        offset = settings.integer("steps_offset", 0, minimum=0)
        timesteps = spaced_timesteps(kind, train_steps, steps, offset)
        asked = asked or spacing
    elif timesteps[0] > train_steps - 1:
        raise InputError(f"timesteps starts at {timesteps[0]:g}, wanted at most {train_steps - 1}")
    timesteps = timesteps.astype(np.float32).astype(np.float64)
    if settings.choice("interpolation_type", "linear", ("linear", "log_linear")) == "linear":
        sigmas = np.interp(timesteps, np.arange(train_steps), train_sigmas)
    else:
        # diffusers' way: one level more than steps from the highest to the lowest of the training, whatever
        # the timesteps, so that sampling ends at the lowest one and not at 0.
        sigmas = np.exp(np.linspace(np.log(train_sigmas[-1]), np.log(train_sigmas[0]), steps + 1))
    if asked is None:
        return timesteps, sigmas

    low, high = (
        settings.number(key, 0.0) if settings.is_set(key) else float(spaced)
        for key, spaced in (("sigma_min", sigmas[-1]), ("sigma_max", sigmas[0]))
    )
    if not 0 < low <= high < math.inf:
        raise InputError(f"sigma_min is {low:g} and sigma_max is {high:g}, wanted 0 < sigma_min <= sigma_max")
    sigmas = placed_sigmas(settings, asked, low, high, steps)
    timesteps = sigma_to_timestep(sigmas, train_sigmas)
    return (timesteps.round() if round_karras and asked == "karras" else timesteps), sigmas
