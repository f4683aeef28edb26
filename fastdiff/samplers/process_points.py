"""Processes as samplers use them: chosen by a config, and cut into points that any solver steps through."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from fastdiff.errors import InputError
from fastdiff.samplers.diffusers_keys import FLOW_CLASSES
from fastdiff.samplers.path import Point
from fastdiff.samplers.placement import given_sigmas, given_timesteps, placed_sigmas, sigma_spacing
from fastdiff.samplers.prediction import Linear, Prediction
from fastdiff.samplers.process import EDM, VE, VP, Chain, Flow, Process, SubVP
from fastdiff.samplers.schedule import NoiseSchedule
from fastdiff.samplers.settings import Settings
from fastdiff.samplers.spacing import (
    beta_sigmas,
    exponential_sigmas,
    karras_sigmas,
    log_snr_sigmas,
    polyexponential_sigmas,
)

__all__ = [
    "PROCESSES",
    "chosen_times",
    "learned_variance",
    "level_range",
    "level_times",
    "points_at",
    "process_of",
    "process_points",
    "rescaled",
]

PROCESSES = ("chain", "vp", "sub_vp", "ve", "edm", "flow")

_ROUNDED = 1.02
"""Levels are written with two digits or more, such as the 0.029 of Stable Diffusion's last."""
_LEVELS: dict[str, Callable[..., NDArray[np.float64]]] = {
    "beta": beta_sigmas,
    "exponential": exponential_sigmas,
    "karras": karras_sigmas,
    "log_snr": log_snr_sigmas,
    "polyexponential": polyexponential_sigmas,
}


def process_points(
    process: Process,
    steps: int,
    spacing: str = "uniform",
    *,
    prediction: Prediction = Prediction.EPSILON,
    rho: float | None = None,
    denoise: bool = True,
) -> list[Point]:
    """The ``steps + 1`` points of ``steps`` steps from ``t_max`` on.

    spacing  "uniform" in t, or of σ/α: "karras", "exponential", "log_snr", "polyexponential" or "beta"
    rho      of the spacings that have one; None is their default
    denoise  ``steps`` points down to ``t_min`` and one without noise; else ``t_min`` is the last of all

    Raises `InputError` for an unknown spacing, and for one of levels on a process that starts without signal.
    """
    count = steps if denoise else steps + 1
    if spacing == "uniform":
        times = np.linspace(process.t_max, process.t_min, count)
    elif spacing in _LEVELS:
        low, high = level_range(process, spacing)
        extra = {} if rho is None else {"rho": rho}
        times = level_times(process, _LEVELS[spacing](low, high, count, **extra))
    else:
        raise InputError(f"spacing {spacing!r} is unknown; use one of uniform, {', '.join(_LEVELS)}")
    return points_at(process, times, prediction, denoise=denoise)


def points_at(
    process: Process, times: Iterable[float], prediction: Prediction, *, denoise: bool
) -> list[Point]:
    """The points at ``times``, and where ``denoise`` is set one without noise behind them."""
    points = [process.point(float(t), prediction) for t in times]
    return [*points, Point(0.0, 1.0, 0.0, prediction)] if denoise else points


def level_times(process: Process, levels: Iterable[float]) -> NDArray[np.float64]:
    """The times at which σ/α has the values ``levels``.

    Raises `InputError` for levels outside of the process's range, but for what rounding a level does.
    """
    levels = list(levels)
    low, high = (math.exp(-process.log_snr(t)) for t in (process.t_min, process.t_max))
    for level in (min(levels), max(levels)):
        if not low / _ROUNDED <= level <= high * _ROUNDED:
            raise InputError(
                f"a noise level is {level:g}, wanted {low:g} to {high:g}, the range of the process; change "
                "the levels or sigma_min and sigma_max"
            )
    times = [process.time_at(-math.log(level)) for level in levels]
    return np.clip(np.array(times, dtype=np.float64), process.t_min, process.t_max)


def rescaled(point: Point) -> Point:
    """The same noise level for the state x/α, which is x₀ plus noise of standard deviation σ/α.

    What the denoiser sees stays the same.
    """
    alpha = point.alpha
    denoised = point.denoised and Linear(alpha * point.denoised.sample, point.denoised.output)
    return Point(point.timestep, 1.0, point.ratio, point.prediction, alpha * point.input_scale, denoised)


