"""Pictures from noise: the whole of a sampler's way, or its beginning for another model to go on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from fastdiff.call_size import check_size
from fastdiff.errors import InputError
from fastdiff.inputs import call_table, unit_noise
from fastdiff.request import Request
from fastdiff.samplers import Generator, NoiseSource, Part
from fastdiff.tasks.plan import Plan, check_output, check_share, timestep_at
from fastdiff.tasks.variations import Variation, check_variation

if TYPE_CHECKING:
    from fastdiff.pipeline import Pipeline

__all__ = ["FromNoise", "check_from_noise", "text_to_image"]

Array = NDArray[np.float32]


@dataclass(frozen=True)
class FromNoise:
    """What a call from noise asks for besides its request.

    denoising_end  the share of the way after which the latents are handed over, None for all of it
    output         what comes out, "pictures" or "latents"
    variation      the noise of another seed to mix in
    """

    denoising_end: float | None = None
    output: str = "pictures"
    variation: Variation | None = None

    def settings(self) -> dict[str, Any]:
        """As arguments of the pipeline; what has its default is left out."""
        given: dict[str, Any] = {}
        if self.denoising_end is not None:
            given["denoising_end"] = self.denoising_end
        if self.output != "pictures":
            given["output"] = self.output
        return {**given, **(self.variation.settings() if self.variation else {})}


def check_from_noise(
    denoising_end: object = None,
    output: object = "pictures",
    variation_seed: object = None,
    variation_strength: object = None,
) -> FromNoise:
    """The options as FromNoise. Raises InputError."""
    return FromNoise(
        None if denoising_end is None else check_share("denoising_end", denoising_end),
        check_output(output),
        check_variation(variation_seed, variation_strength),
    )


def text_to_image(
    pipe: Pipeline,
    request: Request,
    latents: Array | None = None,
    noise: NoiseSource | None = None,
    options: FromNoise | None = None,
) -> Plan:
    """The plan of a call from noise, or from ``latents`` of unit variance in place of drawn noise.

    ``noise`` is what a stochastic sampler draws from, None: the seed's generator.
    """
    options = options or FromNoise()
    if options.variation is not None and latents is not None:
        raise InputError("variation_seed beside latents: the noise is given already; leave one of them out")
    check_size(pipe, request)
    part = Part()
    if options.denoising_end is not None and options.denoising_end < 1:
        part = Part(until=timestep_at(options.denoising_end, pipe.schedule.num_train_timesteps))
    table = call_table(pipe.schedule, request, latents is not None, part)
    generator = Generator(request.seed)
    unit = unit_noise(pipe.engine.manifest.model, request, latents, generator)
    if options.variation is not None:
        unit = options.variation.apply(unit)
    start = unit * np.float32(table.init_noise_sigma)
    task: dict[str, Any] = {"settings": options.settings()}
    if latents is not None:
        task["latents"] = "given"  # the settings alone do not repeat the picture
    return Plan(table, start, generator if noise is None else noise, output=options.output, task=task)
