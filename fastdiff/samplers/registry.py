"""The samplers by name."""

from __future__ import annotations

import contextlib
import difflib
from collections.abc import Mapping
from dataclasses import replace
from itertools import chain

from fastdiff.errors import InputError
from fastdiff.samplers import (
    adaptive,
    consistency,
    ddim,
    ddpm,
    deis,
    dpm2,
    dpm_adaptive,
    dpm_inverse,
    dpm_multistep,
    dpm_singlestep,
    dpmpp_2m_sde,
    dpmpp_2s_ancestral,
    dpmpp_sde,
    edm,
    edm_dpmpp,
    er_sde,
    euler,
    euler_ancestral,
    flow,
    heun,
    ipndm,
    langevin,
    lcm,
    lms,
    pndm,
    predictor_corrector,
    res,
    restart,
    sa_solver,
    score_sde,
    tcd,
    unipc,
)
from fastdiff.samplers.adaptive import AdaptiveRun
from fastdiff.samplers.checks import check_config, check_part, check_process, check_read, check_steps
from fastdiff.samplers.part import WHOLE, Part, truncated
from fastdiff.samplers.sampler import Sampler
from fastdiff.samplers.schedule import NoiseSchedule
from fastdiff.samplers.table import StepTable

__all__ = ["SAMPLERS", "find_sampler", "make_adaptive", "make_table", "options_of", "sampler_of"]

_FAMILIES = (
    ddim,
    ddpm,
    pndm,
    ipndm,
    euler,
    euler_ancestral,
    heun,
    dpm2,
    lms,
    dpm_singlestep,
    dpm_multistep,
    dpmpp_2s_ancestral,
    dpmpp_sde,
    dpmpp_2m_sde,
    unipc,
    deis,
    sa_solver,
    res,
    er_sde,
    restart,
    edm,
    edm_dpmpp,
    langevin,
    predictor_corrector,
    score_sde,
    adaptive,
    dpm_adaptive,
    lcm,
    tcd,
    consistency,
    flow,
    dpm_inverse,
)
SAMPLERS: dict[str, Sampler] = {
    sampler.name: sampler for sampler in chain.from_iterable(family.SAMPLERS for family in _FAMILIES)
}

# Settings with which samplers read options that they leave alone otherwise.
_CONFIGS: tuple[dict[str, object], ...] = (
    {},
    {"use_karras_sigmas": True, "clip_sample": True, "thresholding": True},
    {"sigma_spacing": "polyexponential", "use_dynamic_shifting": True},
    {"sigma_spacing": "align_your_steps", "use_flow_sigmas": True, "prediction_type": "flow_prediction"},
    {"process": "vp"},
    {"process": "ve"},
)


def sampler_of(config: Mapping[str, object]) -> str | None:
    """The sampler for the diffusers class named in a ``scheduler_config.json``; None where there is none.

    Raises `InputError` where there are samplers for the class, but none for its options.
    """
    name = config.get("_class_name")
    found = next((sampler.name for sampler in SAMPLERS.values() if sampler.stands_for(config)), None)
    of_class = [sampler for sampler in SAMPLERS.values() if name in sampler.classes]
    if found is None and of_class:
        keys = sorted({key for sampler in of_class for key in sampler.when})
        values = ", ".join(f"{key}={config.get(key)!r}" for key in keys)
        raise InputError(
            f"no sampler is {name} with {values}; correct the config or choose one of "
            f"{', '.join(sampler.name for sampler in of_class)}"
        )
    return found


def find_sampler(name: str) -> Sampler:
    """The sampler called ``name``. Raises `InputError` with near matches."""
    if name not in SAMPLERS:
        near = difflib.get_close_matches(str(name).lower(), SAMPLERS, n=3, cutoff=0.4)
        hint = f"did you mean {' or '.join(near)}? " if near else ""
        raise InputError(f"unknown sampler {name!r}; {hint}fastdiff samplers lists all {len(SAMPLERS)}")
    return SAMPLERS[name]


def options_of(sampler: Sampler) -> dict[str, object]:
    """The options that ``sampler`` reads, besides those of the noise schedule, with their defaults.

    Options that only count together with others, such as ``rho`` with Karras levels, are among them.
    """
    options: dict[str, object] = {}
    for config in _CONFIGS:
        schedule = NoiseSchedule.from_config({}).with_options(config)
        shared = set(schedule.reads)
        with contextlib.suppress(InputError):
            if sampler.adaptive is None:
                sampler.table(schedule, 10)
            else:
                sampler.adaptive(schedule)
        for key, default in schedule.reads.items():
            if key not in shared:
                options.setdefault(key, default)
    return dict(sorted(options.items()))


def make_table(
    name: str,
    schedule: NoiseSchedule,
    steps: int,
    *,
    eta: float | None = None,
    options: Mapping[str, object] | None = None,
    part: Part = WHOLE,
) -> StepTable:
    """The table of sampler ``name``, one of `SAMPLERS`, for ``steps`` steps.

    ``steps`` is 1 to the number of training timesteps, without that limit where time is continuous. ``eta``,
    0 to 1, is the share of fresh noise for the samplers that have one; None is their default. ``options``
    replace entries of the scheduler config. ``part`` leaves out steps at the beginning or the end. Raises
    `InputError` for an unknown name (with near matches), for a part that the sampler cannot run, for a step
    count that cannot be used, for an option that the sampler does not have, and for a value of the
    scheduler config that is not supported.
    """
    sampler = find_sampler(name)
    given = dict(options or {})
    if eta is not None:
        if not 0 <= eta <= 1:
            raise InputError(f"eta is {eta}, wanted 0 to 1")
        given["eta"] = eta
    schedule = replace(schedule.with_options(given), part=part)
    steps = check_steps(sampler, schedule, steps)
    try:
        table = sampler.table(schedule, steps)
        finite = table.is_finite()
    except (ZeroDivisionError, OverflowError):
        finite = False
    if not finite:
        raise InputError(
            f"sampler {name!r} has no finite coefficients for {steps} steps of this scheduler config; "
            "use another step count or sampler"
        )
    if str(schedule.config.get("variance_type")).startswith("learned"):
        schedule.reads.setdefault("variance_type", None)
        table = replace(table, variance_channels=True)
    check_read(sampler, schedule, given)
    check_config(sampler, schedule, given)
    check_process(sampler, schedule)
    if part != WHOLE:
        check_part(sampler, schedule)
    return table if part.until == WHOLE.until else truncated(sampler, table, part)


def make_adaptive(
    name: str, schedule: NoiseSchedule, *, options: Mapping[str, object] | None = None
) -> AdaptiveRun:
    """What `fastdiff.samplers.adaptive.sample_adaptive` runs, for a sampler that chooses its own steps.

    Raises `InputError` for a sampler with fixed steps, and as `make_table` for names and options.
    """
    sampler = find_sampler(name)
    if sampler.adaptive is None:
        own = ", ".join(other.name for other in SAMPLERS.values() if other.adaptive)
        raise InputError(f"sampler {name!r} has fixed steps; use make_table, or one of {own}")
    schedule = schedule.with_options(options or {})
    run = sampler.adaptive(schedule)
    check_read(sampler, schedule, options or {})
    check_process(sampler, schedule)
    return run
