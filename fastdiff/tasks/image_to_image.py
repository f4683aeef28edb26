"""A picture painted anew: Meng et al., "SDEdit: Guided Image Synthesis and Editing with Stochastic
Differential Equations".

Semantics are those of diffusers' ``StableDiffusionImg2ImgPipeline`` with one generator: it draws from the
encoder's posterior, then the noise that is added, then what the sampler's steps want.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from fastdiff.arguments import show
from fastdiff.call_size import check_size
from fastdiff.errors import InputError
from fastdiff.inputs import call_table
from fastdiff.pictures import FITS, fitted, read_picture, to_sample
from fastdiff.request import Request
from fastdiff.samplers import AdaptiveRun, Generator, NoiseSchedule, Part, StepTable
from fastdiff.tasks.plan import (
    Plan,
    check_output,
    check_share,
    level_of,
    noised,
    per_picture,
    timestep_at,
)

if TYPE_CHECKING:
    from fastdiff.pictures import Picture
    from fastdiff.pipeline import Pipeline

__all__ = [
    "FromPicture",
    "as_pictures",
    "check_fit",
    "check_from_picture",
    "check_latents",
    "image_to_image",
    "remaining_steps",
    "side_of",
    "skipped",
    "steps_from_picture",
]

Array = NDArray[np.float32]


@dataclass(frozen=True)
class FromPicture:
    """What image-to-image asks for besides its request.

    strength         the share of the steps that is run; 1 leaves the picture's faintest trace
    fit              what is done with a picture of another size, one of `fastdiff.pictures.FITS`
    denoising_start  instead of strength: the share of the way that another model has gone already
    denoising_end    as for `fastdiff.tasks.text_to_image.FromNoise`
    output           "pictures" or "latents"
    """

    strength: float = 0.8
    fit: str = "exact"
    denoising_start: float | None = None
    denoising_end: float | None = None
    output: str = "pictures"

    def settings(self) -> dict[str, Any]:
        """As arguments of the pipeline; what has its default is left out, the strength excepted."""
        given: dict[str, Any] = {"strength": self.strength}
        if self.denoising_start is not None:
            given = {"denoising_start": self.denoising_start}
        if self.fit != "exact":
            given["fit"] = self.fit
        if self.denoising_end is not None:
            given["denoising_end"] = self.denoising_end
        return {**given, **({"output": self.output} if self.output != "pictures" else {})}


def check_from_picture(
    strength: object = None,
    fit: object = "exact",
    denoising_start: object = None,
    denoising_end: object = None,
    output: object = "pictures",
) -> FromPicture:
    """The options as FromPicture; ``strength`` None is 0.8. Raises InputError."""
    if strength is not None and denoising_start is not None:
        raise InputError("strength beside denoising_start: both say where to start; leave one out")
    start = None if denoising_start is None else check_share("denoising_start", denoising_start, zero=True)
    end = None if denoising_end is None else check_share("denoising_end", denoising_end)
    if start is not None and start >= (1 if end is None else end):
        raise InputError(f"denoising_start is {start:g}: it must be less than {1 if end is None else end:g}")
    share = 0.8 if strength is None else check_share("strength", strength)
    return FromPicture(share, check_fit(fit), start, end, check_output(output))


def check_fit(fit: object) -> str:
    """One of `FITS`. Raises InputError."""
    if not isinstance(fit, str) or fit not in FITS:
        raise InputError(f"fit is {show(fit)}: it must be one of {', '.join(FITS)}")
    return fit


def skipped(strength: float, steps: int) -> int:
    """How many of ``steps`` are left out for ``strength``. Raises InputError where no step remains."""
    kept = min(int(steps * strength), steps)
    if kept < 1:
        least = next(count for count in range(steps, 10**9) if int(count * strength) >= 1)
        raise InputError(
            f"strength {strength:g} of {steps} steps leaves none to run: use more strength, or {least} steps "
            "and more"
        )
    return steps - kept


def as_pictures(given: object, name: str = "image") -> list[Picture]:
    """One picture, or a list of them. Raises InputError."""
    each = given if isinstance(given, (list, tuple)) else [given]
    if not each:
        raise InputError(f"{name} is an empty list: give at least one picture")
    if len(each) == 1:
        return [read_picture(each[0], name)]
    return [read_picture(one, f"{name} {index}") for index, one in enumerate(each)]


def side_of(pictures: list[Picture], side: str, fit: str, multiple: int) -> int:
    """The height or width of a call that names none: the picture's own, rounded down where ``fit`` allows."""
    size: int = getattr(pictures[0].image, side)
    below = size // multiple * multiple
    if below == size:
        return size
    if fit == "exact" or below == 0:
        way = (
            f"with fit crop, resize or fill (--fit crop) it becomes {below}"
            if below
            else f"set {side} to {multiple} and fit to fill"
        )
        raise InputError(f"the picture's {side} is {size}: it must be a multiple of {multiple}; {way}")
    return below


