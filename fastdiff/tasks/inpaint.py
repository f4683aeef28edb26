"""A part of a picture painted anew.

Semantics are those of diffusers' ``StableDiffusionInpaintPipeline`` with one generator. Models for inpainting
see the mask and the rest of the picture beside the latents. With any other model the latents outside the mask
are replaced after every evaluation by those of the picture with the noise that is left, as in Lugmayr et al.,
"RePaint: Inpainting using Denoising Diffusion Probabilistic Models", Eq. 8, but with one noise for all.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from fastdiff.arguments import integer, number, show
from fastdiff.call_size import check_size
from fastdiff.errors import InputError
from fastdiff.inputs import call_table
from fastdiff.pictures import Picture, fitted, to_sample
from fastdiff.request import Request
from fastdiff.resample import interpolate
from fastdiff.samplers import Generator, Part, StepTable
from fastdiff.samplers.loop import Edit
from fastdiff.tasks.image_to_image import check_fit, skipped
from fastdiff.tasks.plan import Plan, check_share, level_of, noised, per_picture

if TYPE_CHECKING:
    from fastdiff.pipeline import Pipeline

__all__ = ["Inside", "check_inside", "inpaint", "mask_region"]

Array = NDArray[np.float32]
Box = tuple[int, int, int, int]


@dataclass(frozen=True)
class Inside:
    """What inpainting asks for besides its request.

    strength      the share of the steps that is run; 1 starts from noise alone
    fit           what is done with picture and mask of another size, one of `fastdiff.pictures.FITS`
    mask_blur     radius in pixels by which the mask's rim is softened where the picture is pasted back;
                  the model sees it sharp again
    overlay       paste the picture's own pixels back outside the mask
    crop_padding  paint only the mask's surroundings, so many pixels around it, at the call's size, and paste
                  them into the picture; None paints all of it
    """

    strength: float = 1.0
    fit: str = "exact"
    mask_blur: float = 0.0
    overlay: bool = False
    crop_padding: int | None = None

    def settings(self) -> dict[str, Any]:
        """As arguments of the pipeline; what has its default is left out, the strength excepted."""
        given: dict[str, Any] = {"strength": self.strength}
        default = Inside()
        for name in ("fit", "mask_blur", "overlay", "crop_padding"):
            if getattr(self, name) != getattr(default, name):
                given[name] = getattr(self, name)
        return given


def check_inside(
    strength: object = 1.0,
    fit: object = "exact",
    mask_blur: object = 0.0,
    overlay: object = False,
    crop_padding: object = None,
) -> Inside:
    """The options as Inside. Raises InputError."""
    blur = number("mask_blur", mask_blur)
    if blur < 0:
        raise InputError(f"mask_blur is {blur:g}: it must be a radius of 0 pixels or more")
    if not isinstance(overlay, bool):
        raise InputError(f"overlay is {show(overlay)}: it must be True or False")
    padding = None if crop_padding is None else integer("crop_padding", crop_padding, 0)
    if padding is not None and fit != "exact":
        raise InputError("fit beside crop_padding: the part that is cut out is always fitted; leave fit out")
    return Inside(check_share("strength", strength), check_fit(fit), blur, overlay, padding)


def inpaint(pipe: Pipeline, request: Request, picture: Picture, mask: Picture, options: Inside) -> Plan:
    """The plan of painting ``picture`` anew where ``mask`` is white."""
    model = pipe.engine.manifest.model
    if model.condition_channels not in (0, model.latent_channels + 1):
        raise InputError(
            f"this model takes {model.condition_channels} channels beside the latents, wanted "
            f"{model.latent_channels + 1} of a model for inpainting, or none: use another engine"
        )
    pipe.vae.check_encoder()
    check_size(pipe, request)
    view = _View.of(picture.image, mask.image, request, options)
    part = Part(skip=skipped(options.strength, request.steps))
    table = call_table(pipe.schedule, request, False, part)
    generator = Generator(request.seed)
    sees = model.condition_channels > 0
    pure = options.strength == 1
    sample = to_sample(view.image)
    kept = None
    if not (sees and pure):
        kept = per_picture(pipe.vae.encode(sample, generator), request.pictures, "image")
    factor = model.vae_scale_factor
    sides = (request.height // factor, request.width // factor)
    noise = generator.randn((request.pictures, model.latent_channels, *sides))
    start = noise * np.float32(table.init_noise_sigma)
    if kept is not None and not pure:
        start = noised(kept, noise, level_of(table))
    inside = interpolate(view.inside, *sides, "nearest")
    conditions: dict[str, NDArray[Any]] = {}
    edit: Edit | None = None
    if sees:
        outside = pipe.vae.encode(sample * (view.inside < 0.5), generator)
        seen = np.concatenate([inside, outside], axis=1)
        conditions["condition"] = per_picture(seen, request.pictures, "image")
    elif kept is not None:
        if model.latent_variance:
            # diffusers encodes the masked picture for models that never see it: the generator moves on.
            generator.randn((1, *kept.shape[1:]))
        edit = _keep(table, kept, noise, inside)
    task = {
        "task": "inpaint",
        "settings": options.settings(),
        "inputs": {"image": [picture.source], "mask": [mask.source]},
    }
    finish = view.paste if options.overlay or options.crop_padding is not None else None
    return Plan(table, start, generator, edit=edit, conditions=conditions, finish=finish, task=task)


@dataclass(frozen=True)
class _View:
    """The part of the picture that the model paints, at its size.

    ``inside`` is float32 [1, 1, height, width], 1 where it is painted anew; ``whole`` and ``mask`` are what
    the result is pasted into, at ``box`` or everywhere.
    """

    image: Image.Image
    inside: Array
    whole: Image.Image
    mask: Image.Image
    box: Box | None

    @classmethod
    def of(cls, image: Image.Image, mask: Image.Image, request: Request, options: Inside) -> _View:
        """Raises InputError for a mask of another size than the picture's, or without white."""
        if mask.size != image.size:
            raise InputError(
                f"mask is {mask.height} x {mask.width} (height x width), the picture {image.height} x "
                f"{image.width}: give a mask of the picture's size"
            )
        if options.mask_blur:
            mask = mask.filter(ImageFilter.GaussianBlur(options.mask_blur))
        size = (request.height, request.width)
        box = None
        if options.crop_padding is not None:
            box = mask_region(mask, *size, options.crop_padding)
            part, cut = (fitted(each.crop(box), *size, "fill") for each in (image, mask))
        else:
            image = part = fitted(image, *size, options.fit)
            mask = cut = fitted(mask, *size, options.fit, "mask")
        shade = np.asarray(cut, np.float32)[None, None] / np.float32(255)
        inside = (shade >= 0.5).astype(np.float32)
        if not inside.any():
            raise InputError("the mask has no white, so that there is nothing to paint: paint the part white")
        return cls(part, inside, image, mask, box)

    def paste(self, images: list[Image.Image]) -> list[Image.Image]:
        """Each picture with what lies outside the mask as it was."""
        pasted = []
        for image in images:
            if self.box is not None:
                left, top, right, bottom = self.box
                canvas = Image.new("RGB", self.whole.size)
                canvas.paste(fitted(image, bottom - top, right - left, "crop"), (left, top))
                image = canvas
            pasted.append(Image.composite(image, self.whole, self.mask))
        return pasted


