"""One model begins a picture and another, such as SDXL's refiner, goes on."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from fastdiff.arguments import number
from fastdiff.errors import InputError
from fastdiff.inputs import default_sampler
from fastdiff.preview import check_tiny
from fastdiff.request import check_request
from fastdiff.samplers import NoiseSchedule
from fastdiff.tasks.image_to_image import FromPicture, remaining_steps

if TYPE_CHECKING:
    from collections.abc import Mapping

    from fastdiff.config import ModelSpec
    from fastdiff.manifest import Manifest
    from fastdiff.pipeline import Pipeline
    from fastdiff.result import Result

__all__ = ["check_start", "divided", "refine"]

_BOTH = (
    *("negative", "steps", "guidance", "num", "eta", "sampler_options", "height", "width", "progress"),
    *("clip_skip", "weighting", "long_prompts"),
)
"""Options of a call that hold for both models."""
_SIZES = (
    *("original_size", "crops_coords_top_left", "negative_original_size"),
    "negative_crops_coords_top_left",
)
_TARGETS = ("target_size", "negative_target_size")
_SCORES = ("aesthetic_score", "negative_aesthetic_score")
_SECOND_TEXTS = ("prompt_2", "negative_2")
_DECODING = ("vae",)
"""What the model that decodes has alone."""
_SAME = ("fastdiff", "index", "prompt", "negative")
"""Metadata that both models' parts of a picture have in common."""


def check_start(start: object) -> float:
    """The share of the way that the first model goes. Raises InputError."""
    share = number("refiner_start", start)
    if not 0 < share < 1:
        raise InputError(f"refiner_start is {share:g}: it must be more than 0 and less than 1")
    return share


def divided(
    first: Manifest, refiner: Manifest, prompt: object, start: float, call: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The options of one call as those of the first model's and those of the refiner's.

    ``start`` is the share of the way that the first model goes.

    What only one of them is told, such as SDXL's refiner its aesthetic score, is that one's. What belongs to
    the picture's beginning, such as control and variations, and what neither takes is left to the first one,
    which refuses the latter by name. Raises InputError for engines that do not fit together, for what the
    refiner cannot have, and where it has no steps to run.
    """
    _check_fit(first.model, refiner.model)
    ours: dict[str, Any] = {}
    theirs: dict[str, Any] = {}
    for name, value in call.items():
        goes = _goes_to(name, refiner.model)
        stays = name not in _DECODING and (_goes_to(name, first.model) or not goes)
        if stays:
            ours[name] = value
        if goes:
            theirs[name] = value
    sampler = call.get("sampler") or default_sampler(first.scheduler)
    _check_call(refiner, prompt, {**theirs, "sampler": sampler}, start)
    if theirs.get("vae") is not None:
        check_tiny(refiner.modules)
    return ours, theirs


def refine(
    refiner: Pipeline, first: Result, prompt: str | list[str] | None, start: float, call: Mapping[str, Any]
) -> Result:
    """What ``refiner`` makes of the latents of ``first``, of a call with ``denoising_end=start``.

    ``call`` are the refiner's options, as `divided` finds them. Sampler and seed are those of the first
    model. The metadata hold that one's as ``base``, the times are
    those of both.
    """
    settings = first.metadata[0]["settings"]
    options = {name: value for name, value in call.items() if name not in ("height", "width")}
    result = refiner.img2img(
        prompt=prompt,
        latents=first.latents,
        denoising_start=start,
        sampler=settings["sampler"],
        seed=first.seed,
        **options,
    )
    metadata = [
        {**refined, "base": {name: value for name, value in base.items() if name not in _SAME}}
        for refined, base in zip(result.metadata, first.metadata, strict=True)
    ]
    return replace(result, metadata=metadata, timings=first.timings + result.timings)


def _goes_to(name: str, model: ModelSpec) -> bool:
    """Whether an option is one that a model that goes on takes."""
    if name in _SIZES:
        return model.time_ids > 0
    if name in _TARGETS:
        return model.time_ids == 6
    if name in _SCORES:
        return model.time_ids == 5
    if name in _SECOND_TEXTS:
        return len(model.text_encoders) > 1
    if name == "deep_cache":
        return model.deep_features > 0
    return name in _BOTH or name in _DECODING


def _check_fit(first: ModelSpec, refiner: ModelSpec) -> None:
    for what in ("latent_channels", "vae_scale_factor"):
        ours, theirs = getattr(first, what), getattr(refiner, what)
        if ours != theirs:
            name = what.replace("_", " ")
            raise InputError(
                f"the refiner has {name} {theirs}, the first engine {ours}: use two whose latents are alike"
            )
    if refiner.condition_channels:
        raise InputError("the refiner is a model for inpainting or upscaling: use one that makes pictures")


def _check_call(refiner: Manifest, prompt: object, call: Mapping[str, Any], start: float) -> None:
    """The refiner's options and steps, before the first model computes anything."""
    defaults: dict[str, Any] = {"negative": "", "steps": 20, "num": 1}
    defaults |= dict.fromkeys(("guidance", "height", "width", "eta"))
    options = {name: value for name, value in call.items() if name != "progress"}
    request = check_request(refiner.model, prompt=prompt, seed=0, **{**defaults, **options})
    schedule = NoiseSchedule.from_config(refiner.scheduler)
    remaining_steps(schedule, request, FromPicture(denoising_start=start))
