"""The tasks with further families against diffusers: v-prediction, LCM, other autoencoders; and refusals."""

from __future__ import annotations

import warnings
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fastdiff
from fastdiff import InputError
from fastdiff.build.build import build_engine
from tests.checkpoints import read_json, write_json
from tests.families import make_family
from tests.tasks.oracle import PROMPT, close, compare, components, drawn, hole

IMG2IMG, INPAINT = "StableDiffusionImg2ImgPipeline", "StableDiffusionInpaintPipeline"
LCM = "LatentConsistencyModelImg2ImgPipeline"
SIZE = {"height": 32, "width": 32}


@pytest.fixture(scope="module")
def family(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A family's checkpoint and its engine on the target without capture, by name, each made once."""
    folder = tmp_path_factory.mktemp("families")

    def make(name: str) -> tuple[Path, fastdiff.Pipeline]:
        checkpoint = make_family(name, folder / name)
        engine = build_engine(checkpoint, folder / f"{name}.fd", target="torch").path
        return checkpoint, fastdiff.load(engine, threads=1)

    return cache(make)


@pytest.mark.parametrize("sampler", ["ddim", "dpmpp_2m", "euler"])
def test_v_prediction(family: Any, sampler: str) -> None:
    checkpoint, pipe = family("sd2")
    call: dict[str, Any] = {"image": drawn(), "sampler": sampler, "num": 2, "negative": "green"}
    compare(pipe.img2img, checkpoint, IMG2IMG, strength=0.6, **call)
    compare(pipe.inpaint, checkpoint, INPAINT, mask=hole(), strength=0.8, only_theirs=SIZE, **call)


@pytest.mark.parametrize(("strength", "steps"), [(0.8, 4), (0.5, 2), (1.0, 4), (0.3, 1)])
def test_latent_consistency(family: Any, strength: float, steps: int) -> None:
    """All steps are run, over the timesteps that are left; the model is told the scale of guidance."""
    checkpoint, pipe = family("lcm")
    call: dict[str, Any] = {"sampler": "lcm", "strength": strength, "steps": steps, "guidance": 6.5}
    ours = compare(pipe.img2img, checkpoint, LCM, image=drawn(40, 24), num=2, **call)
    assert len(ours.timings.steps) == steps
    again = pipe.img2img(drawn(40, 24), **ours.metadata[0]["settings"])
    assert np.array_equal(again.latents, ours.latents)


def test_latent_consistency_inpaints(family: Any) -> None:
    """diffusers has no pipeline of its own for it; that of Stable Diffusion leaves out steps."""
    checkpoint, pipe = family("lcm")
    call: dict[str, Any] = {"image": drawn(), "mask": hole(), "sampler": "lcm", "guidance": 6.5}
    ours = compare(pipe.inpaint, checkpoint, INPAINT, strength=0.5, steps=8, only_theirs=SIZE, **call)
    assert len(ours.timings.steps) == 4


@pytest.mark.parametrize(
    ("call", "message"),
    [
        ({"steps": 26, "strength": 0.5}, "steps is 26, but sampler 'lcm' wants at most 25"),
        (
            {"steps": 2, "sampler_options": {"strength": 0.5}},
            "of the sampler as well as of the call",
        ),
        ({"steps": 4, "strength": 0.001}, "steps is 4, but sampler 'lcm' wants at most 0"),
    ],
)
def test_steps_that_latent_consistency_does_not_have(family: Any, call: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        family("lcm")[1].img2img(drawn(), PROMPT, **call)


def test_an_autoencoder_without_a_variance(family: Any) -> None:
    """Nothing is drawn for the picture: the generator's first numbers are the noise's."""
    checkpoint, pipe = family("tiny_vae")
    call: dict[str, Any] = {"image": drawn(), "sampler": "euler_ancestral", "num": 2}
    compare(pipe.img2img, checkpoint, IMG2IMG, strength=0.6, **call)
    compare(pipe.inpaint, checkpoint, INPAINT, mask=hole(), strength=0.8, only_theirs=SIZE, **call)


def test_a_codebook(family: Any) -> None:
    """diffusers has no class for it: its modules, by its scheduler."""
    import torch
    from diffusers import DDIMScheduler
    from PIL import Image

    checkpoint, pipe = family("vq_latent")
    base = components(checkpoint)
    image = drawn()
    pixels = torch.from_numpy(np.asarray(image).astype(np.float32) / 255).permute(2, 0, 1)[None] * 2 - 1
    scheduler = DDIMScheduler.from_config(base.scheduler.config)
    scheduler.set_timesteps(10)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        latents = base.vqvae.encode(pixels).latents * base.vqvae.config.scaling_factor
        noise = torch.randn(latents.shape, generator=generator)
        timesteps = scheduler.timesteps[4:]
        latents = scheduler.add_noise(latents, noise, timesteps[:1])
        for timestep in timesteps:
            latents = scheduler.step(base.unet(latents, timestep).sample, timestep, latents).prev_sample
        decoded = base.vqvae.decode(latents / base.vqvae.config.scaling_factor).sample
    picture = ((decoded[0] / 2 + 0.5).clamp(0, 1).permute(1, 2, 0).numpy() * 255).round().astype(np.uint8)
    ours = pipe.img2img(image, steps=10, strength=0.6, seed=3, sampler="ddim")
    close(ours, [Image.fromarray(picture)], latents.numpy())


@pytest.mark.full
def test_means_and_deviations_of_latents(tmp_path: Path) -> None:
    checkpoint = make_family("sdxl", tmp_path / "checkpoint")
    config = read_json(checkpoint / "vae" / "config.json")
    config |= {"latents_mean": [-1.6, 1.1, 3.3, -0.2], "latents_std": [0.5, 1.5, 2.0, 0.8]}
    write_json(checkpoint / "vae" / "config.json", config)
    pipe = fastdiff.load(build_engine(checkpoint, tmp_path / "engine.fd", target="torch").path, threads=1)
    assert pipe.engine.manifest.model.latents_mean
    call: dict[str, Any] = {"image": drawn(), "strength": 0.6}
    compare(pipe.img2img, checkpoint, "StableDiffusionXLImg2ImgPipeline", **call)


def test_models_on_pixels_refuse(family: Any) -> None:
    _, pipe = family("ddpm")
    for call in (lambda: pipe.img2img(drawn(), steps=2), lambda: pipe.inpaint(drawn(), hole(), steps=2)):
        with pytest.raises(InputError, match="works on pixels and makes no latents of pictures"):
            call()


def test_engines_without_an_encoder_refuse(family: Any) -> None:
    engine = family("sd2")[1].engine
    modules = {name: entry for name, entry in engine.manifest.modules.items() if name != "vae_encoder"}
    pipe = fastdiff.Pipeline(replace(engine, manifest=replace(engine.manifest, modules=modules)), threads=1)
    calls = (
        lambda: pipe.img2img(drawn(), PROMPT, steps=2),
        lambda: pipe.inpaint(drawn(), hole(), PROMPT, steps=2),
        lambda: pipe.upscale(drawn(), PROMPT, steps=5),
        lambda: pipe.upscale(drawn(), PROMPT, steps=5, method="latent_nearest"),
        lambda: pipe.high_resolution(PROMPT, steps=5, method="lanczos"),
    )
    for call in calls:
        with pytest.raises(InputError, match="no vae_encoder, which makes latents of pictures: build it"):
            call()
    assert pipe.img2img(latents=pipe(PROMPT, steps=1).latents, prompt=PROMPT, steps=3).images
