"""What the registry knows of a sampler."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
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
    order        of the global error: n times the steps divide it by n^order where the data is smooth. With
                 noise, that of the variance on Gaussian data
    evaluations  of the model per step
    stochastic   draws noise unless options forbid it
    paper        authors and title of its source
    classes      diffusers' scheduler classes that it stands for
    when         the values of a class's options for which it does, where several samplers share the class;
                 None among them is the key's absence
    inverse      leads from a picture's latents to noise
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
    inverse: bool = False
    adaptive: Callable[[NoiseSchedule], AdaptiveRun] | None = None
    when: Mapping[str, Collection[object]] = field(default_factory=dict)

    def stands_for(self, config: Mapping[str, object]) -> bool:
        """Whether this is the sampler of a ``scheduler_config.json``."""
        return config.get("_class_name") in self.classes and all(
            config.get(key) in values for key, values in self.when.items()
        )
