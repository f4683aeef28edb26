"""Large pictures in two passes: one at a size that the model knows, one that paints its details anew."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from fastdiff.errors import InputError
from fastdiff.pictures import Picture, to_sample
from fastdiff.result import Result
from fastdiff.samplers import Generator
from fastdiff.tasks.image_to_image import (
    as_pictures,
    check_from_picture,
    image_to_image,
    steps_from_picture,
)
from fastdiff.tasks.plan import check_share
from fastdiff.tasks.upscale import check_method, check_scale, enlarged, enlarged_latents, scaled_side

if TYPE_CHECKING:
    from collections.abc import Mapping

    from fastdiff.pipeline import Pipeline
    from fastdiff.preview import Preview
    from fastdiff.request import Request
    from fastdiff.watch import Watch

__all__ = ["high_resolution", "upscale"]


def high_resolution(
    pipe: Pipeline,
    prompt: str | list[str] | None,
    scale: object,
    method: object,
    strength: object,
    watch: Watch,
    options: Mapping[str, Any],
) -> Result:
    """See `fastdiff.tasks.methods.Tasks.high_resolution`."""
    factor, by, share = check_scale(scale), check_method(method), check_share("strength", strength)
    base, control = pipe.parsed(prompt, dict(options))
    large = _enlarged_request(pipe, base, factor)
    latent, chosen = by.startswith("latent_"), check_from_picture(share)
    # what the second pass refuses is refused before the first
    later = steps_from_picture(pipe, large, chosen).evaluations
    if not latent:
        pipe.vae.check_encoder()
    first = pipe(
        prompt,
        **{**options, "seed": base.seed},
        output="latents" if latent else "pictures",
        callback=watch.callback,
        progress=watch.progress,
        preview=_counted_on(watch.preview, 0, later),
        preview_every=watch.preview_every,
    )
    earlier = len(first.timings.steps)
    watch = replace(watch, preview=_counted_on(watch.preview, earlier, earlier))
    if latent:
        cell = pipe.engine.manifest.model.vae_scale_factor
        latents = enlarged_latents(first.latents, large.height // cell, large.width // cell, by)
        plan = image_to_image(pipe, large, [], latents, chosen)
    else:
        pictures = [Picture(enlarged(image, large.height, large.width, by), {}) for image in first.images]
        plan = image_to_image(pipe, large, pictures, None, chosen)
    settings = {"scale": factor, "method": by, "strength": share, "height": base.height, "width": base.width}
    plan = replace(plan, task={"task": "high_resolution", "settings": settings})
    second = pipe.carry_out(large, plan, watch, control)
    return replace(second, timings=first.timings + second.timings)


def _counted_on(preview: Preview | None, before: int, more: int) -> Preview | None:
    """The preview of one pass with evaluations counted over both: no file is written twice."""
    if not callable(preview):
        return preview  # None, or what is refused by and by
    return lambda step, total, pictures: preview(before + step, more + total, pictures)


def upscale(
    pipe: Pipeline,
    image: object,
    prompt: str | list[str] | None,
    scale: object,
    method: object,
    strength: object,
    watch: Watch,
    options: Mapping[str, Any],
) -> Result:
    """See `fastdiff.tasks.methods.Tasks.upscale`."""
    factor, by = check_scale(scale), check_method(method)
    chosen = check_from_picture(check_share("strength", strength))
    for side in ("height", "width"):
        if options.get(side) is not None:
            raise InputError(f"{side} with upscale: the scale says how large; leave it out")
    pictures = as_pictures(image)
    sizes_given = [f"{one.image.height} x {one.image.width}" for one in pictures]
    for index, size in enumerate(sizes_given):
        if size != sizes_given[0]:
            raise InputError(
                f"image {index} is {size} (height x width), the first {sizes_given[0]}: give pictures of "
                "one size"
            )
    model = pipe.engine.manifest.model
    multiple, cell = model.size_multiple, model.vae_scale_factor
    sizes = {
        side: scaled_side(getattr(pictures[0].image, side), factor, multiple) for side in ("height", "width")
    }
    request, control = pipe.parsed(prompt, {**options, **sizes})
    if by.startswith("latent_"):
        steps_from_picture(pipe, request, chosen)
        samples = [to_sample(_whole_cells(one.image, cell)) for one in pictures]
        generator = Generator(request.seed)
        latents = pipe.vae.encode(np.concatenate(samples), generator)
        latents = enlarged_latents(latents, request.height // cell, request.width // cell, by)
        plan = image_to_image(pipe, request, pictures, latents, chosen, generator)
    else:
        larger = [
            Picture(enlarged(one.image, request.height, request.width, by), one.source) for one in pictures
        ]
        plan = image_to_image(pipe, request, larger, None, chosen)
    task = {
        "task": "upscale",
        "settings": {"scale": factor, "method": by, "strength": chosen.strength},
        "inputs": {"image": [one.source for one in pictures]},
        "without": ("height", "width"),
    }
    return pipe.carry_out(request, replace(plan, task=task), watch, control)


def _enlarged_request(pipe: Pipeline, request: Request, scale: float) -> Request:
    multiple = pipe.engine.manifest.model.size_multiple
    return replace(
        request,
        height=scaled_side(request.height, scale, multiple),
        width=scaled_side(request.width, scale, multiple),
    )


def _whole_cells(image: Image.Image, cell: int) -> Image.Image:
    """The picture in a size that the encoder takes."""
    width, height = (max(side // cell, 2) * cell for side in image.size)
    return image if image.size == (width, height) else image.resize((width, height), Image.Resampling.LANCZOS)