def check_latents(given: object, channels: int) -> Array:
    """Latents of pictures, float32 [count, channels, h, w]. Raises InputError."""
    latents = np.asarray(given)
    if latents.ndim != 4 or latents.shape[1] != channels or latents.dtype.kind != "f" or not latents.size:
        raise InputError(
            f"latents are {latents.dtype} {list(latents.shape)}: they must be float32 [pictures, {channels}, "
            "height, width], such as a result's"
        )
    if not np.isfinite(latents).all():
        raise InputError("latents hold NaN or infinity: give finite ones")
    return np.ascontiguousarray(latents, np.float32)


def steps_from_picture(pipe: Pipeline, request: Request, options: FromPicture) -> StepTable:
    """The steps of a call that begins in the middle. Raises InputError for a call that has none."""
    check_size(pipe, request)
    return remaining_steps(pipe.schedule, request, options)


def image_to_image(
    pipe: Pipeline,
    request: Request,
    pictures: list[Picture],
    latents: Array | None,
    options: FromPicture,
    generator: Generator | None = None,
) -> Plan:
    """The plan of painting ``pictures``, or the pictures of ``latents``, anew.

    With ``denoising_start`` the latents are as noisy as they came and get no noise. ``generator`` None begins
    with the call's seed.
    """
    if latents is None:
        pipe.vae.check_encoder()
    table = steps_from_picture(pipe, request, options)
    generator = Generator(request.seed) if generator is None else generator
    task: dict[str, Any] = {"task": "img2img", "settings": options.settings()}
    if latents is None:
        size = (request.height, request.width)
        samples = [to_sample(fitted(one.image, *size, options.fit)) for one in pictures]
        latents = pipe.vae.encode(np.concatenate(samples), generator)
        task["inputs"] = {"image": [one.source for one in pictures]}
    else:
        task["latents"] = "given"
    latents = per_picture(latents, request.pictures, "image" if pictures else "latents")
    if options.denoising_start is None:
        latents = noised(latents, generator.randn(latents.shape), level_of(table))
    return Plan(table, latents, generator, output=options.output, task=task)


def remaining_steps(schedule: NoiseSchedule, request: Request, options: FromPicture) -> StepTable:
    """The steps that are left of a sampler's way. Raises InputError where there are none.

    A latent consistency model runs all of its few steps, spread over the timesteps that are left, as
    diffusers' ``LatentConsistencyModelImg2ImgPipeline`` does, unless its timesteps are given.
    """
    table = _table(schedule, request, options)
    level_of(table)
    assert isinstance(table, StepTable)  # what has levels
    return table


def _table(schedule: NoiseSchedule, request: Request, options: FromPicture) -> StepTable | AdaptiveRun:
    train_steps = schedule.num_train_timesteps
    start, end = options.denoising_start, options.denoising_end
    until = -np.inf if end is None or end == 1 else timestep_at(end, train_steps)
    spread = request.embedded and request.sampler == "lcm" and "timesteps" not in request.options
    if start is None and spread and options.strength < 1:
        if "strength" in request.options:
            raise InputError(
                "strength is an option of the sampler as well as of the call: leave the sampler's out"
            )
        request = replace(request, options={**request.options, "strength": options.strength})
        return call_table(schedule, request, False, Part(until=until))
    part = Part(
        skip=skipped(options.strength, request.steps) if start is None else 0,
        below=timestep_at(start, train_steps) if start else np.inf,
        until=until,
    )
    return call_table(schedule, request, False, part)
