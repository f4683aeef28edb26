"""Dynamic thresholding inside a captured step: the threshold of each picture, without the host."""

from __future__ import annotations

import math

from torch import Tensor

from fastdiff.errors import InputError
from fastdiff.kernels.reference import TABLE_COLUMNS
from fastdiff.samplers import StepTable, Threshold

__all__ = ["dynamic_threshold", "table_threshold"]

_GUIDANCE, _SAMPLE, _OUTPUT = (
    TABLE_COLUMNS.index(name) for name in ("guidance", "estimate_sample", "estimate_output")
)


def table_threshold(table: StepTable) -> Threshold | None:
    """The threshold that all steps of ``table`` share, None for a table that is linear.

    Raises InputError for any other table: the device's loop does not run it.
    """
    if table.linear:
        return None
    estimates = [step.estimate for step in table.steps]
    thresholds = {None if estimate is None else estimate.threshold for estimate in estimates}
    others = any(step.variance is not None or step.langevin is not None for step in table.steps)
    limits = any(estimate is not None and estimate.limit != math.inf for estimate in estimates)
    if table.variance_channels or others or limits or len(thresholds) != 1:
        raise InputError(
            f"sampler {table.sampler!r} has steps that are not linear, of which the device's loop runs one "
            "dynamic threshold for all; use fastdiff.samplers.sample"
        )
    return thresholds.pop()


def dynamic_threshold(
    threshold: Threshold, sample: Tensor, output: Tensor, rows: Tensor, counter: Tensor, guided: bool
) -> Tensor:
    """The s of `Threshold` for each picture, (B,) float32.

    ``sample`` (B, C, H, W), ``output`` (B, …) or with ``guided`` (2·B, …), ``rows`` and ``counter`` as for
    ``fastdiff.kernels.reference.table_step``. Reads nothing back, and no size depends on a value.
    """
    row = rows.index_select(0, counter)[0]
    m = output.to(sample.dtype)
    if guided:
        uncond, cond = m.chunk(2)
        m = uncond + row[_GUIDANCE] * (cond - uncond)
    sizes = (row[_SAMPLE] * sample + row[_OUTPUT] * m).abs().flatten(1)
    ordered = sizes.sort(dim=1).values
    position = threshold.ratio * (sizes.shape[1] - 1)
    low, high = ordered[:, math.floor(position)], ordered[:, math.ceil(position)]
    return (low + (position - math.floor(position)) * (high - low)).clamp(1.0, threshold.maximum)
