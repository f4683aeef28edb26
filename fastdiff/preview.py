"""Pictures on the way: what the model holds for the clean latents at a step, decoded cheaply.

The estimate is x₀ from the sample that the model was given and its answer, with classifier-free guidance at
the call's scale. It is decoded by the engine's ``preview_decoder``, a tiny autoencoder, or where there is
none by a linear map from latents to colours, one pixel for each latent.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Container, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from fastdiff.config import ModelSpec
from fastdiff.errors import InputError
from fastdiff.samplers import Generator, NoiseSchedule, Prediction
from fastdiff.vae import Vae

if TYPE_CHECKING:
    from PIL.Image import Image

    from fastdiff.denoise import Evaluation, Predict
    from fastdiff.targets.session import Session

__all__ = ["LatentColours", "Preview", "Previewer", "check_preview", "check_tiny", "decode_tiny"]

Array = NDArray[np.float32]
Preview = Callable[[int, int, "list[Image]"], None]
"""``preview(step, total, pictures)``, with ``step`` counting evaluations of the U-Net from 1."""

_MODULE = "preview_decoder"
_SIDE, _PATCH = 32, 4
"""Latents that the linear map is fitted to, and the side of the patches in which they are alike."""


def check_preview(
    preview: object, every: object, schedule: NoiseSchedule, adaptive: str | None, split_guidance: bool
) -> None:
    """Raises InputError for what cannot show pictures on the way.

    ``adaptive`` names a sampler that chooses its own steps, ``split_guidance`` says that the halves of
    guidance run on two devices.
    """
    if not callable(preview):
        raise InputError(f"preview is of type {type(preview).__name__}: it must be a function")
    if isinstance(every, bool) or not isinstance(every, (int, np.integer)) or every < 1:
        raise InputError(f"preview_every is {every!r}: it must be a whole number, 1 or more")
    if adaptive is not None:
        raise InputError(
            f"preview with sampler {adaptive!r}, which chooses its own steps: use another sampler"
        )
    if split_guidance:
        raise InputError(
            "preview with a guidance_device: no one place has both halves; leave one of them out"
        )
    if schedule.prediction not in (Prediction.EPSILON, Prediction.V, Prediction.SAMPLE):
        raise InputError(
            f"preview of a model that predicts {schedule.prediction.value}: its noise level is not known by "
            "the timestep; leave preview out"
        )


def check_tiny(modules: Container[str]) -> None:
    """Raises InputError for an engine without a tiny autoencoder."""
    if _MODULE not in modules:
        raise InputError(
            "vae is 'tiny': this engine was built without a tiny autoencoder; build it with fastdiff build "
            "CHECKPOINT --preview-vae FOLDER, or leave vae out"
        )


def decode_tiny(modules: Mapping[str, Session], latents: Array) -> Array:
    """Pictures [batch, channels, height, width] of latents by the engine's tiny autoencoder."""
    decoded: Array = modules[_MODULE](latent_sample=latents)["sample"]
    return decoded


class LatentColours:
    """The linear map from latents to colours that fits a VAE's decoder best.

    It is found once from what the decoder makes of patches of normal latents, by least squares against the
    mean colour of the pixels that a latent covers. (The common tables of such weights for published models
    were found in the same way.)
    """

    def __init__(self, vae: Vae, model: ModelSpec, decoder: Session) -> None:
        channels, factor = model.latent_channels, model.vae_scale_factor
        sides = [decoder.shapes[name] for name in ("height", "width") if name in decoder.shapes]
        side = _SIDE
        if any(side not in allowed for allowed in sides):
            side = max(allowed.minimum for allowed in sides)
        patches = -(-side // _PATCH)
        noise = Generator(0).randn((1, channels, patches, patches))
        latents = np.kron(noise, np.ones((1, 1, _PATCH, _PATCH), np.float32))[:, :, :side, :side]
        decoded = vae.decode(np.ascontiguousarray(latents))
        means = decoded[0].reshape(decoded.shape[1], side, factor, side, factor).mean((2, 4))
        inputs = np.concatenate([latents[0].reshape(channels, -1), np.ones((1, side * side))])
        self._map = np.linalg.lstsq(inputs.T, means.reshape(len(means), -1).T, rcond=None)[0]

    def __call__(self, latents: Array) -> Array:
        """Colours [batch, channels, h, w], about −1 to 1, of latents: a pixel each."""
        colours = np.einsum("bchw,ck->bkhw", latents, self._map[:-1]) + self._map[-1][:, None, None]
        return np.ascontiguousarray(colours, np.float32)


class Previewer:
    """Puts itself around what computes the U-Net's output and shows pictures after some evaluations.

    ``branches`` is how many outputs guidance needs, the second third of the batch or its second half being
    with the prompt; a batch of ``pictures`` has no guidance.
    """

    def __init__(
        self,
        show: Preview,
        every: int,
        predict: Predict,
        decode: Callable[[Array], Array],
        schedule: NoiseSchedule,
        guidance: float,
        pictures: int,
    ) -> None:
        self._show, self._every, self._predict, self._decode = show, every, predict, decode
        self._prediction, self._guidance, self._pictures = schedule.prediction, guidance, pictures
        self._alphas = schedule.alphas_cumprod().astype(np.float64)

    def __call__(self, evaluation: Evaluation, inputs: dict[str, NDArray[Any]]) -> Array:
        """The U-Net's output, as it is without previews."""
        output = self._predict(evaluation, inputs)
        number, total = evaluation.index + 1, evaluation.total or 0
        if number % self._every == 0 or number == total:
            from fastdiff.image import to_images

            clean = self._estimate(inputs["sample"], float(inputs["timestep"][0]), output)
            self._show(number, total, to_images(self._decode(clean)))
        return output

    def _estimate(self, sample: Array, timestep: float, output: Array) -> Array:
        """x₀ [pictures, channels, h, w] of the model's input, which is √ᾱ·x₀ + √(1 − ᾱ)·ε, and its output."""
        count = self._pictures
        sample, answer = sample[:count], output[:count]
        if len(output) > count:
            answer = answer + np.float32(self._guidance) * (output[count : 2 * count] - answer)
        share = float(np.interp(timestep, np.arange(len(self._alphas)), self._alphas))
        x0 = self._prediction.x0(math.sqrt(share), math.sqrt(1 - share))
        return np.asarray(np.float32(x0.sample) * sample + np.float32(x0.output) * answer, np.float32)
