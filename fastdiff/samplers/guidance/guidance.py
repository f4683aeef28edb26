"""The value that says all about a run's guidance, folded into the table or computed at each step."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from fastdiff.errors import InputError
from fastdiff.samplers.guidance.cfg import CFG
from fastdiff.samplers.guidance.interval import Interval
from fastdiff.samplers.guidance.method import Array, Evaluation, Method, finite
from fastdiff.samplers.guidance.rescale import rescaled
from fastdiff.samplers.guidance.schedule import PerStep, Schedule
from fastdiff.samplers.table import StepTable

if TYPE_CHECKING:
    from fastdiff.samplers.loop import Denoiser, Outputs

__all__ = ["Guidance"]


@dataclass(frozen=True)
class Guidance:
    """How the outputs with the prompt and without become the one that the solver sees.

    scale     w, 1 is none: m = uncond + w·(cond − uncond) for `CFG`; each method says what it does with it
    method    how the outputs are combined
    schedule  how the scale changes over the steps
    interval  the steps that have guidance, None for all
    rescale   φ of Lin et al., 0 to 1: how much of the spread of cond the result gets back
    original  the scale is that of Ho and Salimans, cond + w·(cond − uncond), 1 less; 0 is none. The schedule
              applies to it

    The order is schedule, interval, method, rescale. A row of the table with a scale of its own keeps that in
    place of the scheduled one. Raises `InputError` for values that cannot be used together.
    """

    scale: float
    method: Method = field(default_factory=CFG)
    schedule: Schedule | PerStep = field(default_factory=Schedule)
    interval: Interval | None = None
    rescale: float = 0.0
    original: bool = False

    def __post_init__(self) -> None:
        for name, kinds in (
            ("method", Method),
            ("schedule", Schedule | PerStep),
            ("interval", Interval | None),
        ):
            if not isinstance(getattr(self, name), kinds):
                raise InputError(
                    f"{name} of guidance is of type {type(getattr(self, name)).__name__}, wanted one of "
                    "fastdiff.samplers.guidance"
                )
        finite("guidance", scale=self.scale, rescale=self.rescale)
        if not 0 <= self.rescale <= 1:
            raise InputError(f"guidance rescale is {self.rescale:g}, wanted 0 to 1")
        if self.rescale and not self.method.rescales:
            raise InputError(
                f"guidance {self.method.name!r} cannot be rescaled, found {self.rescale:g}; use 0"
            )
        if self.original and not self.method.original:
            raise InputError(
                f"guidance {self.method.name!r} has no original formulation; leave it out, and give its own "
                "scale"
            )

    @property
    def linear(self) -> bool:
        """Whether it folds into a table."""
        return self.method.linear and not self.rescale

    @property
    def branches(self) -> int:
        """The most outputs that a step needs: 1 with the prompt alone, 2 without it too, 3 and negative."""
        scale = self._plain_scale(self.scale)
        off = self.schedule == Schedule() and self.method.is_off(scale)
        return 1 if off else self.method.branches

    def check(self, table: StepTable) -> None:
        """Raises `InputError` where the guidance cannot be used with ``table``."""
        if self.linear:
            self.fold(table)
        for step, needed in zip(table.steps, self.evaluations(table), strict=True):
            if needed > 1:
                self.method.check(step)

    def scales(self, table: StepTable) -> tuple[float | None, ...]:
        """W of each step, None where there is no guidance. Raises `InputError` as the parts do."""
        count = len(table.steps)
        inside = (True,) * count if self.interval is None else self.interval.holds(table)
        result: list[float | None] = []
        for step, scheduled, holds in zip(
            table.steps, self.schedule.scales(self.scale, count), inside, strict=True
        ):
            scale = self._plain_scale(scheduled) if step.guidance is None else step.guidance
            result.append(scale if holds and not self.method.is_off(scale) else None)
        return tuple(result)

    def evaluations(self, table: StepTable) -> tuple[int, ...]:
        """How many outputs each step needs: 0 to 3."""
        return tuple(
            0 if self.method.zeroes(index) else 1 if scale is None else self.method.branches
            for index, scale in enumerate(self.scales(table))
        )

    def fold(self, table: StepTable) -> tuple[StepTable, float]:
        """A table with a scale in each row, and the scale of the call: linear guidance as plain guidance.

        The call's is 1 where no row is guided; rows without one of their own take it, as they do in plain
        guidance that is constant. Raises `InputError` for guidance that is not linear, and for a table whose
        rows the method cannot be folded into.
        """
        if not self.linear:
            what = self.method.name if not self.method.linear else "rescale"
            raise InputError(f"guidance with {what!r} is not linear and cannot be folded into a table")
        if self.method == CFG() and self.interval is None and self.schedule == Schedule():
            return table, float(self._plain_scale(self.scale))
        folded = tuple(
            1.0 if scale is None else self.method.folded(step, scale)
            for step, scale in zip(table.steps, self.scales(table), strict=True)
        )
        return table.with_guidance(folded), next((scale for scale in folded if scale != 1), 1.0)

    def bind(self, table: StepTable, denoise: Denoiser) -> tuple[StepTable, float, Denoiser]:
        """Table, scale and denoiser with which a loop that knows plain guidance alone runs this one.

        For one run: what is not linear keeps its state in the denoiser. Raises `InputError` as `check` does.
        """
        if self.linear:
            return *self.fold(table), denoise
        self.check(table)
        return table.with_guidance((1.0,) * len(table.steps)), 1.0, _Combined(self, table, denoise)

    def _plain_scale(self, scale: float) -> float:
        return scale + 1 if self.original else scale


class _Combined:
    """A denoiser whose output is the guided one. Called once per row, in their order."""

    def __init__(self, guidance: Guidance, table: StepTable, denoise: Denoiser) -> None:
        self._guidance = guidance
        self._combine = guidance.method.start()
        rows = zip(table.steps, guidance.scales(table), guidance.evaluations(table), strict=True)
        self._rows = iter(tuple(rows))
        self._denoise = denoise
        self._variance_channels = table.variance_channels

    def __call__(self, sample: Array, timestep: float, guided: int) -> Outputs:
        step, scale, needed = next(self._rows)
        if not needed:
            shape = list(sample.shape)
            shape[1] *= 2 if self._variance_channels else 1
            return np.zeros(shape, sample.dtype), None
        outputs = self._denoise(sample, timestep, needed - 1)
        cond = outputs[0]
        if scale is None:
            return cond, None
        found = sum(output is not None for output in outputs)
        if found < needed:
            raise InputError(
                f"guidance {self._guidance.method.name!r} needs {needed} outputs of the denoiser, found "
                f"{found}"
            )
        if not self._variance_channels:
            return self._guided(Evaluation(step, scale, sample, *outputs[:needed])), None  # type: ignore[arg-type]
        # The variance is the one with the prompt, as in diffusers' pipelines.
        channels = sample.shape[1]
        means = (output[:, :channels] for output in outputs[:needed] if output is not None)
        guided_mean = self._guided(Evaluation(step, scale, sample, *means))
        return np.concatenate([guided_mean, cond[:, channels:]], axis=1), None

    def _guided(self, row: Evaluation) -> Array:
        guided = self._combine(row)
        phi = self._guidance.rescale
        return np.ascontiguousarray(rescaled(guided, row.cond, phi) if phi else guided)
