"""The autoencoder of an engine: latents to pictures and back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from fastdiff.config import ModelSpec
from fastdiff.errors import NumericError

if TYPE_CHECKING:
    from fastdiff.targets.session import Session

__all__ = ["Vae"]

Array = NDArray[np.float32]


class Vae:
    """``modules["vae_decoder"]`` and ``modules["vae_encoder"]`` with the model's scaling."""

    def __init__(self, model: ModelSpec, modules: Mapping[str, Session]) -> None:
        self._model = model
        self._modules = modules

    def decode(self, latents: Array) -> Array:
        """Pictures [batch, channels, height, width], about −1 to 1, of latents [batch, channels, h, w].

        Of a model on pixels they are the latents. A VQ-VAE decodes the codes that are nearest to them.
        Raises NumericError when NaN or infinity comes out.
        """
        model = self._model
        if model.on_pixels:
            return latents
        inputs = {"latent_sample": self._unscaled(latents)}
        if model.latent_codes:
            scores = self._modules["vae_quantizer"](**inputs)["scores"]
            inputs = {"codes": scores.argmin(axis=1)}
        decoded: Array = self._modules["vae_decoder"](**inputs)["sample"]
        if not np.isfinite(decoded).all():
            raise NumericError(
                "the VAE gave NaN or infinity from finite latents: check the engine with fastdiff verify"
            )
        return decoded

    def _unscaled(self, latents: Array) -> Array:
        """Latents as the decoder takes them."""
        model = self._model
        if model.latents_mean:
            mean, std = (
                np.array(values, np.float32)[:, None, None]
                for values in (model.latents_mean, model.latents_std)
            )
            return np.asarray(latents * std / np.float32(model.scaling_factor) + mean)
        return np.asarray(latents / np.float32(model.scaling_factor) + np.float32(model.shift_factor))
