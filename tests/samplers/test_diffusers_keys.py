"""No key of a scheduler config is ignored that would mean something."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import pytest

from fastdiff.errors import InputError
from fastdiff.samplers import SAMPLERS, NoiseSchedule, make_table
from fastdiff.samplers.diffusers_keys import BEYOND_CLASS, DIFFUSERS_KEYS
from fastdiff.samplers.registry import options_of
from tests.samplers.diffusers_classes import scheduler_parameters

CLASSES = [(sampler.name, name) for sampler in SAMPLERS.values() for name in sampler.classes]


def test_keys_are_those_of_diffusers() -> None:
    found = set().union(*scheduler_parameters().values())
    assert len(found) > 80
    assert found == DIFFUSERS_KEYS


def configurations(class_name: str) -> Iterator[dict[str, Any]]:
    """The class's defaults, each of its flags set, and what else makes other parameters count."""
    yield {}
    for key, default in scheduler_parameters()[class_name].items():
        if isinstance(default, bool):
            yield {key: not default}
    yield {"sigma_schedule": "karras"}


@pytest.mark.parametrize(("sampler", "class_name"), CLASSES)
def test_every_parameter_of_a_class_is_read(sampler: str, class_name: str) -> None:
    """By the sampler that stands for it, or to choose that sampler, in one configuration at least."""
    found = set(SAMPLERS[sampler].when)
    for config in configurations(class_name):
        schedule = NoiseSchedule.from_config({"_class_name": class_name, **config})
        with contextlib.suppress(InputError):
            SAMPLERS[sampler].table(schedule, 10)
        found |= set(schedule.reads)
    unread = scheduler_parameters()[class_name].keys() - found
    assert not unread, f"never read: {sorted(unread)}"


@pytest.mark.parametrize(("sampler", "class_name"), CLASSES)
def test_unknown_key(sampler: str, class_name: str) -> None:
    config: dict[str, Any] = {"_class_name": class_name, "_diffusers_version": "0.42.0", "steps_ofset": 1}
    with pytest.raises(InputError, match="scheduler config has steps_ofset=1, which sampler") as caught:
        make_table(sampler, NoiseSchedule.from_config(config), 10)
    assert "\n" not in str(caught.value)


def test_unknown_key_has_a_near_match() -> None:
    schedule = NoiseSchedule.from_config({"_class_name": "DDIMScheduler", "clip_sampel": False})
    with pytest.raises(InputError, match=r"clip_sampel=False.*did you mean clip_sample\?"):
        make_table("ddim", schedule, 10)


@pytest.mark.parametrize(
    "config",
    [
        {"_class_name": "DDIMScheduler", "use_karras_sigmas": True},  # of another class
        {"_class_name": "DDIMScheduler", "timestep_values": None},  # null means nothing
        {
            "_class_name": "DDIMScheduler",
            "tensor_format": "pt",
            "predict_epsilon": True,
        },  # of old checkpoints
        {"_class_name": "EulerDiscreteScheduler", "brand_new": 1},  # of a class that is not the sampler's
        {"brand_new": 1},  # of no class
    ],
)
def test_keys_that_are_none_of_the_sampler_s_business(config: dict[str, Any]) -> None:
    make_table("ddim", NoiseSchedule.from_config(config), 10)


def test_prediction_of_old_checkpoints() -> None:
    with pytest.raises(InputError, match=r"predict_epsilon=False .*set prediction_type to 'sample'"):
        NoiseSchedule.from_config({"predict_epsilon": False})


@pytest.mark.parametrize("class_name", BEYOND_CLASS)
def test_options_beyond_a_class(class_name: str) -> None:
    """What a sampler reads and its class does not know, of all that another class's config may hold."""
    known = scheduler_parameters()[class_name].keys()
    options: set[str] = set()
    for sampler in SAMPLERS.values():
        if sampler.classes[:1] == (class_name,):
            options |= options_of(sampler).keys()
    assert BEYOND_CLASS[class_name].isdisjoint(known)
    # eta is no key of configs, a learned variance is the model's, and all classes look for ends of the levels
    others = {"eta", "variance_type", "sigma_min", "sigma_max"}
    assert (options & DIFFUSERS_KEYS) - known - others <= BEYOND_CLASS[class_name]


def test_a_checkpoints_keys_of_another_class_are_left_alone() -> None:
    config = {"_class_name": "DPMSolverMultistepScheduler", "use_karras_sigmas": True}
    schedule = NoiseSchedule.from_config(config)
    plain = NoiseSchedule.from_config({"_class_name": "DPMSolverMultistepScheduler"})
    read = schedule.as_class("EulerAncestralDiscreteScheduler")
    assert make_table("euler_ancestral", read, 6) == make_table("euler_ancestral", plain, 6)
    assert make_table("euler_ancestral", schedule, 6) != make_table("euler_ancestral", plain, 6)
    asked = make_table("euler_ancestral", read, 6, options={"use_karras_sigmas": True})
    assert asked == make_table("euler_ancestral", schedule, 6)
    assert schedule.as_class("EulerDiscreteScheduler") is schedule
    assert schedule.as_class(None) is schedule
