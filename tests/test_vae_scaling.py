"""Latents on their way to the decoder: scale, mean and deviation, codes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from fastdiff.config import ModelSpec
from fastdiff.errors import NumericError
from fastdiff.vae import Vae

MODEL = ModelSpec("stable_diffusion_xl", 2, 8, 0.5, 0.0, 64, 64, 1, 16, 77, 32)
LATENTS = np.arange(8, dtype=np.float32).reshape(1, 2, 2, 2)


def _echo(**inputs: Any) -> dict[str, Any]:
    return {"sample": next(iter(inputs.values()))}


def decoded(model: ModelSpec, **modules: Any) -> Any:
    """What reaches the decoder, which gives it back."""
    given: Any = {"vae_decoder": _echo, **modules}
    return Vae(model, given).decode(LATENTS)


def test_mean_and_deviation_of_each_channel() -> None:
    """As StableDiffusionXLPipeline: latents · std / scale + mean."""
    model = replace(MODEL, latents_mean=(1.0, -1.0), latents_std=(2.0, 3.0))
    wanted = np.stack([LATENTS[:, 0] * 2 / 0.5 + 1, LATENTS[:, 1] * 3 / 0.5 - 1], axis=1)
    np.testing.assert_array_equal(decoded(model), wanted)
    np.testing.assert_array_equal(decoded(MODEL), LATENTS / 0.5)


def test_codes_are_those_with_the_least_score() -> None:
    scores = np.random.default_rng(0).standard_normal((1, 5, 2, 2), np.float32)
    found = decoded(replace(MODEL, latent_codes=5), vae_quantizer=lambda **_: {"scores": scores})
    np.testing.assert_array_equal(found, scores.argmin(axis=1))


def test_pixels_are_their_own_latents() -> None:
    assert decoded(replace(MODEL, vae_scale_factor=1)) is LATENTS


def test_a_decoder_that_gives_nan_is_an_error() -> None:
    modules: Any = {"vae_decoder": lambda **_: {"sample": LATENTS * np.nan}}
    with pytest.raises(NumericError, match="the VAE gave NaN"):
        Vae(MODEL, modules).decode(LATENTS)