def process_of(schedule: NoiseSchedule, settings: Settings) -> Process:
    """The process that a config asks for.

    ``process`` is one of `PROCESSES`; "chain", the default but for checkpoints of flow matching, is the
    checkpoint's own schedule (with ``rescale_betas_zero_snr``). "vp" and "sub_vp" read ``beta_min`` (0.1) and
    ``beta_max`` (20), "edm" reads ``sigma_data`` (0.5), "flow" reads ``shift`` (1). ``sigma_min`` and
    ``sigma_max`` are parameters of "ve" (0.01 and 50) and the ends of the others' range of σ/α.
    ``sampling_eps`` is the last time of "vp", "sub_vp" and "flow" (0.001) and of "ve" (0.00001).
    """
    flow = schedule.config.get("_class_name") in FLOW_CLASSES
    kind = settings.choice("process", "flow" if flow else "chain", PROCESSES)
    process: Process
    match kind:
        case "vp" | "sub_vp":
            betas = settings.positive("beta_min", 0.1), settings.positive("beta_max", 20.0)
            if betas[1] < betas[0]:
                raise InputError(f"beta_max is {betas[1]:g}, wanted at least beta_min, {betas[0]:g}")
            process = (VP if kind == "vp" else SubVP)(*betas, t_min=_eps(settings, 1e-3))
        case "ve":
            sigmas = settings.positive("sigma_min", 0.01), settings.positive("sigma_max", 50.0)
            if sigmas[1] <= sigmas[0]:
                raise InputError(f"sigma_max is {sigmas[1]:g}, wanted more than sigma_min, {sigmas[0]:g}")
            return VE(*sigmas, t_min=_eps(settings, 1e-5))
        case "edm":
            process = EDM(sigma_data=settings.positive("sigma_data", 0.5))
        case "flow":
            process = Flow(settings.positive("shift", 1.0), t_min=_eps(settings, 1e-3))
        case _:
            zero_snr = settings.flag("rescale_betas_zero_snr", False)
            process = Chain.of(schedule, zero_terminal_snr=zero_snr)
    return _narrowed(process, settings)


def chosen_times(process: Process, settings: Settings, steps: int) -> NDArray[np.float64]:
    """The times of ``steps`` evaluations from ``t_max`` to ``t_min``, float64 [steps], decreasing.

    Uniform, by a spacing of σ/α (option ``sigma_spacing`` and diffusers' flags), or given as ``timesteps``,
    which are values of t, or as ``sigmas``, which are values of σ/α.
    """
    spacing = sigma_spacing(settings)
    times, levels = given_timesteps(settings, steps), given_sigmas(settings, steps)
    if (spacing is not None) + (times is not None) + (levels is not None) > 1:
        raise InputError("more than one of sigma_spacing, timesteps and sigmas is set; keep one")
    if times is not None:
        if not (process.t_min <= times[-1] and times[0] <= process.t_max):
            raise InputError(
                f"timesteps run from {times[0]:g} to {times[-1]:g}, wanted within {process.t_max:g} to "
                f"{process.t_min:g}, the times of the process; change them or sigma_min and sigma_max"
            )
        return times
    if levels is not None:
        if levels[-1] <= 0:
            raise InputError("sigmas end with 0, wanted numbers above 0; the last step to 0 is added to them")
        return level_times(process, levels)
    if spacing is not None:
        return level_times(process, placed_sigmas(settings, spacing, *level_range(process, spacing), steps))
    return np.linspace(process.t_max, process.t_min, steps)


def _eps(settings: Settings, default: float) -> float:
    eps = settings.positive("sampling_eps", default)
    if eps >= 1:
        raise InputError(f"sampling_eps is {eps:g}, wanted less than 1, the time that sampling starts at")
    return eps


def _narrowed(process: Process, settings: Settings) -> Process:
    """The process with its range of times cut to levels ``sigma_min`` and ``sigma_max``."""
    ends = {}
    for key, field in (("sigma_min", "t_min"), ("sigma_max", "t_max")):
        if settings.is_set(key):
            level = settings.positive(key, 1.0)
            # EDM's levels are any; the other processes have been trained on the times that they have.
            free = isinstance(process, EDM)
            ends[field] = level if free else float(level_times(process, [level])[0])
    process = replace(process, **ends) if ends else process  # type: ignore[type-var]
    if not process.t_min < process.t_max:
        raise InputError("sigma_min is not below sigma_max, so that nothing is left to sample; change one")
    return process


def level_range(process: Process, spacing: str) -> tuple[float, float]:
    """σ/α at ``t_min`` and ``t_max``, for ``spacing``.

    Raises `InputError` where no signal is left at ``t_max``.
    """
    low, high = math.exp(-process.log_snr(process.t_min)), process.log_snr(process.t_max)
    if math.isinf(high):
        raise InputError(
            f"spacing {spacing!r} needs a finite noise level to start from, but the process starts without "
            "signal; set sigma_max, such as 100"
        )
    return low, math.exp(-high)


def learned_variance(settings: Settings) -> bool:
    """Whether ``variance_type`` says that half of the model's output is a variance, which is left out."""
    kinds = ("fixed_small", "fixed_small_log", "fixed_large", "fixed_large_log", "learned", "learned_range")
    return settings.choice("variance_type", "fixed_small", kinds).startswith("learned")
