"""What a call needs before anything runs: its sampler's steps, its noise."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastdiff.config import ModelSpec
from fastdiff.errors import InputError
from fastdiff.request import Request
from fastdiff.samplers import (
    AdaptiveRun,
    Guidance,
    NoiseSchedule,
    NoiseSource,
    StepTable,
    find_sampler,
    make_adaptive,
    make_table,
    sampler_of,
)
from fastdiff.samplers.part import WHOLE, Part

__all__ = ["call_table", "default_sampler", "unit_noise"]

Array = NDArray[np.float32]


def default_sampler(scheduler: Mapping[str, Any]) -> str:
    """The sampler that a checkpoint's scheduler config names. Raises InputError when there is none."""
    name = sampler_of(scheduler)
    if name is None:
        raise InputError(
            f"the checkpoint's own scheduler, {scheduler.get('_class_name')}, has no sampler here: "
            "choose one; fastdiff samplers lists all"
        )
    return name


def call_table(
    schedule: NoiseSchedule, request: Request, given_latents: bool, part: Part = WHOLE
) -> StepTable | AdaptiveRun:
    """The sampler's table for a call, or what runs a sampler that chooses its own steps.

    ``given_latents``: the call has latents to start from. ``part``: which of the steps it runs. Raises
    InputError, also for guidance that the sampler cannot have.
    """
    sampler = find_sampler(request.sampler)
    schedule = schedule.as_class(sampler.classes[0] if sampler.classes else None)
    if sampler.inverse and not given_latents:
        raise InputError(
            f"sampler {request.sampler!r} leads from a picture to noise: give the picture's latents"
        )
    if sampler.adaptive is None:
        table = make_table(
            request.sampler, schedule, request.steps, eta=request.eta, options=request.options, part=part
        )
        if isinstance(request.guidance, Guidance):
            request.guidance.check(table)
        return table
    if part != WHOLE:
        raise InputError(
            f"sampler {request.sampler!r} chooses its own steps, none of which can be left out; use one "
            "such as 'euler', 'ddim' or 'dpmpp_2m'"
        )
    if isinstance(request.guidance, Guidance):
        raise InputError(
            f"sampler {request.sampler!r} chooses its own steps and takes guidance as a scale alone, found a "
            "method, schedule, interval or rescale; leave them out or use another sampler"
        )
    eta = {} if request.eta is None else {"eta": request.eta}
    return make_adaptive(request.sampler, schedule, options={**request.options, **eta})


def unit_noise(model: ModelSpec, request: Request, given: Any, source: NoiseSource) -> Array:
    """Noise of unit variance, [pictures, channels, h, w] float32: ``given``, or drawn where that is None.

    Raises InputError for given noise of another shape or kind.
    """
    factor = model.vae_scale_factor
    shape = (request.pictures, model.latent_channels, request.height // factor, request.width // factor)
    if given is None:
        return source.randn(shape)
    latents = np.asarray(given)
    if latents.shape != shape or latents.dtype.kind != "f":
        raise InputError(
            f"latents are {latents.dtype} {list(latents.shape)}: they must be float32 {list(shape)} for "
            f"{request.pictures} pictures of {request.height} x {request.width}"
        )
    if not np.isfinite(latents).all():
        raise InputError("latents hold NaN or infinity: give finite noise")
    return np.ascontiguousarray(latents, dtype=np.float32)
