"""The discrete chain of a checkpoint as points: where DDPM, DDIM, PNDM and distilled models step."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from fastdiff.errors import InputError
from fastdiff.samplers.betas import shift_snr, unrounded_scaled_linear, zero_terminal_alpha_bar
from fastdiff.samplers.path import Point
from fastdiff.samplers.placement import given_timesteps
from fastdiff.samplers.prediction import Prediction
from fastdiff.samplers.schedule import NoiseSchedule
from fastdiff.samplers.settings import Settings
from fastdiff.samplers.spacing import SPACINGS, spaced_timesteps

__all__ = [
    "Chain",
    "chain_timesteps",
    "following_timesteps",
    "given_indices",
    "read_chain",
    "read_shifted_chain",
]


@dataclass(frozen=True)
class Chain:
    """The levels of the training timesteps: x_t = √ᾱ_t·x₀ + √(1 − ᾱ_t)·ε.

    alpha_bar   ᾱ by timestep
    final       ᾱ before the first timestep, where sampling ends
    prediction  what the denoiser's output means
    """

    alpha_bar: Sequence[float]
    final: float
    prediction: Prediction

    def level(self, timestep: int) -> float:
        """ᾱ at ``timestep``; below 0 it is the final one."""
        return self.alpha_bar[timestep] if timestep >= 0 else self.final

    def at(self, timestep: int, *, told: int | None = None) -> Point:
        """The point of ``timestep``, or the end where it is below 0; the denoiser is told ``told``."""
        alpha_bar = self.level(timestep)
        told = max(timestep, 0) if told is None else told
        return Point(float(told), math.sqrt(alpha_bar), math.sqrt(1 - alpha_bar), self.prediction)


def read_chain(
    settings: Settings, schedule: NoiseSchedule, sampler: str, *, set_alpha_to_one: bool | None = None
) -> Chain:
    """The chain as the options rescale_betas_zero_snr and set_alpha_to_one say.

    ``set_alpha_to_one`` is that key's default: whether sampling ends without noise or at the level of
    timestep 0; None is for classes without the key, which end without noise. Raises `InputError` for ε or
    score where the last timestep has no signal to take noise from.
    """
    zero_terminal_snr = _zero_terminal_snr(settings, schedule, sampler)
    alpha_bar = [float(a) for a in schedule.alphas_cumprod(zero_terminal_snr=zero_terminal_snr)]
    to_one = set_alpha_to_one is None or settings.flag("set_alpha_to_one", set_alpha_to_one)
    return Chain(alpha_bar, 1.0 if to_one else alpha_bar[0], schedule.prediction)


def read_shifted_chain(settings: Settings, schedule: NoiseSchedule, sampler: str) -> Chain:
    """The chain of CogVideoX: its signal-to-noise ratio is divided by the option snr_shift_scale (3).

    diffusers computes it in float64 where betas are evenly spaced in √β. Otherwise as `read_chain`.
    """
    zero_terminal_snr = _zero_terminal_snr(settings, schedule, sampler)
    scale = settings.positive("snr_shift_scale", 3.0)
    exact = unrounded_scaled_linear(schedule.betas)
    alpha_bar = shift_snr(schedule.alphas_cumprod() if exact is None else np.cumprod(1 - exact), scale)
    if zero_terminal_snr:
        alpha_bar = zero_terminal_alpha_bar(alpha_bar)
    levels = [float(a) for a in alpha_bar]
    final = 1.0 if settings.flag("set_alpha_to_one", True) else levels[0]
    return Chain(levels, final, schedule.prediction)


def _zero_terminal_snr(settings: Settings, schedule: NoiseSchedule, sampler: str) -> bool:
    zero_terminal_snr = settings.flag("rescale_betas_zero_snr", False)
    if zero_terminal_snr and schedule.prediction in (Prediction.EPSILON, Prediction.SCORE):
        raise InputError(
            f"sampler {sampler!r} cannot use prediction_type={schedule.prediction.value!r} with "
            "rescale_betas_zero_snr=True, which leaves no signal at the first step; use sampler 'euler' or "
            "'dpmpp_2m'"
        )
    return zero_terminal_snr


def chain_timesteps(
    settings: Settings,
    schedule: NoiseSchedule,
    steps: int,
    *,
    spacing: str = "leading",
    spacings: tuple[str, ...] = SPACINGS,
    whole: bool = False,
) -> list[int]:
    """The timesteps that are visited, decreasing: those of the part that a call asks for, unless ``whole``.

    Reads timestep_spacing, whose default is ``spacing`` and which may be one of ``spacings``, steps_offset
    and, in their place, timesteps. Raises `InputError` for timesteps that the model was not trained on.
    """
    train_steps = schedule.num_train_timesteps
    spacing = settings.choice("timestep_spacing", spacing, spacings)
    offset = settings.integer("steps_offset", 0, minimum=0)
    given = given_indices(settings, train_steps, steps)
    timesteps = given
    if timesteps is None:
        timesteps = [int(t) for t in spaced_timesteps(spacing, train_steps, steps, offset).round()]
    return timesteps if whole else timesteps[settings.begin(timesteps) :]


def given_indices(settings: Settings, train_steps: int, steps: int) -> list[int] | None:
    """The option timesteps as training timesteps, one per step, decreasing; None without the option.

    Raises `InputError` for timesteps that the model was not trained on.
    """
    given = given_timesteps(settings, steps)
    if given is None:
        return None
    for timestep in given:
        if timestep != int(timestep) or timestep >= train_steps:
            raise InputError(
                f"timesteps has {timestep:g}, wanted integers from 0 to {train_steps - 1}, on which the "
                "model was trained; correct timesteps"
            )
    return [int(t) for t in given]


def following_timesteps(
    settings: Settings, schedule: NoiseSchedule, timesteps: Sequence[int], steps: int
) -> list[int]:
    """Where each step ends, −1 for the end of the path.

    diffusers' DDIM and PNDM always go down by T // steps, so that with other spacings than "leading" a step
    may end beside the timestep of the next; given timesteps are followed exactly.
    """
    if settings.is_set("timesteps"):
        return [*timesteps[1:], -1]
    return [t - schedule.num_train_timesteps // steps for t in timesteps]
