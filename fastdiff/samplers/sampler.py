"""What the registry knows of a sampler."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fastdiff.samplers.schedule import NoiseSchedule
from fastdiff.samplers.table import StepTable

if TYPE_CHECKING:
    from fastdiff.samplers.adaptive import AdaptiveRun

__all__ = ["Sampler"]


@dataclass(frozen=True)
class Sampler:
    """A sampler by name. Each family's file lists its own as ``SAMPLERS``.

    name         what users write
    table        makes the table for a schedule, whose config holds the options, and a step count
    order        of the global error: n times the steps divide it by n^order where the data is smooth
    evaluations  of the model per step
    stochastic   draws noise unless options forbid it
    paper        authors and title of its source
    classes      diffusers' scheduler classes that it stands for; `fastdiff.samplers.registry` picks by their
                 options where several samplers share one
    any_steps    the step count is not limited to the number of training timesteps
    adaptive     for samplers that choose their steps while they run: reads the options of a schedule's
                 config; ``table`` then raises `InputError`
    """

    name: str
    table: Callable[[NoiseSchedule, int], StepTable]
    order: int
    evaluations: int
    stochastic: bool
    paper: str
    classes: tuple[str, ...] = ()
    any_steps: bool = False
    adaptive: Callable[[NoiseSchedule], AdaptiveRun] | None = None
