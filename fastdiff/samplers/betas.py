"""The variances β of a discrete chain: T noising steps, each x_t = √(1 − β_t)·x_{t−1} + √β_t·z.

Rounded to float32 where diffusers rounds, so that the chains are the same: see `fastdiff.samplers.schedule`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastdiff.errors import InputError
from fastdiff.samplers.settings import Settings

__all__ = [
    "BETA_SCHEDULES",
    "CLASS_DEFAULTS",
    "cumulative",
    "linspace",
    "read_betas",
    "rescale_zero_terminal_snr",
    "shift_snr",
    "unrounded_scaled_linear",
    "zero_terminal_alpha_bar",
]

Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]
Floats = NDArray[Any]

BETA_SCHEDULES = ("linear", "scaled_linear", "squaredcos_cap_v2", "sigmoid", "laplace", "exp")
"""Ho et al., "Denoising Diffusion Probabilistic Models" (linear); Rombach et al., "High-Resolution Image
Synthesis with Latent Diffusion Models" (evenly in √β); Nichol and Dhariwal, "Improved Denoising Diffusion
Probabilistic Models" (cosine); Xu et al., "GeoDiff" (sigmoid); Hang et al., "Improved Noise Schedule for
Diffusion Training" (laplace); ᾱ falling exponentially, as diffusers' Heun scheduler has it (exp)."""

_STABLE_DIFFUSION: dict[str, object] = {"beta_start": 0.00085, "beta_end": 0.012}
_SCALED: dict[str, object] = {**_STABLE_DIFFUSION, "beta_schedule": "scaled_linear"}
CLASS_DEFAULTS: dict[str, dict[str, object]] = {
    "DPMSolverSDEScheduler": _STABLE_DIFFUSION,
    "HeunDiscreteScheduler": _STABLE_DIFFUSION,
    "KDPM2AncestralDiscreteScheduler": _STABLE_DIFFUSION,
    "KDPM2DiscreteScheduler": _STABLE_DIFFUSION,
    "CogVideoXDDIMScheduler": _SCALED,
    "CogVideoXDPMScheduler": _SCALED,
    "LCMScheduler": _SCALED,
    "TCDScheduler": _SCALED,
    "CMStochasticIterativeScheduler": {"num_train_timesteps": 40},
    "ScoreSdeVeScheduler": {"num_train_timesteps": 2000},
    "ScoreSdeVpScheduler": {"num_train_timesteps": 2000},
    "UnCLIPScheduler": {"beta_schedule": "squaredcos_cap_v2"},
}
"""What a config of these diffusers classes means by a missing key of the chain. For all others a missing key
means 1000 timesteps, "linear", 0.0001 and 0.02."""

_NO_CHAIN = ("IPNDMScheduler",)
"""Classes whose trained_betas are something else."""

_READS = ("num_train_timesteps", "beta_schedule", "beta_start", "beta_end", "trained_betas")


def read_betas(settings: Settings, class_name: object, trained: object, reads: dict[str, object]) -> Float32:
    """The chain of a scheduler config, float32 [num_train_timesteps].

    ``class_name`` is the config's own class, which decides about missing keys; ``trained`` its trained_betas.
    The keys are noted in ``reads``. Raises `InputError` for values that make no chain.
    """
    default = CLASS_DEFAULTS.get(str(class_name), {})
    count = settings.integer("num_train_timesteps", _integer(default), minimum=2)
    reads.update(dict.fromkeys(_READS))
    if trained is not None and class_name not in _NO_CHAIN:
        betas = _trained(trained, count)
    else:
        start = settings.positive("beta_start", _number(default, "beta_start", 0.0001))
        end = settings.positive("beta_end", _number(default, "beta_end", 0.02))
        name = settings.choice("beta_schedule", str(default.get("beta_schedule", "linear")), BETA_SCHEDULES)
        betas = _named(name, start, end, count)
    outside = betas[~((betas > 0) & (betas < 1))]
    if outside.size:
        raise InputError(
            f"the scheduler config gives a beta of {outside[0]:g}, wanted between 0 and 1; "
            "correct beta_start, beta_end or trained_betas"
        )
    alpha_bar = cumulative(betas)
    if not 1 > alpha_bar[0] > alpha_bar[-1] > 0:
        raise InputError(
            f"the betas of the scheduler config, {betas.min():g} to {betas.max():g}, add no noise at the "
            "first timestep or leave no signal at the last; correct beta_start, beta_end or trained_betas"
        )
    return betas


