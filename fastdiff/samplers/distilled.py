"""The timesteps of models distilled on some of the timesteps of a chain."""

from __future__ import annotations

import numpy as np

from fastdiff.errors import InputError
from fastdiff.samplers.chain import given_indices
from fastdiff.samplers.schedule import NoiseSchedule
from fastdiff.samplers.settings import Settings

__all__ = ["distilled_timesteps"]


def distilled_timesteps(settings: Settings, schedule: NoiseSchedule, sampler: str, steps: int) -> list[int]:
    """Evenly taken out of the timesteps of the distillation, decreasing.

    Those are original_inference_steps (50) multiples of T // original_inference_steps, minus 1. ``strength``
    (1) below 1 leaves out the noisiest, for a start from a noised picture. Option timesteps gives them
    directly. Raises `InputError` for more steps than remain, and for timesteps beyond the training's.
    """
    train_steps = schedule.num_train_timesteps
    original = settings.integer("original_inference_steps", 50, minimum=1)
    strength = settings.within("strength", 1.0, 0.0, 1.0)
    given = given_indices(settings, train_steps, steps)
    if original > train_steps:
        raise InputError(
            f"scheduler config has original_inference_steps={original}, sampler {sampler!r} wants at most "
            f"{train_steps}, the number of training timesteps; correct the config"
        )
    if given is not None:
        if strength != 1:
            raise InputError(
                f"timesteps and strength={strength:g} are both set; leave strength out and give the "
                "timesteps that remain"
            )
        return given[settings.begin(given) :]
    remaining = int(original * strength)
    if steps > remaining:
        raise InputError(
            f"steps is {steps}, but sampler {sampler!r} wants at most {remaining} for "
            f"original_inference_steps={original} and strength={strength:g}; use fewer steps or "
            "raise one of them"
        )
    distillation = np.arange(remaining, 0, -1) * (train_steps // original) - 1
    places = np.floor(np.linspace(0, remaining, steps, endpoint=False)).astype(int)
    timesteps = [int(t) for t in distillation[places]]
    return timesteps[settings.begin(timesteps) :]
