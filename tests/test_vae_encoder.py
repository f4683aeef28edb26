"""Pictures to latents: the posterior's sample, scaled, as diffusers' pipelines take it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fastdiff
from fastdiff.config import ModelSpec
from fastdiff.errors import InputError, NumericError
from fastdiff.pictures import to_sample
from fastdiff.samplers import Generator
from fastdiff.vae import Vae
from tests.compare import assert_close
from tests.tasks.oracle import components, drawn

MODEL = ModelSpec("stable_diffusion_xl", 2, 8, 0.5, 0.0, 64, 64, 1, 16, 77, 32)
PICTURES = np.zeros((1, 3, 16, 16), np.float32)
MEAN = np.arange(8, dtype=np.float32).reshape(1, 2, 2, 2)


def vae(model: ModelSpec = MODEL, **moments: Any) -> Vae:
    modules: Any = {"vae_encoder": lambda **arrays: moments}
    return Vae(replace(model, latent_variance="logvar" in moments), modules)


def test_a_sample_of_the_posterior(tiny_native_engine: Path, tiny_checkpoint: Path) -> None:
    """One draw for all pictures."""
    import torch

    theirs = components(tiny_checkpoint).vae
    pictures = np.concatenate([to_sample(drawn(40, 24)), -to_sample(drawn(40, 24))])
    with torch.no_grad():
        posterior = theirs.encode(torch.from_numpy(pictures)).latent_dist
    wanted = posterior.sample(torch.Generator().manual_seed(3)) * theirs.config.scaling_factor
    found = fastdiff.load(tiny_native_engine, threads=1).vae.encode(pictures, Generator(3))
    assert_close(found, wanted, rel_l2=1e-4)


def test_mean_and_deviation_of_each_channel() -> None:
    """As StableDiffusionXLImg2ImgPipeline: (latents − mean) · scale / std."""
    model = replace(MODEL, latents_mean=(1.0, -1.0), latents_std=(2.0, 3.0))
    found = vae(model, mean=MEAN).encode(PICTURES, Generator(0))
    wanted = np.stack([(MEAN[:, 0] - 1) * 0.5 / 2, (MEAN[:, 1] + 1) * 0.5 / 3], axis=1)
    assert_close(found, wanted, rel_l2=1e-6)


def test_the_variance_is_given_as_its_logarithm() -> None:
    logvar = np.full_like(MEAN, np.log(9))
    noise = Generator(4).randn(MEAN.shape)
    found = vae(mean=MEAN, logvar=logvar).encode(PICTURES, Generator(4))
    assert_close(found, (MEAN + 3 * noise) * 0.5, rel_l2=1e-6)


def test_an_encoder_without_a_variance() -> None:
    """AutoencoderTiny's: its latents as they are, and the noise of the steps is the generator's first."""
    generator = Generator(6)
    assert_close(vae(mean=MEAN).encode(PICTURES, generator), MEAN * 0.5, rel_l2=1e-6)
    np.testing.assert_array_equal(generator.randn((5,)), Generator(6).randn((5,)))


def test_engines_that_cannot() -> None:
    none: Any = {}
    with pytest.raises(InputError, match="no vae_encoder, which makes latents"):
        Vae(MODEL, none).encode(PICTURES, Generator(0))
    with pytest.raises(InputError, match="works on pixels"):
        vae(replace(MODEL, vae_scale_factor=1), mean=MEAN).encode(PICTURES, Generator(0))
    for bad in ({"mean": MEAN * np.nan}, {"mean": MEAN, "logvar": MEAN + np.inf}):
        with pytest.raises(NumericError, match="the VAE gave NaN or infinity for a picture"):
            vae(**bad).encode(PICTURES, Generator(0))