def mask_region(mask: Image.Image, height: int, width: int, padding: int) -> Box:
    """The box (left, top, right, bottom) around all that is not black, ``padding`` wider on each side.

    It grows to the aspect of ``height`` and ``width`` as far as the mask's borders let it. Raises InputError
    for a mask that is all black.
    """
    found = mask.getbbox()
    if found is None:
        raise InputError("the mask has no white, so that there is nothing to paint: paint the part white")
    left, top = max(found[0] - padding, 0), max(found[1] - padding, 0)
    right, bottom = min(found[2] + padding, mask.width), min(found[3] + padding, mask.height)
    if (right - left) * height > width * (bottom - top):
        top, bottom = _grown(top, bottom, (right - left) * height / width, mask.height)
    else:
        left, right = _grown(left, right, (bottom - top) * width / height, mask.width)
    return left, top, right, bottom


def _grown(low: int, high: int, wanted: float, limit: int) -> tuple[int, int]:
    """The span ``low`` to ``high`` made ``wanted`` long around its middle, pushed inside 0 to ``limit``."""
    more = int(wanted - (high - low))
    low -= more // 2
    high += more - more // 2
    if high >= limit:
        low, high = low - (high - limit), limit
    if low < 0:
        low, high = 0, high - low
    return low, min(high, limit)


def _keep(table: object, kept: Array, noise: Array, inside: Array) -> Edit:
    """What puts the picture back outside the mask, as noisy as the next evaluation expects it."""
    if not isinstance(table, StepTable):
        raise InputError(
            f"sampler {getattr(table, 'sampler', '')!r} chooses its own steps, between which no mask can be "
            "kept; use one such as 'euler', 'ddim' or 'dpmpp_2m'"
        )
    levels = [level_of(table, row) for row in range(len(table.steps))]
    outside = 1 - inside

    def edit(done: int, latents: Array) -> None:
        picture = noised(kept, noise, levels[done]) if done < len(levels) else kept
        np.copyto(latents, outside * picture + inside * latents)

    return edit
