"""A sampler's table as arrays that `fastdiff.kernels.reference.table_step` reads, and the schedule's rows."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fastdiff.errors import InputError
from fastdiff.kernels.reference import TABLE_COLUMNS
from fastdiff.samplers import Estimate, Linear, Step, StepTable
from fastdiff.targets.cuda.backend import Backend

__all__ = ["ScheduleRows", "StepArrays", "step_arrays"]

_ALIGNMENT = 16
"""Bytes that every value's part of a row starts at a multiple of, as kernels read 16 bytes at once."""


@dataclass(frozen=True)
class StepArrays:
    """What the steps of a table, S of them, do with guidance, in the layout of ``reference.table_step``.

    rows         (S, len(TABLE_COLUMNS) + slots) float32; coefficients are rounded once, from float64
    saves        (S, 2) int32: the slots that take the sample and the estimate, -1 for none
    timesteps    (S,) float32
    draws        (S,) bool: the steps that draw noise
    first_scale  what the first sample is multiplied by for the model, float32; the rows have the others
    """

    rows: NDArray[np.float32]
    saves: NDArray[np.int32]
    timesteps: NDArray[np.float32]
    draws: NDArray[np.bool_]
    first_scale: np.float32


def step_arrays(table: StepTable, guidance: float, slots: int) -> StepArrays:
    """The arrays of ``table`` for ``slots`` slots, at least as many as it has; those left over count nothing.

    A step without an estimate has m for one, of no weight. Raises InputError for a guidance or a coefficient
    that is not finite in float32, and a slot that the table does not have.
    """
    guidances = table.guidance_scales(guidance)
    for number in (guidance, *guidances):
        if not math.isfinite(number):
            raise InputError(f"guidance is {number}, wanted a finite number")
    if slots < table.slots:
        raise InputError(f"found {slots} slots for a table of {table.slots}, wanted as many or more")
    steps = table.steps
    scales = [step.input_scale for step in steps]
    rows = np.zeros((len(steps), len(TABLE_COLUMNS) + slots))
    saves = np.full((len(steps), 2), -1, np.int32)
    for i, step in enumerate(steps):
        _check(table, i, step)
        estimate = step.estimate or Estimate(Linear(0.0, 1.0))
        named = {
            "guidance": guidances[i],
            "sample": step.update.sample,
            "output": step.update.output,
            "noise": step.noise_coef or 0.0,
            "estimate_sample": estimate.value.sample,
            "estimate_output": estimate.value.output,
            "estimate_limit": estimate.limit,
            "estimate_weight": estimate.weight,
            "next_scale": scales[i + 1] if i + 1 < len(steps) else 1.0,
        }
        rows[i, : len(TABLE_COLUMNS)] = [named[name] for name in TABLE_COLUMNS]
        for slot, coef in step.history:
            rows[i, len(TABLE_COLUMNS) + slot] += coef
        if step.save_sample is not None:
            saves[i, 0] = step.save_sample
        # In one slot the sample stays, as in fastdiff.samplers.loop; table_step would let the output stay.
        if step.save_output is not None and step.save_output != step.save_sample:
            saves[i, 1] = step.save_output
    with np.errstate(over="ignore"):
        rounded = rows.astype(np.float32)
        first = np.float32(scales[0] if scales else 1.0)
    finite = np.isfinite(rounded)
    finite[:, TABLE_COLUMNS.index("estimate_limit")] = True  # infinity does not clip
    if not (finite.all() and np.isfinite(first)):
        raise InputError(
            f"sampler {table.sampler!r} has a coefficient that float32 cannot hold; use another step count"
        )
    draws = np.array([step.draws_noise for step in steps], np.bool_)
    return StepArrays(rounded, saves, np.array(table.timesteps, np.float32), draws, first)


def _check(table: StepTable, index: int, step: Step) -> None:
    used = [slot for slot, _ in step.history]
    used += [slot for slot in (step.save_sample, step.save_output) if slot is not None]
    for slot in used:
        if not 0 <= slot < table.slots:
            raise InputError(
                f"step {index} of sampler {table.sampler!r} uses slot {slot}, wanted one of its {table.slots}"
            )


class ScheduleRows:
    """What the schedule stage computed for all steps: one table per dtype, and the row of the current step.

    ``values``: samples of what the stage returns, (S, …) each, with S the capacity in steps. ``views`` are
    (1, …) each and static: a gather fills them with the row of one step.
    """

    def __init__(self, backend: Backend, values: Sequence[Tensor]) -> None:
        widths: dict[torch.dtype, int] = {}
        places: list[tuple[int, int]] = []
        for value in values:
            start, size = widths.get(value.dtype, 0), math.prod(value.shape[1:])
            places.append((start, start + size))
            unit = max(_ALIGNMENT // value.element_size(), 1)
            widths[value.dtype] = -(-(start + size) // unit) * unit
        capacity = values[0].shape[0] if values else 0
        self._tables = {dtype: backend.zeros((capacity, width), dtype) for dtype, width in widths.items()}
        self._rows = {dtype: backend.zeros((1, width), dtype) for dtype, width in widths.items()}
        self._columns = []
        self.views: list[Tensor] = []
        for value, (start, stop) in zip(values, places, strict=True):
            self._columns.append(self._tables[value.dtype][:, start:stop])
            self.views.append(self._rows[value.dtype][:, start:stop].view(1, *value.shape[1:]))

    @property
    def tensors(self) -> list[Tensor]:
        """All static memory."""
        return [*self._tables.values(), *self._rows.values()]

    def fill(self, values: Sequence[Tensor]) -> None:
        """Put what the stage returned into the tables."""
        for column, value in zip(self._columns, values, strict=True):
            column.copy_(value.reshape(column.shape))

    def gather(self, counter: Tensor) -> None:
        """Make ``views`` the row of step ``counter``, (1,) int32 on the device: one gather per dtype."""
        for dtype, table in self._tables.items():
            torch.index_select(table, 0, counter, out=self._rows[dtype])
