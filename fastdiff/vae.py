"""The autoencoder of an engine: latents to pictures and back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from fastdiff.config import ModelSpec
from fastdiff.errors import InputError, NumericError
from fastdiff.manifest import ModuleEntry
from fastdiff.system_memory import available_memory
from fastdiff.targets import runs_on_gpu
from fastdiff.tiling import Way, check_tile, choose_way, decoder_bytes, tiled

if TYPE_CHECKING:
    from fastdiff.samplers import NoiseSource
    from fastdiff.targets.session import Session

__all__ = ["Vae"]

Array = NDArray[np.float32]


class Vae:
    """``modules["vae_decoder"]`` and ``modules["vae_encoder"]`` with the model's scaling.

    ``way`` is how the last pictures went through the decoder. ``entries`` are those of the manifest: without
    them ``tile`` "auto" tiles nothing.
    """

    def __init__(
        self,
        model: ModelSpec,
        modules: Mapping[str, Session],
        entries: Mapping[str, ModuleEntry] | None = None,
    ) -> None:
        self._model = model
        self._modules = modules
        self._entries = entries or {}
        self._tile: str | int = "auto"
        self.way = Way(None, 1)

    @property
    def tile(self) -> str | int:
        """``auto``, ``on``, ``off`` or the side of tiles in pixels; InputError for anything else."""
        return self._tile

    @tile.setter
    def tile(self, value: object) -> None:
        model = self._model
        tile = check_tile(value, model.vae_scale_factor)
        if tile not in ("auto", "off") and (model.on_pixels or model.latent_codes):
            why = "works on pixels" if model.on_pixels else "has latents of codes"
            raise InputError(f"tile is {tile!r}: this model {why}, which are not tiled; use auto or off")
        self._tile = tile

    def decode(self, latents: Array) -> Array:
        """Pictures [batch, channels, height, width], about −1 to 1, of latents [batch, channels, h, w].

        Of a model on pixels they are the latents. A VQ-VAE decodes the codes that are nearest to them.
        Raises NumericError when NaN or infinity comes out.
        """
        model, factor = self._model, self._model.vae_scale_factor
        if model.on_pixels:
            self.way = Way(None, len(latents))
            return latents
        module = self._modules["vae_decoder"]
        if model.latent_codes:
            scores = self._modules["vae_quantizer"](latent_sample=self._unscaled(latents))["scores"]
            decoded: Array = module(codes=scores.argmin(axis=1))["sample"]
            self.way = Way(None, len(latents))
        else:

            def run(part: Array) -> tuple[Array, ...]:
                return (module(latent_sample=part)["sample"],)

            self.way = self._choose("vae_decoder", (len(latents), *latents.shape[2:]))
            (decoded,) = _in_parts(run, self._unscaled(latents), self.way, 1, factor)
        if not np.isfinite(decoded).all():
            raise NumericError(
                "the VAE gave NaN or infinity from finite latents: check the engine with fastdiff verify"
            )
        return decoded

    def encode(self, pictures: Array, noise: NoiseSource) -> Array:
        """Latents [batch, channels, h, w] of pictures [batch, channels, height, width] from −1 to 1.

        They are drawn from the posterior, with one draw of ``noise`` for all, and scaled as the U-Net wants
        them. An encoder without a variance draws nothing. Raises InputError for an engine without an encoder
        and NumericError for NaN or infinity.
        """
        self.check_encoder()
        model, module = self._model, self._modules["vae_encoder"]

        def run(part: Array) -> tuple[Array, ...]:
            moments = module(sample=part)
            return (moments["mean"], moments["logvar"]) if model.latent_variance else (moments["mean"],)

        factor = model.vae_scale_factor
        sides = (len(pictures), pictures.shape[2] // factor, pictures.shape[3] // factor)
        sample, *variance = _in_parts(run, pictures, self._choose("vae_encoder", sides), factor, 1)
        if not all(np.isfinite(array).all() for array in (sample, *variance)):
            raise NumericError(
                "the VAE gave NaN or infinity for a picture: check the engine with fastdiff verify"
            )
        for logvar in variance:
            sample = sample + np.exp(np.float32(0.5) * logvar) * noise.randn(sample.shape)
        return self._scaled(sample)

    def check_encoder(self) -> None:
        """Raise InputError for an engine that makes no latents of pictures."""
        if self._model.on_pixels:
            raise InputError(
                "this model works on pixels and makes no latents of pictures: use an engine of a latent model"
            )
        if "vae_encoder" not in self._modules:
            raise InputError(
                "this engine has no vae_encoder, which makes latents of pictures: build it with all modules"
            )

    def _scaled(self, sample: Array) -> Array:
        """What the encoder gives as the U-Net takes it."""
        model = self._model
        if model.latents_mean:
            mean, std = (
                np.array(values, np.float32)[:, None, None]
                for values in (model.latents_mean, model.latents_std)
            )
            return np.asarray((sample - mean) * np.float32(model.scaling_factor) / std)
        return np.asarray((sample - np.float32(model.shift_factor)) * np.float32(model.scaling_factor))

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

    def _choose(self, name: str, shape: tuple[int, int, int]) -> Way:
        factor, entry = self._model.vae_scale_factor, self._entries.get(name)
        if self._tile != "auto" or entry is None or runs_on_gpu(entry):
            return choose_way(self._tile, factor, shape, None, None)
        needed = decoder_bytes(self._modules[name], entry.bytes, factor)
        return choose_way("auto", factor, shape, needed, available_memory())


def _in_parts(run: Any, array: Array, way: Way, size_in: int, size_out: int) -> tuple[Array, ...]:
    """``run`` on ``array`` as ``way`` says."""
    whole = way.tile is None

    def one(part: Array) -> tuple[Array, ...]:
        if whole:
            results: tuple[Array, ...] = run(part)
            return results
        assert way.tile is not None
        return tiled(run, part, way.tile, size_in, size_out)

    parts = [one(array[begin : begin + way.batch]) for begin in range(0, len(array), way.batch)]
    if len(parts) == 1:
        return parts[0]
    return tuple(np.concatenate(each) for each in zip(*parts, strict=True))