def cumulative(betas: Float32) -> Float32:
    """ᾱ_t = Π (1 − β), `torch.cumprod` in float32: carried in float64, every term rounded."""
    return np.cumprod(np.float32(1) - betas, dtype=np.float64).astype(np.float32)


def rescale_zero_terminal_snr(betas: Float32) -> Float32:
    """Betas with the same first ᾱ whose last is 0: Algorithm 1 of Lin et al., "Common Diffusion Noise
    Schedules and Sample Steps are Flawed".
    """
    alpha_bar = zero_terminal_alpha_bar(cumulative(betas))
    alphas = np.concatenate([alpha_bar[:1], alpha_bar[1:] / alpha_bar[:-1]])
    return np.asarray(np.float32(1) - alphas, dtype=np.float32)


def zero_terminal_alpha_bar(alpha_bar: Floats) -> Floats:
    """ᾱ with √ᾱ shifted and scaled so that the last is 0 and the first stays: the same algorithm."""
    root = np.sqrt(alpha_bar)
    first, last = root[0], root[-1]
    return np.asarray(np.square((root - last) * (first / (first - last))))


def unrounded_scaled_linear(betas: Float32) -> Float64 | None:
    """The betas without float32 rounding, but for their ends, if they are evenly spaced in √β; else None."""
    root = np.sqrt(betas.astype(np.float64))
    even = np.linspace(root[0], root[-1], len(betas))
    return np.square(even) if np.allclose(root, even, rtol=1e-6, atol=0) else None


def shift_snr(alpha_bar: Floats, scale: float) -> Floats:
    """ᾱ with the signal-to-noise ratio ᾱ/(1 − ᾱ) divided by ``scale``.

    Hoogeboom et al., "Simple Diffusion: End-to-End Diffusion for High Resolution Images", as CogVideoX uses
    it.
    """
    return np.asarray(alpha_bar / (scale + (1 - scale) * alpha_bar))


def _integer(default: dict[str, object]) -> int:
    count = default.get("num_train_timesteps", 1000)
    return count if isinstance(count, int) else 1000


def _number(default: dict[str, object], key: str, otherwise: float) -> float:
    value = default.get(key, otherwise)
    return value if isinstance(value, float) else otherwise


def _named(name: str, start: float, end: float, count: int) -> Float32:
    match name:
        case "linear":
            return linspace(start, end, count)
        case "scaled_linear":
            return np.square(linspace(start**0.5, end**0.5, count))
        case "sigmoid":
            sigmoid = (1 / (1 + np.exp(-linspace(-6, 6, count).astype(np.float64)))).astype(np.float32)
            return sigmoid * np.float32(end - start) + np.float32(start)
        case "laplace":
            return _betas_of(_laplace, count)
        case "exp":
            return _betas_of(lambda time: math.exp(-12 * time), count)
        case _:
            return _betas_of(_cosine, count)


def _trained(trained: object, count: int) -> Float32:
    try:
        betas = np.asarray(trained, dtype=np.float32)
    except (TypeError, ValueError) as error:
        raise InputError(
            f"trained_betas of the scheduler config is not a list of numbers ({error}); correct the config"
        ) from None
    if betas.shape != (count,):
        raise InputError(
            f"trained_betas of the scheduler config has shape {betas.shape}, wanted ({count},) as "
            "num_train_timesteps says; correct one of the two"
        )
    return betas


def linspace(start: float, end: float, count: int) -> Float32:
    """`torch.linspace` in float32 on x86: counted from the nearer end, each term one fused multiply-add."""
    first, last = np.float32(start), np.float32(end)
    step = np.float64((last - first) / np.float32(count - 1))
    index = np.arange(count)
    terms = np.where(index < count // 2, first + step * index, last - step * (count - 1 - index))
    return terms.astype(np.float32)


def _betas_of(alpha_bar: Callable[[float], float], count: int) -> Float32:
    """β_t = 1 − ᾱ((t + 1)/T)/ᾱ(t/T), up to 0.999."""
    betas = [min(1 - alpha_bar((i + 1) / count) / alpha_bar(i / count), 0.999) for i in range(count)]
    return np.array(betas, dtype=np.float32)


def _cosine(time: float) -> float:
    """ᾱ of Nichol and Dhariwal, Eq. 17."""
    return math.cos((time + 0.008) / 1.008 * math.pi / 2) ** 2


def _laplace(time: float) -> float:
    """√ of a ᾱ whose log SNR has a Laplace distribution of scale ½: diffusers' form of Hang et al."""
    log_snr = -0.5 * math.copysign(1, 0.5 - time) * math.log(1 - 2 * abs(0.5 - time) + 1e-6)
    return math.sqrt(1 / (1 + math.exp(-log_snr)))
