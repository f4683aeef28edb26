"""What `fastdiff.samplers.registry` checks of a request and of a checkpoint's config, for every sampler."""

from __future__ import annotations

import difflib
import operator
from collections.abc import Mapping

from fastdiff.errors import InputError
from fastdiff.samplers.diffusers_keys import DIFFUSERS_KEYS, FLOW_CLASSES, FORMER_KEYS
from fastdiff.samplers.sampler import Sampler
from fastdiff.samplers.schedule import NoiseSchedule
from fastdiff.samplers.settings import short

__all__ = ["check_config", "check_part", "check_process", "check_read", "check_steps"]


def check_steps(sampler: Sampler, schedule: NoiseSchedule, steps: int) -> int:
    """``steps`` as an integer. Raises `InputError` for what is none or out of the sampler's range."""
    most = None if sampler.any_steps else schedule.num_train_timesteps
    wanted = "1 or more" if most is None else f"1 to {most}"
    if isinstance(steps, bool) or not hasattr(steps, "__index__"):
        raise InputError(f"steps is {steps!r}, wanted an integer from {wanted}")
    steps = operator.index(steps)
    if steps < 1 or (most is not None and steps > most):
        limit = "" if most is None else ", the number of timesteps of the training"
        raise InputError(f"steps is {steps}, wanted {wanted}{limit}")
    return steps


def check_read(sampler: Sampler, schedule: NoiseSchedule, given: Mapping[str, object]) -> None:
    """Raise for options that the sampler has not looked at."""
    for key in given:
        if key in schedule.reads:
            continue
        known = sorted(schedule.reads.keys() - NoiseSchedule.from_config(schedule.config).reads.keys())
        if key == "eta":
            if given[key] == 0:
                continue
            raise InputError(
                f"eta is {given[key]}, but sampler {sampler.name!r} adds no noise; use eta 0 or "
                "sampler 'ddim'"
            )
        near = difflib.get_close_matches(key, known, n=1)
        hint = f"did you mean {near[0]}? " if near else ""
        raise InputError(
            f"sampler {sampler.name!r} has no option {key!r}; {hint}it has {', '.join(known) or 'none'}"
        )


def check_config(sampler: Sampler, schedule: NoiseSchedule, given: Mapping[str, object]) -> None:
    """Raise for a key of the sampler's own diffusers class that nobody knows: misspelt, or newer than
    fastdiff.

    Keys of other classes are left alone, as diffusers does, and so is what a config leaves null.
    """
    if schedule.config.get("_class_name") not in sampler.classes:
        return
    known = schedule.reads.keys() | DIFFUSERS_KEYS | FORMER_KEYS | given.keys()
    for key, value in schedule.config.items():
        if key in known or key.startswith("_") or value is None:
            continue
        near = difflib.get_close_matches(key, sorted(schedule.reads), n=1)
        hint = f"did you mean {near[0]}? " if near else ""
        raise InputError(
            f"scheduler config has {key}={short(value)}, which sampler {sampler.name!r} does not know; {hint}"
            "correct the key or remove it"
        )


def check_part(sampler: Sampler, schedule: NoiseSchedule) -> None:
    """Raise for a sampler whose steps cannot begin or end in the middle of its way."""
    if sampler.inverse or not schedule.begins:
        way = "leads from a picture to noise" if sampler.inverse else "has no start in the middle of its way"
        raise InputError(
            f"sampler {sampler.name!r} {way}, so that it takes no picture to begin with; use one such as "
            "'euler', 'ddim' or 'dpmpp_2m'"
        )


def check_process(sampler: Sampler, schedule: NoiseSchedule) -> None:
    """Raise where a checkpoint of flow matching meets a sampler that would walk a chain of betas."""
    name = schedule.config.get("_class_name")
    if name not in FLOW_CLASSES or not FLOW_CLASSES.isdisjoint(sampler.classes):
        return
    if not schedule.config.get("use_flow_sigmas") and "process" not in schedule.reads:
        raise InputError(
            f"the checkpoint's scheduler, {name}, is of flow matching, and sampler {sampler.name!r} walks a "
            "chain of noise levels; use flow_euler or flow_heun, or option use_flow_sigmas=true with "
            "a sampler that has it"
        )
