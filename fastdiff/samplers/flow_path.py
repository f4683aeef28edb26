"""The levels of a flow-matching model: straight lines from data to noise, x = (1 − σ)·x₀ + σ·ε.

Lipman et al., "Flow Matching for Generative Modeling"; Esser et al., "Scaling Rectified Flow Transformers for
High-Resolution Image Synthesis", whose section 5.3.2 shifts the levels for larger pictures.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from fastdiff.errors import InputError
from fastdiff.samplers.path import Point
from fastdiff.samplers.placement import given_sigmas, given_timesteps, placed_sigmas, sigma_spacing
from fastdiff.samplers.prediction import Linear, Prediction
from fastdiff.samplers.settings import Settings

__all__ = ["flow_point", "flow_points", "shifted"]

Float64 = NDArray[np.float64]

TIME_SHIFTS = ("exponential", "linear")
_PREDICTIONS = tuple(kind.value for kind in Prediction)


def shifted(sigmas: Float64, shift: float) -> Float64:
    """s·σ/(1 + (s − 1)·σ): the levels of s² times as many pixels; Eq. 23 of Esser et al."""
    return np.asarray(shift * sigmas / (1 + (shift - 1) * sigmas), dtype=np.float64)


def flow_point(timestep: float, sigma: float, prediction: Prediction, *, inverted: bool = False) -> Point:
    """A level of the path; ``inverted`` is for models whose output is the velocity towards the data."""
    denoised = Linear(1.0, sigma) if inverted else None
    return Point(timestep, 1 - sigma, sigma, prediction, denoised=denoised)


def flow_points(settings: Settings, steps: int) -> list[Point]:
    """The levels of ``steps`` steps and, after them, σ = 0.

    Timesteps are σ times num_train_timesteps (1000). Reads, with the defaults of diffusers'
    FlowMatchEulerDiscreteScheduler:

    shift                 of all levels (1)
    use_dynamic_shifting  the shift is exp(mu) instead, or mu itself, as time_shift_type says ("exponential"
                          or "linear"). ``mu`` is an option, or grows from base_shift (0.5) to max_shift
                          (1.15) while ``image_seq_len``, the number of image tokens, does from
                          base_image_seq_len (256) to max_image_seq_len (4096)
    shift_terminal        stretches the levels so that the last is this; 0 and null leave them
    use_karras_sigmas     and the other keys of `fastdiff.samplers.placement` place the levels anew between
                          the highest and the lowest, or sigma_max and sigma_min
    invert_sigmas         the model is told 1 − σ, and its output leads to the data
    sigmas, timesteps     levels, and what the denoiser is told, in place of even ones. Levels are shifted,
                          also those that follow from timesteps alone; given timesteps are told as they are

    As in diffusers, even levels end at the lowest level of the training after its shift, which is then
    shifted again. prediction_type is "flow_prediction" unless set.
    """
    train_steps = settings.integer("num_train_timesteps", 1000, minimum=1)
    prediction = Prediction(settings.choice("prediction_type", Prediction.FLOW.value, _PREDICTIONS))
    inverted = settings.flag("invert_sigmas", False)
    if inverted and prediction is not Prediction.FLOW:
        raise InputError(
            f"invert_sigmas is set with prediction_type={prediction.value!r}, wanted 'flow_prediction', the "
            "only output with a direction; set one of the two"
        )
    shift, dynamic = settings.positive("shift", 1.0), _dynamic_shift(settings)
    sigmas, timesteps = given_sigmas(settings, steps), given_timesteps(settings, steps)
    if sigmas is None and timesteps is not None:
        sigmas = timesteps / train_steps
    if sigmas is None:
        lowest = shifted(np.array([1 / train_steps]), 1.0 if dynamic else shift)
        sigmas = np.linspace(1.0, float(lowest[0]), steps)
    sigmas = shifted(sigmas, dynamic or shift)
    sigmas = _placed(settings, _stretched(settings, sigmas), steps)
    if sigmas[0] > 1:
        raise InputError(
            f"the flow starts at noise level {sigmas[0]:g}, wanted at most 1; correct sigmas, timesteps "
            "or sigma_max"
        )
    if prediction is Prediction.EPSILON and sigmas[0] >= 1:
        raise InputError(
            "prediction_type is 'epsilon', which tells nothing of the picture at a flow's start, pure noise; "
            "use a model of flow matching ('flow_prediction') or another sampler"
        )
    # diffusers keeps levels in float32.
    levels = [float(sigma) for sigma in sigmas.astype(np.float32)]
    if inverted or timesteps is None:
        told = [train_steps * (1 - level if inverted else level) for level in levels]
    else:
        told = [float(t) for t in timesteps]
    points = [
        flow_point(t, level, prediction, inverted=inverted) for t, level in zip(told, levels, strict=True)
    ]
    begin = settings.begin([-point.timestep for point in points] if inverted else told)
    return [*points[begin:], flow_point(train_steps if inverted else 0.0, 0.0, prediction)]


def _dynamic_shift(settings: Settings) -> float | None:
    """The shift for the size of the picture; None where one shift serves all."""
    dynamic = settings.flag("use_dynamic_shifting", False)
    kind = settings.choice("time_shift_type", "exponential", TIME_SHIFTS)
    low, high = settings.number("base_shift", 0.5), settings.number("max_shift", 1.15)
    few = settings.integer("base_image_seq_len", 256, minimum=1)
    many = settings.integer("max_image_seq_len", 4096, minimum=1)
    mu, tokens = settings.optional("mu"), settings.optional("image_seq_len")
    if not dynamic:
        return None
    if mu is None:
        mu = _mu(low, high, few, many, tokens)
    shift = math.exp(mu) if kind == "exponential" else mu
    if shift <= 0:
        raise InputError(f"mu is {mu:g}, wanted above 0 with time_shift_type='linear'; correct it")
    return shift


def _mu(low: float, high: float, few: int, many: int, tokens: float | None) -> float:
    """On the line through (few, low) and (many, high)."""
    if tokens is None:
        raise InputError(
            "the scheduler config has use_dynamic_shifting=True, which wants the picture's size; set option "
            "image_seq_len to its number of tokens, or mu"
        )
    if many == few:
        raise InputError(
            f"base_image_seq_len and max_image_seq_len are both {few}, wanted two sizes; correct the config "
            "or set option mu"
        )
    return low + (high - low) * (tokens - few) / (many - few)


def _stretched(settings: Settings, sigmas: Float64) -> Float64:
    """1 − σ scaled so that the last level is shift_terminal, as LTX-Video does."""
    terminal = settings.optional("shift_terminal")
    if not terminal:
        return sigmas
    if not 0 < terminal < 1:
        raise InputError(f"shift_terminal is {terminal:g}, wanted between 0 and 1; correct the config")
    if sigmas[-1] == 1:
        raise InputError(
            f"shift_terminal is {terminal:g}, but all levels are 1; use 2 steps or more, or set it to null"
        )
    return np.asarray(1 - (1 - sigmas) * (1 - terminal) / (1 - sigmas[-1]), dtype=np.float64)


def _placed(settings: Settings, sigmas: Float64, steps: int) -> Float64:
    spacing = sigma_spacing(settings)
    low, high = settings.optional("sigma_min"), settings.optional("sigma_max")
    if spacing is None:
        return sigmas
    if spacing == "align_your_steps":
        raise InputError(
            "sigma_spacing 'align_your_steps' has no levels for flow matching; use another one or none"
        )
    low = float(sigmas[-1]) if low is None else low
    high = float(sigmas[0]) if high is None else high
    if not 0 < low <= high <= 1:
        raise InputError(
            f"sigma_min and sigma_max are {low:g} and {high:g}, wanted above 0, at most 1 and in this order"
        )
    return placed_sigmas(settings, spacing, low, high, steps)
