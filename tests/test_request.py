"""Checks of a call: what passes, and for what does not the value, what is wanted and the way out."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastdiff.config import ModelSpec
from fastdiff.errors import InputError
from fastdiff.request import Request, check_request, request_from, request_values
from fastdiff.samplers import Guidance
from fastdiff.samplers.guidance import APG, CFGPlusPlus, Interval, PerpNeg, PerStep, Schedule

pytestmark = pytest.mark.smoke

MODEL = ModelSpec("stable_diffusion", 4, 4, 0.18, 0.0, 64, 96, 1, 8, 77, 32)
CALL = {
    "prompt": "a red circle",
    "negative": "",
    "steps": 20,
    "sampler": "ddim",
    "guidance": 5.0,
    "seed": 0,
    "num": 1,
    "height": None,
    "width": None,
    "eta": 0.0,
    "sampler_options": None,
}


def check(**changes: object) -> Request:
    return check_request(MODEL, **{**CALL, **changes})


def test_defaults_come_from_the_engine() -> None:
    request = check()
    assert (request.height, request.width, request.pictures, request.guided) == (64, 96, 1, True)
    assert check(height=128).width == 96


def test_prompts_and_negatives_pair_up() -> None:
    request = check(prompt=["a", "b"], negative="c", num=3)
    assert (request.negatives, request.pictures) == (("c", "c"), 6)
    assert check(prompt=("a", "b"), negative=["c", "d"]).negatives == ("c", "d")


@pytest.mark.parametrize(
    ("guidance", "guided"), [(0, False), (0.5, False), (1, False), (1.0001, True), (7.5, True)]
)
def test_guidance_up_to_one_is_off(guidance: float, guided: bool) -> None:
    assert check(guidance=guidance).guided is guided


def test_guidance_of_the_model() -> None:
    """None is the usual scale, or that of models which are told the scale and never compute two halves."""
    assert check(guidance=None).guidance == 5.0
    told = replace(MODEL, guidance_embedding=16)
    request = check_request(told, **{**CALL, "guidance": None})
    assert (request.guidance, request.branches, request.guided) == (8.5, 1, False)
    with pytest.raises(InputError, match="guidance is a Guidance: this model is told the scale itself"):
        check_request(told, **{**CALL, "guidance": Guidance(5.0, APG())})


UNPROMPTED = replace(MODEL, max_tokens=0, hidden_size=0)


def test_a_model_without_a_prompt() -> None:
    call = {**CALL, "prompt": None, "guidance": None, "num": 3}
    request = check_request(UNPROMPTED, **call)
    assert (request.pictures, request.branches) == (3, 1)
    assert not {"prompt", "negative", "guidance"} & request.settings().keys()
    assert request_from(json.loads(json.dumps(request_values(request)))) == request
    for name, value in (("prompt", "a circle"), ("negative", "blue"), ("guidance", 3.0)):
        with pytest.raises(InputError, match=f"{name} is .*: this engine takes no prompt; leave it out"):
            check_request(UNPROMPTED, **{**call, name: value})


@pytest.mark.parametrize(
    ("value", "labels"), [(3, (3, 3)), ([3, 9], (3, 9)), (np.int64(0), (0, 0))], ids=["one", "each", "numpy"]
)
def test_class_labels(value: object, labels: tuple[int, ...]) -> None:
    model = replace(MODEL, num_classes=10)
    request = check_request(model, **{**CALL, "num": 2, "class_label": value})
    assert request.class_labels == labels
    assert request.settings()["class_label"] == list(labels)
    assert request_from(json.loads(json.dumps(request_values(request)))) == request


@pytest.mark.parametrize(
    ("value", "says"),
    [
        (None, "class_label is missing: give the number of a class, from 0 to 9"),
        (10, "class_label is 10: it must be from 0 to 9"),
        (-1, "class_label is -1: it must be from 0 to 9"),
        (1.5, "class_label is 1.5: it must be a whole number"),
        ("cat", "class_label is 'cat': it must be a whole number"),
        (True, "class_label is True: it must be a whole number"),
        ([1, 2, 3], "3 class labels for 1 pictures: give one for each"),
        ([math.nan], "class_label is nan: it must be a whole number"),
    ],
)
def test_class_labels_that_cannot_be_used(value: object, says: str) -> None:
    with pytest.raises(InputError, match=says):
        check_request(replace(MODEL, num_classes=10), **{**CALL, "class_label": value})


def test_seed_is_drawn_when_there_is_none() -> None:
    seeds = {check(seed=None).seed for _ in range(4)}
    assert len(seeds) > 1
    assert all(0 <= seed < 2**32 for seed in seeds)


def test_numbers_of_numpy_are_numbers() -> None:
    request = check(steps=np.int64(5), guidance=np.float32(2), seed=np.uint64(2**64 - 1))
    assert (request.steps, request.guidance, request.seed) == (5, 2.0, 2**64 - 1)
    assert all(type(value) is not np.int64 for value in vars(request).values())


@pytest.mark.parametrize("prompt", ["a", ["a", "b"]])
def test_settings_repeat_the_call_through_json(prompt: object) -> None:
    request = check(prompt=prompt, negative="naïve", guidance=7.1, seed=2**64 - 1, num=2, eta=0.3)
    again = json.loads(json.dumps(request.settings()))
    assert check_request(MODEL, **again) == request


@pytest.mark.parametrize(
    "guidance",
    [
        Guidance(7.0, APG(threshold=math.inf), Schedule("linear", floor=2.0), rescale=0.5),
        Guidance(0.6, CFGPlusPlus(), interval=Interval(0.3)),
        Guidance(1.0, schedule=PerStep((3.0, 2.0))),
    ],
)
def test_settings_hold_the_whole_guidance(guidance: Guidance) -> None:
    request = check(guidance=guidance)
    again = json.loads(json.dumps(request.settings(), allow_nan=False))
    assert check_request(MODEL, **again) == request
    assert check(guidance=again["guidance"]).guidance == guidance


def test_a_worker_gets_the_whole_guidance() -> None:
    """What the pool sends and what the process makes of it, through JSON."""
    for guidance in (4.5, Guidance(7.0, APG(threshold=math.inf), interval=Interval(0.3))):
        request = check(guidance=guidance)
        assert request_from(json.loads(json.dumps(request_values(request)))) == request


def test_branches_of_a_guidance() -> None:
    for guidance, branches in (
        (Guidance(5.0), 2),
        (Guidance(1.0), 1),
        (Guidance(0.5), 2),
        (Guidance(0.6, CFGPlusPlus()), 2),
        (Guidance(5.0, PerpNeg()), 3),
    ):
        request = check(guidance=guidance, negative="blue")
        assert (request.branches, request.guided) == (branches, branches > 1)
        assert request.scale == guidance.scale


def test_perp_neg_needs_a_negative_prompt() -> None:
    with pytest.raises(InputError, match="'perp_neg' without a negative prompt: give one"):
        check(guidance={"scale": 4, "method": "perp_neg"})
    check(prompt=["a", "b"], negative=["", "blue"], guidance={"scale": 4, "method": "perp_neg"})


BAD = [
    ("guidance", Guidance(-2.0), "guidance is -2.*0 or more"),
    ("guidance", {}, "guidance is {}, wanted an entry 'scale'"),
    ("guidance", {"scale": 3, "method": "apgg"}, "guidance method 'apgg'; did you mean apg"),
    ("guidance", [5.0], "guidance is .*a number"),
    ("prompt", 5, "int.*string or a list of strings"),
    ("prompt", None, "prompt is missing"),
    ("class_label", 0, "knows no classes"),
    ("prompt", b"bytes", "bytes.*string"),
    ("prompt", [], "empty list.*at least one"),
    ("prompt", ["a", 7], "prompt 1 is of type int"),
    ("prompt", "bad \udcff", "position 4.*UTF-8"),
    ("negative", ["a", "b"], "2 negative prompts for 1"),
    ("negative", None, "NoneType"),
    ("steps", 0, "steps is 0: it must be 1 or more"),
    ("steps", -3, "steps is -3"),
    ("steps", 2.5, "steps is 2.5: it must be a whole number"),
    ("steps", 20.0, "whole number"),
    ("steps", "20", "'20'.*whole number"),
    ("steps", True, "True.*whole number"),
    ("steps", None, "None.*whole number"),
    ("guidance", math.nan, "guidance is nan: it must be a finite number"),
    ("guidance", math.inf, "guidance is inf"),
    ("guidance", -1, "guidance is -1.*0 or more"),
    ("guidance", "7", "'7'.*a number"),
    ("guidance", 10**400, "a number"),
    ("seed", -1, "seed is -1: it must be from 0 to 18446744073709551615"),
    ("seed", 2**64, "18446744073709551616: it must be from 0"),
    ("seed", 1.5, "whole number"),
    ("num", 0, "num is 0: it must be 1 or more"),
    ("height", 60, "height is 60: it must be a multiple of 8; use 56 or 64"),
    ("width", 3, "width is 3: it must be a multiple of 8; use 8"),
    ("width", 0, "width is 0: it must be from 1 to 1048576"),
    ("height", -8, "height is -8"),
    ("height", 64.0, "whole number"),
    ("sampler", ["ddim"], "ddim.*must be a name"),
    ("eta", 1.5, "eta is 1.5: it must be from 0"),
    ("eta", math.nan, "finite"),
    ("sampler_options", ["rho"], "rho.*must map names"),
    ("sampler_options", {1: 2}, "must map names"),
    ("sampler_options", {"sigmas": {1, 2}}, "JSON"),
    ("sampler_options", {"rho": math.inf}, "JSON"),
]


@pytest.mark.parametrize(("name", "value", "says"), BAD)
def test_bad_values_are_named(name: str, value: object, says: str) -> None:
    with pytest.raises(InputError, match=says) as caught:
        check(**{name: value})
    assert "\n" not in str(caught.value)
    assert name in str(caught.value)


@given(st.sampled_from(sorted(CALL)), st.from_type(type).flatmap(st.from_type) | st.text())
def test_any_value_passes_or_is_refused_in_one_line(name: str, value: object) -> None:
    try:
        request = check(**{name: value})
    except InputError as error:
        message = str(error)
    else:
        message = json.dumps(request.settings())
    assert message.isprintable()
