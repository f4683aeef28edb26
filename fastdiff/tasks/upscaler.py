"""A picture enlarged by a model that was made for it, such as Stable Diffusion's upscaler by 4.

Semantics are those of diffusers' ``StableDiffusionUpscalePipeline`` with one generator: it draws the small
picture's noise, then the latents'. The model sees the noisy small picture beside the latents, which are as
large, and is told by the class label how noisy it is.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from fastdiff.arguments import integer, show
from fastdiff.call_size import check_size
from fastdiff.errors import InputError
from fastdiff.inputs import call_table, unit_noise
from fastdiff.pictures import fitted, to_sample
from fastdiff.samplers import Generator, NoiseSchedule
from fastdiff.tasks.image_to_image import as_pictures
from fastdiff.tasks.plan import Plan, noised, per_picture

if TYPE_CHECKING:
    from fastdiff.config import ModelSpec
    from fastdiff.pictures import Picture
    from fastdiff.pipeline import Pipeline
    from fastdiff.request import Request
    from fastdiff.result import Result
    from fastdiff.watch import Watch

__all__ = ["upscale_by_model"]

NOISE_LEVEL = 20
"""What diffusers takes where nothing is said."""


def upscale_by_model(
    pipe: Pipeline,
    image: object,
    prompt: str | list[str] | None,
    noise_level: object,
    others: Mapping[str, Any],
    watch: Watch,
    options: Mapping[str, Any],
) -> Result:
    """See `fastdiff.tasks.methods.Tasks.upscale`; ``others`` are its options for models of any kind."""
    model = pipe.engine.manifest.model
    factor = model.vae_scale_factor
    for name, value in others.items():
        if value is not None and not (name == "scale" and value == factor):
            raise InputError(
                f"{name} is {show(value)}: this model enlarges {factor} times by itself; leave it out"
            )
    level, pictures = _noise_level(model, noise_level), as_pictures(image)
    first = pictures[0].image
    sides = {"height": first.height * factor, "width": first.width * factor}
    for name in ("class_label", *sides):
        if options.get(name) is not None:
            raise InputError(f"{name} with a model that enlarges pictures: leave it out")
    request, control = pipe.parsed(prompt, {**options, **sides, "class_label": level})
    return pipe.carry_out(request, _plan(pipe, request, pictures, level), watch, control)


def _plan(pipe: Pipeline, request: Request, pictures: list[Picture], level: int) -> Plan:
    """The call whose ``request`` has the large picture's size and ``level`` as its class label."""
    model = pipe.engine.manifest.model
    assert model.picture_noise is not None
    check_size(pipe, request)
    table = call_table(pipe.schedule, request, False)
    generator = Generator(request.seed)
    small = (request.height // model.vae_scale_factor, request.width // model.vae_scale_factor)
    samples = np.concatenate([to_sample(fitted(one.image, *small, "exact")) for one in pictures])
    alpha = NoiseSchedule.from_config(dataclasses.asdict(model.picture_noise)).alphas_cumprod()[level]
    shares = np.sqrt(alpha), np.sqrt(np.float32(1) - alpha)
    seen = noised(samples, generator.randn(samples.shape), shares)
    start = unit_noise(model, request, None, generator) * np.float32(table.init_noise_sigma)
    task = {
        "task": "upscale",
        "settings": {"noise_level": level},
        "inputs": {"image": [one.source for one in pictures]},
        "without": ("height", "width", "class_label"),
    }
    conditions = {"condition": per_picture(seen, request.pictures, "image")}
    return Plan(table, start, generator, conditions=conditions, task=task)


def _noise_level(model: ModelSpec, level: object) -> int:
    """The noise level, None being 20 or the highest that there is. Raises InputError."""
    most = model.num_classes - 1
    if level is None:
        return min(NOISE_LEVEL, most)
    number = integer("noise_level", level, 0)
    if number > most:
        raise InputError(f"noise_level is {number}: this model knows 0 to {most}")
    return number
