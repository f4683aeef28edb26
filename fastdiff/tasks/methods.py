"""The tasks as methods of a pipeline."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, cast

from fastdiff.arguments import show
from fastdiff.control.request import ControlRequest, check_control
from fastdiff.errors import InputError
from fastdiff.prompts.options import PromptOptions
from fastdiff.request import Request, check_request
from fastdiff.warn import each_once
from fastdiff.watch import Watch

if TYPE_CHECKING:
    from fastdiff.pipeline import Pipeline
    from fastdiff.preview import Preview
    from fastdiff.result import Result
    from fastdiff.samplers import Callback

__all__ = ["Tasks"]

_CONTROL = ("control_", "adapter_", "ip_", "guess_")
"""How the names of options begin that `fastdiff.control` reads."""


class Tasks:
    """What a `fastdiff.pipeline.Pipeline` does with pictures. ``options`` of each method are those of a call:
    negative, steps, sampler, guidance, seed, num, eta, sampler_options and whatever else says how. As in a
    call, ``prompt`` is wanted where the engine takes one; "" leaves what is painted to the model.
    """

    def img2img(
        self,
        image: Any = None,
        prompt: str | list[str] | None = None,
        *,
        strength: float | None = None,
        fit: str = "exact",
        latents: Any = None,
        denoising_start: float | None = None,
        denoising_end: float | None = None,
        output: str = "pictures",
        height: int | None = None,
        width: int | None = None,
        callback: Callback | None = None,
        progress: bool = False,
        preview: Preview | None = None,
        preview_every: int = 1,
        **options: Any,
    ) -> Result:
        """Paint ``image`` anew: a path, a PIL image, an array, or a list of one per picture.

        ``strength``, above 0 up to 1 (0.8), is the share of the steps that is run: the more, the less of the
        picture stays. ``height`` and ``width`` are those of the picture unless given; ``fit`` "resize",
        "crop" or "fill" brings a picture of another size to them. ``latents``, float32
        [pictures, channels, h, w], take the place of the picture, such as those of a result; with
        ``denoising_start``, the share of the way that another model has gone, they are as noisy as that model
        left them. Raises InputError for a picture or an option that cannot be used.
        """
        from fastdiff.tasks.image_to_image import (
            as_pictures,
            check_from_picture,
            check_latents,
            image_to_image,
            side_of,
        )

        chosen = check_from_picture(strength, fit, denoising_start, denoising_end, output)
        pipe = self._pipeline
        model = pipe.engine.manifest.model
        if (image is None) == (latents is None):
            found = "neither image nor" if image is None else "both image and"
            raise InputError(f"{found} latents: give one of them")
        if latents is None and denoising_start is not None:
            raise InputError("denoising_start with an image: it is for latents that another model began")
        pictures = [] if image is None else as_pictures(image)
        given = None
        if latents is not None:
            if fit != "exact":
                raise InputError(f"fit is {fit!r} with latents, which have their size: leave it out")
            given = check_latents(latents, model.latent_channels)
            factor = model.vae_scale_factor
            sizes = {"height": given.shape[2] * factor, "width": given.shape[3] * factor}
            for name, side in (("height", height), ("width", width)):
                if side not in (None, sizes[name]):
                    raise InputError(
                        f"{name} is {show(side)}, but the latents make {sizes[name]}: leave it out"
                    )
        else:
            multiple = model.size_multiple
            sizes = {
                "height": side_of(pictures, "height", fit, multiple) if height is None else height,
                "width": side_of(pictures, "width", fit, multiple) if width is None else width,
            }
        request, control = self.parsed(prompt, {**options, **sizes})
        plan = image_to_image(pipe, request, pictures, given, chosen)
        watch = Watch(callback, progress, preview, preview_every)
        return pipe.carry_out(request, plan, watch, control)

    def inpaint(
        self,
        image: Any,
        mask: Any,
        prompt: str | list[str] | None = None,
        *,
        strength: float = 1.0,
        fit: str = "exact",
        mask_blur: float = 0.0,
        overlay: bool = False,
        crop_padding: int | None = None,
        height: int | None = None,
        width: int | None = None,
        callback: Callback | None = None,
        progress: bool = False,
        preview: Preview | None = None,
        preview_every: int = 1,
        **options: Any,
    ) -> Result:
        """Paint ``image`` anew where ``mask``, of the same size, is white; with any model.

        ``strength`` 1 starts from noise alone. ``mask_blur`` softens the mask's rim by a radius in pixels,
        ``overlay`` pastes the picture's own pixels back outside the mask, and ``crop_padding`` paints the
        mask's surroundings alone, so many pixels wide, at the size of the call, which is then the engine's
        default instead of the picture's. ``fit``, ``height`` and ``width`` as for ``img2img``.
        """
        from fastdiff.pictures import read_mask, read_picture
        from fastdiff.tasks.image_to_image import side_of
        from fastdiff.tasks.inpaint import check_inside, inpaint

        pipe = self._pipeline
        inside = check_inside(strength, fit, mask_blur, overlay, crop_padding)
        picture, hole = read_picture(image), read_mask(mask)
        sizes = {"height": height, "width": width}
        if inside.crop_padding is None:
            multiple = pipe.engine.manifest.model.size_multiple
            for name, side in sizes.items():
                sizes[name] = side_of([picture], name, fit, multiple) if side is None else side
        request, control = self.parsed(prompt, {**options, **sizes})
        plan = inpaint(pipe, request, picture, hole, inside)
        watch = Watch(callback, progress, preview, preview_every)
        return pipe.carry_out(request, plan, watch, control)

    def upscale(
        self,
        image: Any,
        prompt: str | list[str] | None = None,
        *,
        scale: float | None = None,
        method: str | None = None,
        strength: float | None = None,
        noise_level: int | None = None,
        callback: Callback | None = None,
        progress: bool = False,
        preview: Preview | None = None,
        preview_every: int = 1,
        **options: Any,
    ) -> Result:
        """Enlarge ``image`` ``scale`` times (2) and paint its details anew with ``strength`` (0.3).

        ``method`` ("lanczos") is a filter of pixels, "lanczos", "bicubic", "bilinear" or "nearest", or of
        latents, "latent_bicubic", "latent_bilinear" or "latent_nearest". Sides are rounded down to what the
        model takes. Models that were made for it, such as Stable Diffusion's upscaler by 4, enlarge by
        themselves: they take none of these, but ``noise_level`` (20), how much noise covers the details.
        """
        from fastdiff.tasks.high_resolution import upscale
        from fastdiff.tasks.upscaler import upscale_by_model

        pipe = self._pipeline
        watch = Watch(callback, progress, preview, preview_every)
        if pipe.engine.manifest.model.picture_noise is not None:
            others = {"scale": scale, "method": method, "strength": strength}
            return upscale_by_model(pipe, image, prompt, noise_level, others, watch, options)
        if noise_level is not None:
            raise InputError("noise_level is for models that enlarge pictures by themselves: leave it out")
        scale, method = 2.0 if scale is None else scale, "lanczos" if method is None else method
        strength = 0.3 if strength is None else strength
        return upscale(pipe, image, prompt, scale, method, strength, watch, options)

    def high_resolution(
        self,
        prompt: str | list[str] | None = None,
        *,
        scale: float = 2.0,
        method: str = "latent_bilinear",
        strength: float = 0.7,
        callback: Callback | None = None,
        progress: bool = False,
        preview: Preview | None = None,
        preview_every: int = 1,
        **options: Any,
    ) -> Result:
        """A picture of the call's size, enlarged ``scale`` times and painted again with ``strength``.

        What a model does at its own size keeps together; its details come from the second pass. ``method`` as
        for ``upscale``. Both passes have the call's options and its seed; previews count over both.
        """
        from fastdiff.tasks.high_resolution import high_resolution

        pipe = self._pipeline
        watch = Watch(callback, progress, preview, preview_every)
        with each_once():
            return high_resolution(pipe, prompt, scale, method, strength, watch, options)

    def request(self, prompt: Any, **options: Any) -> Request:
        """The checked request of a call with ``options``. Raises InputError, also for unknown options."""
        takes = inspect.signature(check_request).parameters
        defaults = _defaults(type(self), lambda name: name in takes and name != "prompt")
        known = {*defaults, *PromptOptions.__annotations__}
        unknown = [name for name in options if name not in known]
        if unknown:
            raise InputError(f"unknown option {unknown[0]!r}: {self._known(unknown[0], known)}")
        values = {**defaults, **options}
        if values.get("sampler") is None:
            values["sampler"] = self._pipeline.default_sampler()
        return check_request(self._pipeline.engine.manifest.model, prompt=prompt, **values)

    def _known(self, name: str, options: set[str]) -> str:
        """Which task an option is for, or what it may have been meant to be."""
        methods = (Tasks.img2img, Tasks.inpaint, Tasks.upscale, Tasks.high_resolution)
        tasks = {**{one.__name__: one for one in methods}, "pictures from noise": type(self).__call__}
        takes = {
            task: {*inspect.signature(method).parameters} - {"self", "options"}
            for task, method in tasks.items()
        }
        if owners := [task for task, names in takes.items() if name in names]:
            return f"it is for {', '.join(owners)}; leave it out"
        near = difflib.get_close_matches(name, options.union(*takes.values()), n=1)
        return f"did you mean {near[0]}?" if near else f"known are {', '.join(sorted(options))}"

    def parsed(self, prompt: Any, options: dict[str, Any]) -> tuple[Request, ControlRequest]:
        """Request and control of a call with ``options`` of both."""
        defaults = _defaults(type(self), lambda name: name.startswith(_CONTROL))
        request = self.request(
            prompt, **{name: value for name, value in options.items() if name not in defaults}
        )
        values = {name: options.get(name, default) for name, default in defaults.items()}
        return request, check_control(self._pipeline.engine.manifest.model, request, values)

    @property
    def _pipeline(self) -> Pipeline:
        return cast("Pipeline", self)

    @property
    def tile(self) -> str | int:
        """Whether the autoencoder works on tiles: "auto", when memory asks for it; "on"; "off"; or the side
        of a tile in pixels. Assigning checks it (InputError).
        """
        return self._pipeline.vae.tile

    @tile.setter
    def tile(self, value: str | int) -> None:
        self._pipeline.vae.tile = value


def _defaults(kind: type[Any], wanted: Callable[[str], bool]) -> dict[str, Any]:
    """The defaults of those options of a call from noise that are ``wanted``."""
    parameters = inspect.signature(kind.__call__).parameters
    return {
        name: option.default
        for name, option in parameters.items()
        if wanted(name) and option.kind is not inspect.Parameter.VAR_KEYWORD
    }
