"""Arguments of a call that are about its prompts: what is refused, each in one line with its way out."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest

from fastdiff.config import ModelSpec, TextEncoderSpec
from fastdiff.errors import InputError
from fastdiff.prompts.options import PromptOptions, TextOptions, read_options
from fastdiff.prompts.sizes import SizeConditioning

pytestmark = pytest.mark.smoke

FIRST = TextEncoderSpec("text_encoder", "tokenizer", 77, 768, layers=13, vocabulary=49408)
SECOND = TextEncoderSpec("text_encoder_2", "tokenizer_2", 77, 1280, 32, 1280, True, 49408)
SD = ModelSpec("stable_diffusion", 4, 8, 0.18, 0.0, 512, 512, 1, 8, 77, 768, text_encoders=(FIRST,))
XL = replace(SD, text_encoders=(replace(FIRST, layers=12), SECOND), time_ids=6, pooled_size=1280)
REFINER = replace(XL, text_encoders=(SECOND,), time_ids=5)
OLD = replace(SD, text_encoders=())
UNPROMPTED = replace(OLD, max_tokens=0, hidden_size=0)

SIZE = r"it must be two whole numbers \(height, width\), in pixels"
CROP = r"it must be two whole numbers \(top, left\), in pixels"
REFUSED: list[tuple[ModelSpec, dict[str, Any], str]] = [
    (SD, {"clip_skip": 13}, "clip_skip is 13: it must be from 0 to 12 with this model"),
    (SD, {"clip_skip": -1}, "clip_skip is -1: it must be 0 or more"),
    (SD, {"clip_skip": True}, "clip_skip is True: it must be a whole number"),
    (SD, {"clip_skip": math.nan}, "clip_skip is nan: it must be a whole number"),
    (XL, {"clip_skip": 12}, "clip_skip is 12: it must be from 0 to 11 with this model"),
    (
        OLD,
        {"clip_skip": 1},
        "clip_skip is 1: this engine's text encoder gives its last layer alone; build it",
    ),
    (UNPROMPTED, {"clip_skip": 0}, "clip_skip is about prompts: this engine takes none; leave it out"),
    (UNPROMPTED, {"weighting": False}, "weighting is about prompts"),
    (SD, {"weighting": 1}, "weighting is 1: it must be True or False"),
    (SD, {"weighting": "no"}, "weighting is 'no': it must be True or False"),
    (SD, {"long_prompts": "drop"}, "long_prompts is 'drop': it must be 'chunks' or 'cut'"),
    (SD, {"long_prompts": ["cut"]}, r"long_prompts is \['cut'\]: it must be 'chunks' or 'cut'"),
    (SD, {"prompt_2": "a"}, "prompt_2 is for models with two text encoders: leave it out with this one"),
    (REFINER, {"negative_2": "a"}, "negative_2 is for models with two text encoders"),
    (XL, {"prompt_2": ["a"]}, "prompt_2 has 1 texts for 2 prompts: give one for each, or one string"),
    (XL, {"prompt_2": 5}, "prompt_2 is of type int: it must be a string or a list of strings"),
    (XL, {"negative_2": ["a", None]}, "negative_2 1 is of type NoneType: it must be a string"),
    (XL, {"negative_2": "\ud800"}, "negative_2 holds .* which is no character: give text in UTF-8"),
    (SD, {"target_size": (8, 8)}, "target_size is for models that take sizes, such as SDXL: leave it out"),
    (SD, {"aesthetic_score": 6}, "aesthetic_score is for models that take sizes"),
    (XL, {"aesthetic_score": 6}, "aesthetic_score has no effect with this model: it is for refiners; leave"),
    (REFINER, {"target_size": (8, 8)}, "target_size has no effect with a refiner, which takes an aesthetic"),
    (REFINER, {"negative_target_size": (8, 8)}, "negative_target_size has no effect with a refiner"),
    (REFINER, {"aesthetic_score": math.nan}, "aesthetic_score is nan: it must be a finite number"),
    (REFINER, {"negative_aesthetic_score": "6"}, "negative_aesthetic_score is '6': it must be a number"),
    (XL, {"original_size": 512}, f"original_size is 512: {SIZE}"),
    (XL, {"original_size": (512, 512, 3)}, f"original_size is .*: {SIZE}"),
    (XL, {"original_size": "512x512"}, f"original_size is '512x512': {SIZE}"),
    (XL, {"original_size": (512, 0)}, "original_size width is 0: it must be from 1 to 1048576"),
    (XL, {"target_size": (math.nan, 8)}, "target_size height is nan: it must be a whole number"),
    (XL, {"crops_coords_top_left": (0,)}, f"crops_coords_top_left is .*: {CROP}"),
    (XL, {"crops_coords_top_left": (-1, 0)}, "crops_coords_top_left top is -1: it must be from 0 to"),
    (XL, {"negative_crops_coords_top_left": (0, 0.5)}, "negative_crops_coords_top_left left is 0.5: it must"),
]


@pytest.mark.parametrize(("model", "given", "says"), REFUSED, ids=lambda value: str(value)[:40])
def test_refused(model: ModelSpec, given: dict[str, Any], says: str) -> None:
    with pytest.raises(InputError, match=says) as caught:
        read_options(model, 2, given)
    assert "\n" not in str(caught.value)


def test_every_option_is_refused_for_something() -> None:
    assert {name for _, given, _ in REFUSED for name in given} == set(PromptOptions.__annotations__) - {
        "negative_original_size"  # read as original_size is
    }


def test_an_unknown_name_is_a_type_error() -> None:
    with pytest.raises(TypeError, match="unexpected keyword argument 'clipskip': known are clip_skip, "):
        read_options(SD, 1, {"clipskip": 1})


def test_none_is_the_default() -> None:
    for model in (SD, XL, REFINER, OLD, UNPROMPTED):
        given = dict.fromkeys(PromptOptions.__annotations__)
        assert read_options(model, 1, given) == (TextOptions(), SizeConditioning())
    assert read_options(OLD, 1, {"clip_skip": 0, "weighting": True, "long_prompts": "cut"})[0].clip_skip == 0


def test_texts_of_the_second_encoder_are_one_for_each_prompt() -> None:
    text, _ = read_options(XL, 2, {"prompt_2": "a", "negative_2": ["b", "c"]})
    assert (text.prompts_2, text.negatives_2) == (("a", "a"), ("b", "c"))
