"""What every task hands to the pipeline, and what several tasks share."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from time import perf_counter
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from fastdiff.arguments import number, show
from fastdiff.errors import InputError
from fastdiff.samplers import AdaptiveRun, NoiseSource, StepTable
from fastdiff.samplers.loop import Edit

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = [
    "OUTPUTS",
    "Plan",
    "check_output",
    "check_share",
    "level_of",
    "noised",
    "per_picture",
    "timestep_at",
]

Array = NDArray[np.float32]
OUTPUTS = ("pictures", "latents")


@dataclass(frozen=True)
class Plan:
    """A call from its noise to its pictures, but for the prompt.

    table       the steps
    start       the latents that the first step takes, [pictures, channels, h, w]
    source      what the steps draw noise from
    edit        changes the latents between the steps
    conditions  inputs of the U-Net besides those of the prompt, [pictures, …], for every branch of guidance
    finish      what is done with the decoded pictures
    output      one of `OUTPUTS`: "latents" decodes nothing
    task        settings and inputs that the pictures' metadata hold, by name, besides those of the request
    begin       when the call began
    """

    table: StepTable | AdaptiveRun
    start: Array
    source: NoiseSource
    edit: Edit | None = None
    conditions: Mapping[str, NDArray[Any]] = field(default_factory=dict)
    finish: Callable[[list[Image]], list[Image]] | None = None
    output: str = "pictures"
    task: Mapping[str, Any] = field(default_factory=dict)
    begin: float = field(default_factory=perf_counter)


def check_output(value: object) -> str:
    """One of `OUTPUTS`. Raises InputError."""
    if not isinstance(value, str) or value not in OUTPUTS:
        raise InputError(f"output is {show(value)}: it must be {' or '.join(OUTPUTS)}")
    return value


def check_share(name: str, value: object, *, zero: bool = False) -> float:
    """A number above 0 and up to 1, with ``zero`` from 0 on. Raises InputError."""
    share = number(name, value)
    if not (share >= 0 if zero else share > 0) or share > 1:
        raise InputError(f"{name} is {share:g}: it must be {'from 0' if zero else 'above 0 and up'} to 1")
    return share


def timestep_at(share: float, train_steps: int) -> float:
    """The timestep at which ``share`` of the way from noise to picture is done; rounded as diffusers does."""
    return float(round(train_steps - share * train_steps))


def level_of(table: StepTable | AdaptiveRun, row: int = 0) -> tuple[np.float32, np.float32]:
    """α and σ at which the evaluation ``row`` of a table sees the latents. Raises InputError."""
    point = None if isinstance(table, AdaptiveRun) else table.steps[row].point
    if point is None:
        raise InputError(
            f"sampler {table.sampler!r} has no noise levels that a picture could be given; use one such as "
            "'euler', 'ddim' or 'dpmpp_2m'"
        )
    return np.float32(point.alpha), np.float32(point.sigma)


def noised(latents: Array, noise: Array, level: tuple[np.float32, np.float32]) -> Array:
    """α·x₀ + σ·ε."""
    result: Array = level[0] * latents + level[1] * noise
    return result


def per_picture(latents: Array, pictures: int, name: str) -> Array:
    """One row for each picture of a call, of latents that are one for all or one for each prompt.

    As in diffusers they are repeated as a whole, not each by itself. Raises InputError.
    """
    if pictures % len(latents) or len(latents) > pictures:
        wanted = f"{pictures} picture{'s' * (pictures > 1)}"
        raise InputError(f"{name}: {len(latents)} for {wanted}, give one for all or one each")
    return np.tile(latents, (pictures // len(latents), 1, 1, 1))
