"""The noise schedule that a model was trained with.

In the variance-preserving form of Ho et al., "Denoising Diffusion Probabilistic Models", the sample at
timestep t is x_t = √ᾱ_t·x₀ + √(1 − ᾱ_t)·ε with ᾱ_t = Π (1 − β_s). The same sample divided by √ᾱ_t has the
noise level σ_t = √((1 − ᾱ_t) / ᾱ_t) of Karras et al., "Elucidating the Design Space of Diffusion-Based
Generative Models".

β, ᾱ and σ are rounded to float32 where diffusers rounds them: 1 − ᾱ is about 1e-4 at small t, so ᾱ in float64
would make it differ from diffusers' by up to 1e-3. What is computed from them is float64.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from fastdiff.samplers.betas import (
    BETA_SCHEDULES,
    cumulative,
    read_betas,
    rescale_zero_terminal_snr,
)
from fastdiff.samplers.diffusers_keys import BEYOND_CLASS, FLOW_CLASSES
from fastdiff.samplers.part import WHOLE, Part
from fastdiff.samplers.prediction import Prediction
from fastdiff.samplers.settings import Settings

__all__ = [
    "BETA_SCHEDULES",
    "NoiseSchedule",
]

Float32 = NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class NoiseSchedule:
    """The training schedule and the sampling settings of a checkpoint.

    betas       float32 [num_train_timesteps]
    prediction  what the denoiser's output means
    config      all entries of ``scheduler_config.json``; samplers read theirs with `settings`
    reads       the keys that were asked for so far, with their defaults
    part        which steps of a table are wanted; solvers that can start later ask ``settings.begin``
    begins      their first steps
    """

    betas: Float32
    prediction: Prediction
    config: Mapping[str, object]
    reads: dict[str, object] = field(default_factory=dict)
    part: Part = WHOLE
    begins: list[int] = field(default_factory=list)

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
        reads: dict[str, object] = {}
        settings = Settings(config, "the noise schedule", reads)
        flow = config.get("_class_name") in FLOW_CLASSES
        kind = (Prediction.FLOW if flow else Prediction.EPSILON).value
        prediction = settings.choice("prediction_type", kind, [kind.value for kind in Prediction])
        # Old checkpoints say it in this way.
        settings.refuse("predict_epsilon", True, "remove it and set prediction_type to 'sample'")
        betas = read_betas(settings, config.get("_class_name"), config.get("trained_betas"), reads)
        return cls(betas, Prediction(prediction), dict(config), reads)

    def with_options(self, options: Mapping[str, object]) -> NoiseSchedule:
        """The schedule of the config with ``options`` in place of its entries, and nothing read yet.

        Raises `InputError` as `from_config` does.
        """
        return NoiseSchedule.from_config({**self.config, **options})

    def as_class(self, name: str | None) -> NoiseSchedule:
        """The schedule as a diffusers class reads the config, whosever that is; None: as it is."""
        foreign = BEYOND_CLASS.get(name or "", frozenset())
        if foreign.isdisjoint(self.config):
            return self
        return NoiseSchedule.from_config(
            {key: value for key, value in self.config.items() if key not in foreign}
        )

    @property
    def num_train_timesteps(self) -> int:
        """T: the model was trained on timesteps 0 to T − 1."""
        return len(self.betas)

    def settings(self, sampler: str) -> Settings:
        """The config as ``sampler`` reads it; the name appears in error messages."""
        return Settings(self.config, f"sampler {sampler!r}", self.reads, self.part, self.begins)

    def alphas_cumprod(self, *, zero_terminal_snr: bool = False) -> Float32:
        """ᾱ, float32 [num_train_timesteps], decreasing.

        ``zero_terminal_snr`` shifts and scales √ᾱ so that the last one is 0 and the first stays: Algorithm 1
        of Lin et al., "Common Diffusion Noise Schedules and Sample Steps are Flawed".
        """
        betas = rescale_zero_terminal_snr(self.betas) if zero_terminal_snr else self.betas
        return cumulative(betas)

    def sigmas(self, *, zero_terminal_snr: bool = False) -> Float32:
        """σ = √((1 − ᾱ) / ᾱ), float32 [num_train_timesteps], increasing.

        With ``zero_terminal_snr`` the last ᾱ is 2⁻²⁴ instead of 0, which keeps the last σ finite (4096).
        """
        alpha_bar = self.alphas_cumprod(zero_terminal_snr=zero_terminal_snr)
        if zero_terminal_snr:
            alpha_bar[-1] = 2.0**-24
        return np.asarray(np.sqrt((np.float32(1) - alpha_bar) / alpha_bar), dtype=np.float32)
