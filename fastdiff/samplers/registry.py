"""The samplers by name."""

from __future__ import annotations

import difflib
import operator
from collections.abc import Mapping

from fastdiff.errors import InputError
from fastdiff.samplers.ddim import ddim
from fastdiff.samplers.dpmpp import dpmpp_2m
from fastdiff.samplers.euler import euler
from fastdiff.samplers.pndm import pndm
from fastdiff.samplers.schedule import NoiseSchedule
from fastdiff.samplers.table import StepTable

__all__ = ["SAMPLERS", "make_table", "sampler_of"]

_FAMILIES = {"ddim": ddim, "dpmpp_2m": dpmpp_2m, "euler": euler, "pndm": pndm}
SAMPLERS = tuple(_FAMILIES)

_DIFFUSERS_CLASSES = {
    "DDIMScheduler": "ddim",
    "DPMSolverMultistepScheduler": "dpmpp_2m",
    "EulerDiscreteScheduler": "euler",
    "PNDMScheduler": "pndm",
}


def sampler_of(config: Mapping[str, object]) -> str | None:
    """The sampler for the diffusers class named in a ``scheduler_config.json``; None where there is none."""
    return _DIFFUSERS_CLASSES.get(str(config.get("_class_name")))


def make_table(name: str, schedule: NoiseSchedule, steps: int, *, eta: float = 0.0) -> StepTable:
    """The table of sampler ``name``, one of `SAMPLERS`, for ``steps`` steps.

    ``steps`` is 1 to the number of training timesteps. ``eta``, 0 to 1, is the share of fresh noise in DDIM;
    other samplers take only 0. Raises `InputError` for an unknown name (with near matches), for a step count
    or an eta that cannot be used, and for a setting of the scheduler config that is not supported.
    """
    if name not in _FAMILIES:
        near = difflib.get_close_matches(str(name).lower(), SAMPLERS, n=3, cutoff=0.4)
        hint = f"did you mean {' or '.join(near)}? " if near else ""
        raise InputError(f"unknown sampler {name!r}; {hint}available: {', '.join(SAMPLERS)}")
    train_steps = schedule.num_train_timesteps
    if isinstance(steps, bool) or not hasattr(steps, "__index__"):
        raise InputError(f"steps is {steps!r}, wanted an integer from 1 to {train_steps}")
    steps = operator.index(steps)
    if not 1 <= steps <= train_steps:
        raise InputError(
            f"steps is {steps}, wanted 1 to {train_steps}, the number of timesteps of the training"
        )
    if not 0 <= eta <= 1:
        raise InputError(f"eta is {eta}, wanted 0 to 1")
    if eta and name != "ddim":
        raise InputError(f"eta is {eta}, but sampler {name!r} adds no noise; use eta 0 or sampler 'ddim'")

    try:
        table = ddim(schedule, steps, eta) if name == "ddim" else _FAMILIES[name](schedule, steps)
        finite = table.is_finite()
    except ZeroDivisionError:
        finite = False
    if not finite:
        raise InputError(
            f"sampler {name!r} has no finite coefficients for {steps} steps of this scheduler config; "
            "use another step count or sampler"
        )
    return table
