"""The noise schedule that a model was trained with.

In the variance-preserving form of Ho et al., "Denoising Diffusion Probabilistic Models", the sample at
timestep t is x_t = √ᾱ_t·x₀ + √(1 − ᾱ_t)·ε with ᾱ_t = Π (1 − β_s). The same sample divided by √ᾱ_t has the
noise level σ_t = √((1 − ᾱ_t) / ᾱ_t) of Karras et al., "Elucidating the Design Space of Diffusion-Based
Generative Models".

β, ᾱ and σ are rounded to float32 where diffusers rounds them: 1 − ᾱ is about 1e-4 at small t, so ᾱ in float64
would make it differ from diffusers' by up to 1e-3. What is computed from them is float64.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from fastdiff.errors import InputError
from fastdiff.samplers.prediction import Prediction
from fastdiff.samplers.settings import Settings

__all__ = [
    "BETA_SCHEDULES",
    "NoiseSchedule",
]

Float32 = NDArray[np.float32]

BETA_SCHEDULES = ("linear", "scaled_linear", "squaredcos_cap_v2")


@dataclass(frozen=True, eq=False)
class NoiseSchedule:
    """The training schedule and the sampling settings of a checkpoint.

    betas       float32 [num_train_timesteps]
    prediction  what the denoiser's output means
    config      all entries of ``scheduler_config.json``; samplers read theirs with `settings`
    reads       the keys that were asked for so far
    """

    betas: Float32
    prediction: Prediction
    config: Mapping[str, object]
    reads: set[str] = field(default_factory=set)

    @classmethod
    def from_config(cls, config: Mapping[str, object]) -> NoiseSchedule:
        """Read a diffusers ``scheduler_config.json``.

        Raises `InputError` for a wrong value of the keys that all samplers share. Keys that only some
        samplers read are checked when a table is made.
        """
        # diffusers lists here what the checkpoint left to its own class's defaults.
        unset = config.get("_use_default_values")
        if isinstance(unset, list | tuple):
            config = {key: value for key, value in config.items() if key not in unset}
        config = {key: value for key, value in config.items() if key != "_use_default_values"}
        reads: set[str] = set()
        settings = Settings(config, "the noise schedule", reads)
        prediction = settings.choice("prediction_type", "epsilon", [kind.value for kind in Prediction])
        betas = _betas(settings, config.get("trained_betas"))
        reads |= {"trained_betas", "beta_schedule", "beta_start", "beta_end"}
        return cls(betas, Prediction(prediction), dict(config), reads)

    def with_options(self, options: Mapping[str, object]) -> NoiseSchedule:
        """The schedule of the config with ``options`` in place of its entries, and nothing read yet.

        Raises `InputError` as `from_config` does.
        """
        return NoiseSchedule.from_config({**self.config, **options})

    @property
    def num_train_timesteps(self) -> int:
        """T: the model was trained on timesteps 0 to T − 1."""
        return len(self.betas)

    def settings(self, sampler: str) -> Settings:
        """The config as ``sampler`` reads it; the name appears in error messages."""
        return Settings(self.config, f"sampler {sampler!r}", self.reads)

    def alphas_cumprod(self, *, zero_terminal_snr: bool = False) -> Float32:
        """ᾱ, float32 [num_train_timesteps], decreasing.

        ``zero_terminal_snr`` shifts and scales √ᾱ so that the last one is 0 and the first stays: Algorithm 1
        of Lin et al., "Common Diffusion Noise Schedules and Sample Steps are Flawed".
        """
        betas = _rescale_zero_terminal_snr(self.betas) if zero_terminal_snr else self.betas
        return _cumprod(np.float32(1) - betas)

    def sigmas(self, *, zero_terminal_snr: bool = False) -> Float32:
        """σ = √((1 − ᾱ) / ᾱ), float32 [num_train_timesteps], increasing.

        With ``zero_terminal_snr`` the last ᾱ is 2⁻²⁴ instead of 0, which keeps the last σ finite (4096).
        """
        alpha_bar = self.alphas_cumprod(zero_terminal_snr=zero_terminal_snr)
        if zero_terminal_snr:
            alpha_bar[-1] = 2.0**-24
        return np.asarray(np.sqrt((np.float32(1) - alpha_bar) / alpha_bar), dtype=np.float32)


def _betas(settings: Settings, trained: object) -> Float32:
    count = settings.integer("num_train_timesteps", 1000, minimum=2)
    if trained is not None:
        betas = _trained_betas(trained, count)
    else:
        start, end = settings.positive("beta_start", 0.0001), settings.positive("beta_end", 0.02)
        match settings.choice("beta_schedule", "linear", BETA_SCHEDULES):
            case "linear":
                betas = _linspace(start, end, count)
            case "scaled_linear":
                betas = np.square(_linspace(start**0.5, end**0.5, count))
            case _:
                betas = _squared_cosine_betas(count)
    outside = betas[~((betas > 0) & (betas < 1))]
    if outside.size:
        raise InputError(
            f"the scheduler config gives a beta of {outside[0]:g}, wanted between 0 and 1; "
            "correct beta_start, beta_end or trained_betas"
        )
    alpha_bar = _cumprod(np.float32(1) - betas)
    if not 1 > alpha_bar[0] > alpha_bar[-1] > 0:
        raise InputError(
            f"the betas of the scheduler config, {betas.min():g} to {betas.max():g}, add no noise at the "
            "first timestep or leave no signal at the last; correct beta_start, beta_end or trained_betas"
        )
    return betas


def _trained_betas(trained: object, count: int) -> Float32:
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


def _linspace(start: float, end: float, count: int) -> Float32:
    """`torch.linspace` in float32 on x86: counted from the nearer end, each term one fused multiply-add."""
    first, last = np.float32(start), np.float32(end)
    step = np.float64((last - first) / np.float32(count - 1))
    index = np.arange(count)
    terms = np.where(index < count // 2, first + step * index, last - step * (count - 1 - index))
    return terms.astype(np.float32)


def _squared_cosine_betas(count: int) -> Float32:
    """Nichol and Dhariwal, "Improved Denoising Diffusion Probabilistic Models", Eq. 17; β up to 0.999."""

    def alpha_bar(time: float) -> float:
        return math.cos((time + 0.008) / 1.008 * math.pi / 2) ** 2

    betas = [min(1 - alpha_bar((i + 1) / count) / alpha_bar(i / count), 0.999) for i in range(count)]
    return np.array(betas, dtype=np.float32)


def _cumprod(factors: Float32) -> Float32:
    """`torch.cumprod` in float32: the product is carried in float64 and every term is rounded."""
    return np.cumprod(factors, dtype=np.float64).astype(np.float32)


def _rescale_zero_terminal_snr(betas: Float32) -> Float32:
    root = np.sqrt(_cumprod(np.float32(1) - betas))
    first, last = root[0], root[-1]
    root = (root - last) * (first / (first - last))
    alpha_bar = np.square(root)
    alphas = np.concatenate([alpha_bar[:1], alpha_bar[1:] / alpha_bar[:-1]])
    return np.asarray(np.float32(1) - alphas, dtype=np.float32)
