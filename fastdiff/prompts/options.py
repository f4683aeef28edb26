"""How a call's prompts are read: arguments of the pipeline beside the prompts themselves."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, TypedDict

from fastdiff.arguments import integer, show, texts
from fastdiff.config import ModelSpec
from fastdiff.errors import InputError
from fastdiff.prompts.sizes import SizeConditioning, read_sizes

__all__ = ["LONG_PROMPTS", "PromptOptions", "TextOptions", "read_options"]

LONG_PROMPTS = ("chunks", "cut")


class PromptOptions(TypedDict, total=False):
    """Keyword arguments of a pipeline that are about its prompts, None being the default of each.

    clip_skip     hidden states of the text encoder are taken this many layers earlier than by default, for
                  the prompt alone, both as in diffusers: 1 is what others call clip skip 2
    weighting     whether ``(word:1.3)``, ``(word)``, ``[word]`` and ``BREAK`` have a meaning (default: True)
    long_prompts  "chunks" reads a prompt that is too long in parts, "cut" drops the end (default: "chunks")
    prompt_2, negative_2
                  what the second text encoder reads in place of the prompt and of the negative one
    original_size, crops_coords_top_left, target_size and these with negative_ in front
                  what SDXL is told of the picture, (height, width) and (top, left) in pixels
    aesthetic_score, negative_aesthetic_score
                  what a refiner is told of the picture, about 1 to 10 (default: 6 and 2.5)
    """

    clip_skip: int | None
    weighting: bool | None
    long_prompts: str | None
    prompt_2: str | list[str] | None
    negative_2: str | list[str] | None
    original_size: tuple[int, int] | list[int] | None
    crops_coords_top_left: tuple[int, int] | list[int] | None
    target_size: tuple[int, int] | list[int] | None
    negative_original_size: tuple[int, int] | list[int] | None
    negative_crops_coords_top_left: tuple[int, int] | list[int] | None
    negative_target_size: tuple[int, int] | list[int] | None
    aesthetic_score: float | None
    negative_aesthetic_score: float | None


@dataclass(frozen=True)
class TextOptions:
    """Checked options of the text. ``prompts_2`` and ``negatives_2`` have one text for each prompt, or are
    None where the second encoder reads the same. ``chunks`` is how many chunks a prompt has at least, so that
    a part of a call is padded as the whole call is.
    """

    clip_skip: int = 0
    weighting: bool = True
    long_prompts: str = "chunks"
    prompts_2: tuple[str, ...] | None = None
    negatives_2: tuple[str, ...] | None = None
    chunks: int = 1

    def chosen(self, choose: Callable[[tuple[str, ...]], tuple[str, ...]]) -> TextOptions:
        """The options with other texts, those that ``choose`` takes from the texts for all prompts."""
        first, second = (
            None if each is None else choose(each) for each in (self.prompts_2, self.negatives_2)
        )
        return replace(self, prompts_2=first, negatives_2=second)

    def settings(self, listed: bool) -> dict[str, Any]:
        """What is not the default as keyword arguments of the pipeline, in JSON values.

        ``listed``: texts are lists, one for each prompt.
        """
        found: dict[str, Any] = {}
        if self.clip_skip:
            found["clip_skip"] = self.clip_skip
        if not self.weighting:
            found["weighting"] = False
        if self.long_prompts != "chunks":
            found["long_prompts"] = self.long_prompts
        for name, each in (("prompt_2", self.prompts_2), ("negative_2", self.negatives_2)):
            if each is not None:
                found[name] = list(each) if listed else each[0]
        return found


def read_options(
    model: ModelSpec, prompts: int, given: Mapping[str, object]
) -> tuple[TextOptions, SizeConditioning]:
    """``PromptOptions`` of a call with ``prompts`` prompts, checked.

    Raises TypeError for an unknown name, as a function does, and InputError for a value that cannot be used
    and for what the model cannot have.
    """
    known = PromptOptions.__annotations__
    for name in given:
        if name not in known:
            raise TypeError(f"unexpected keyword argument {name!r}: known are {', '.join(known)}")
    values = {name: value for name, value in given.items() if value is not None}
    if values and not model.takes_prompt:
        raise InputError(f"{next(iter(values))} is about prompts: this engine takes none; leave it out")
    sizes = {field.name for field in fields(SizeConditioning)}
    text: dict[str, Any] = {}
    if "clip_skip" in values:
        text["clip_skip"] = _clip_skip(model, values["clip_skip"])
    if "weighting" in values:
        if not isinstance(values["weighting"], bool):
            raise InputError(f"weighting is {show(values['weighting'])}: it must be True or False")
        text["weighting"] = values["weighting"]
    if "long_prompts" in values:
        if values["long_prompts"] not in LONG_PROMPTS:
            raise InputError(f"long_prompts is {show(values['long_prompts'])}: it must be 'chunks' or 'cut'")
        text["long_prompts"] = values["long_prompts"]
    for name, field in (("prompt_2", "prompts_2"), ("negative_2", "negatives_2")):
        if name in values:
            text[field] = _second(model, name, values[name], prompts)
    return TextOptions(**text), read_sizes(model, {name: values[name] for name in values if name in sizes})


def _clip_skip(model: ModelSpec, value: object) -> int:
    layers = min((encoder.layers for encoder in model.text_encoders), default=0)
    skip = integer("clip_skip", value, 0)
    if skip and layers < 2:
        raise InputError(
            f"clip_skip is {skip}: this engine's text encoder gives its last layer alone; build it again"
        )
    if skip >= max(layers, 1):
        raise InputError(f"clip_skip is {skip}: it must be from 0 to {layers - 1} with this model")
    return skip


def _second(model: ModelSpec, name: str, value: object, prompts: int) -> tuple[str, ...]:
    if len(model.text_encoders) < 2:
        raise InputError(f"{name} is for models with two text encoders: leave it out with this one")
    found = texts(name, value)
    if isinstance(value, str):
        found *= prompts
    if len(found) != prompts:
        raise InputError(
            f"{name} has {len(found)} texts for {prompts} prompts: give one for each, or one string"
        )
    return found
