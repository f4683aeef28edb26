"""The noise levels that DPM-Solver and its relatives visit, read from a diffusers scheduler config."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from fastdiff.errors import InputError
from fastdiff.samplers.exponential import Form
from fastdiff.samplers.flow_levels import read_flow_shift
from fastdiff.samplers.moves import Move, rows_of
from fastdiff.samplers.path import Point
from fastdiff.samplers.placement import given_sigmas, given_timesteps, placed_sigmas, sigma_spacing
from fastdiff.samplers.prediction import Linear, Prediction
from fastdiff.samplers.schedule import NoiseSchedule
from fastdiff.samplers.settings import Settings
from fastdiff.samplers.spacing import SPACINGS, sigma_to_timestep, spaced_timesteps
from fastdiff.samplers.table import StepTable, Threshold

__all__ = [
    "LambdaPath",
    "PathRules",
    "chain_timesteps",
    "clipped_span",
    "lambda_path",
    "level_point",
    "read_path",
]

Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]


@dataclass(frozen=True)
class PathRules:
    """Where diffusers' classes differ in placing their steps.

    spacings           timestep_spacing and steps_offset are options; else "linspace"
    clips_lambda       lambda_min_clipped is an option
    zero_terminal_snr  rescale_betas_zero_snr is an option
    final              the default of final_sigmas_type; None where it is no option but "sigma_min"
    ends_at_schedule   the lowest level is the training's; else, for levels that do not come from timesteps,
                       the last one visited, once more
    cuts_cosine        timesteps of placed levels are cut off for the cosine schedule; else always rounded
    flow_from_one      flow levels start at σ = 1 and may be shifted by UniPC's options; else at 1 − 1/T
    """

    spacings: bool = True
    clips_lambda: bool = True
    zero_terminal_snr: bool = False
    final: str | None = "zero"
    ends_at_schedule: bool = True
    cuts_cosine: bool = False
    flow_from_one: bool = False


@dataclass(frozen=True)
class LambdaPath:
    """The points of a run and what else its table needs.

    points             one per evaluation and the end
    threshold          dynamic thresholding of x₀, or None
    variance_channels  the model predicts variances too, which these solvers drop
    begin              how many steps were left out before the first point
    """

    points: tuple[Point, ...]
    threshold: Threshold | None = None
    variance_channels: bool = False
    begin: int = 0

    @property
    def steps(self) -> int:
        """Number of evaluations."""
        return len(self.points) - 1

    @property
    def total(self) -> int:
        """Number of evaluations of the whole way."""
        return self.begin + self.steps

    @property
    def ends_without_noise(self) -> bool:
        """Whether the path ends at σ = 0, λ = ∞."""
        return self.points[-1].sigma == 0

    def table(self, sampler: str, moves: Sequence[Move], form: Form) -> StepTable:
        """The table of ``moves`` along this path."""
        rows, slots = rows_of(self.points, moves, form, self.threshold)
        return StepTable(sampler, tuple(rows), slots=slots, variance_channels=self.variance_channels)


def lambda_path(schedule: NoiseSchedule, settings: Settings, steps: int, rules: PathRules) -> LambdaPath:
    """The path for ``steps`` steps; fewer with trailing spacing and clipped λ.

    Reads the class's own keys as ``rules`` say, and for all classes: use_karras_sigmas,
    use_exponential_sigmas, use_beta_sigmas, use_lu_lambdas and sigma_spacing with sigma_min and sigma_max;
    use_flow_sigmas with flow_shift, or use_dynamic_shifting with time_shift_type and ``mu``; ``timesteps`` or
    ``sigmas``, one per step; thresholding, dynamic_thresholding_ratio and sample_max_value; variance_type.
    With use_flow_sigmas, ``sigmas`` are the flow's, before the shift; else σ/α.

    Raises `InputError` for values that are not supported and for options that exclude each other.
    """
    zero_terminal_snr = rules.zero_terminal_snr and settings.flag("rescale_betas_zero_snr", False)
    train_sigmas = schedule.sigmas(zero_terminal_snr=zero_terminal_snr)
    flow = settings.flag("use_flow_sigmas", False)
    final = "sigma_min"
    if rules.final is not None:
        final = settings.choice("final_sigmas_type", rules.final, ("zero", "sigma_min"))
    timesteps, levels, placed = _levels(schedule, settings, train_sigmas, steps, rules, flow)
    last = 0.0
    if final == "sigma_min":
        last = float(train_sigmas[0] if rules.ends_at_schedule or not placed else levels[-1])
    path = read_path(schedule, settings, timesteps, np.append(levels, last), flow)
    begin = settings.begin([point.timestep for point in path.points[:-1]])
    return replace(path, points=path.points[begin:], begin=begin)


def read_path(
    schedule: NoiseSchedule, settings: Settings, timesteps: Float64, levels: Float64, flow: bool
) -> LambdaPath:
    """The path through ``levels``, σ of a flow or else σ/α, one more than ``timesteps``.

    Reads thresholding, dynamic_thresholding_ratio, sample_max_value and variance_type: with one, the second
    half of the output's channels is dropped whatever the output means, in diffusers for ε alone.
    """
    ratio = settings.number("dynamic_thresholding_ratio", 0.995)
    if not 0 <= ratio <= 1:
        raise InputError(f"dynamic_thresholding_ratio is {ratio:g}, wanted 0 to 1; correct the config")
    maximum = settings.positive("sample_max_value", 1.0)
    threshold = Threshold(ratio, maximum) if settings.flag("thresholding", False) else None
    variance = settings.is_set("variance_type")
    if variance:
        settings.choice("variance_type", "learned", ("learned", "learned_range"))
    points = (
        level_point(float(timestep), float(level), schedule.prediction, flow)
        for timestep, level in zip(np.append(timesteps, 0.0), levels.astype(np.float32), strict=True)
    )
    return LambdaPath(tuple(points), threshold, variance)


def level_point(timestep: float, level: float, prediction: Prediction, flow: bool) -> Point:
    """The point with the noise level ``level``: σ on a flow's path, where α = 1 − σ; else σ/α, α² + σ² = 1.

    diffusers reads x₀ of a flow prediction as x − level·output on every path, followed here; it is the
    velocity's x₀ on a flow's path alone.
    """
    if flow:
        return Point(timestep, 1 - level, level, prediction)
    alpha = 1 / math.sqrt(level**2 + 1)
    denoised = Linear(1.0, -level) if prediction is Prediction.FLOW else None
    return Point(timestep, alpha, level * alpha, prediction, denoised=denoised)


def _levels(
    schedule: NoiseSchedule,
    settings: Settings,
    train_sigmas: Float32,
    steps: int,
    rules: PathRules,
    flow: bool,
) -> tuple[Float64, Float64, bool]:
    """Timesteps and levels of the evaluations, and whether the timesteps follow from the levels."""
    train_steps = schedule.num_train_timesteps
    spacing = sigma_spacing(settings)
    low, high = _range(settings, train_sigmas)
    sigmas = given_sigmas(settings, steps)
    timesteps = given_timesteps(settings, steps)
    shift = read_flow_shift(settings, of_unipc=rules.flow_from_one, flow=flow)
    asked = [
        name
        for name, value in (("timesteps", timesteps), ("sigmas", sigmas), (f"spacing {spacing!r}", spacing))
        if value is not None
    ]
    if timesteps is not None and flow:
        asked.append("use_flow_sigmas")
    if len(asked) > 1:
        raise InputError(f"{asked[0]} and {asked[1]} both say where the steps lie; keep one")

    if spacing is not None:
        if settings.flag("use_lu_lambdas", False):
            levels = _lu_levels(train_sigmas, steps)
        else:
            levels = placed_sigmas(settings, spacing, low, high, steps)
        if flow:
            levels = levels / (1 + levels)
    elif flow:
        levels = shift.levels(sigmas, steps, train_steps, from_one=rules.flow_from_one)
    elif sigmas is not None:
        levels = sigmas
    else:
        if timesteps is None:
            span = clipped_span(settings, train_sigmas) if rules.clips_lambda else train_steps
            timesteps = chain_timesteps(settings, train_steps, steps, span, spacings=rules.spacings)
        elif timesteps[0] > train_steps - 1:
            raise InputError(
                f"timesteps starts with {timesteps[0]:g}, but the model was trained on 0 to {train_steps - 1}"
            )
        timesteps = np.trunc(timesteps)
        return timesteps, np.interp(timesteps, np.arange(train_steps), train_sigmas), False
    if flow:
        return np.trunc(levels * train_steps), levels, True
    timesteps = sigma_to_timestep(levels, train_sigmas)
    # diffusers rounds the timesteps of some spacings and cuts those of others off by storing integers.
    cuts = spacing in ("exponential", "beta") or (
        rules.cuts_cosine and schedule.config.get("beta_schedule") == "squaredcos_cap_v2"
    )
    return np.trunc(timesteps) if cuts else timesteps.round(), levels, True


def clipped_span(settings: Settings, train_sigmas: Float32) -> int:
    """How many of the training's timesteps have λ ≥ lambda_min_clipped: timesteps are placed among these.

    The cosine schedule ends in very large negative λ.
    """
    clip = settings.number("lambda_min_clipped", -math.inf)
    span = len(train_sigmas) - int(np.searchsorted(-np.log(train_sigmas)[::-1], clip))
    if span < 1:
        raise InputError(f"lambda_min_clipped is {clip:g}, which skips all timesteps; use a lower value")
    return span


def chain_timesteps(
    settings: Settings,
    train_steps: int,
    steps: int,
    span: int,
    *,
    spacings: bool = True,
    rising: bool = False,
) -> Float64:
    """Timesteps of a path down from timestep ``span`` − 1, or, ``rising``, of one up to it.

    "leading" and "linspace" place one timestep more than there are steps: the last of a path is its end and
    not visited. Reads timestep_spacing and steps_offset unless ``spacings`` is false.
    """
    spacing = settings.choice("timestep_spacing", "linspace", SPACINGS) if spacings else "linspace"
    offset = settings.integer("steps_offset", 0, minimum=0) if spacings else 0
    if spacing == "trailing":
        timesteps = spaced_timesteps(spacing, train_steps, steps, offset, span=span)
        return timesteps[::-1] if rising else timesteps
    if steps >= span:
        raise InputError(
            f"steps is {steps}, but {settings.reader} with timestep_spacing={spacing!r} wants at most "
            f"{span - 1} for this noise schedule; use fewer steps"
        )
    timesteps = spaced_timesteps(spacing, train_steps, steps + 1, offset, span=span).round()
    return timesteps[:0:-1] if rising else timesteps[:-1]


def _lu_levels(train_sigmas: Float32, steps: int) -> Float64:
    """Evenly in λ over the whole schedule; from logarithms in float32, as in diffusers."""
    high, low = (float(level) for level in np.log(train_sigmas[[-1, 0]]))
    return np.exp(high + np.linspace(0, 1, steps) * (low - high))


def _range(settings: Settings, train_sigmas: Float32) -> tuple[float, float]:
    """sigma_min and sigma_max, the training's lowest and highest level unless set."""
    low, high = float(train_sigmas[0]), float(train_sigmas[-1])
    if settings.is_set("sigma_min"):
        low = settings.positive("sigma_min", low)
    if settings.is_set("sigma_max"):
        high = settings.positive("sigma_max", high)
    if low >= high:
        raise InputError(f"sigma_min is {low:g} and sigma_max {high:g}, wanted sigma_min below sigma_max")
    return low, high
