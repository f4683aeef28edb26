"""Models that enlarge pictures, against diffusers' pipeline for them."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import fastdiff
from fastdiff.build.build import build_engine
from fastdiff.build.checkpoint import load_checkpoint
from fastdiff.errors import CheckpointError, InputError
from tests.checkpoints import read_json, write_json
from tests.families import make_family
from tests.oracle import psnr
from tests.tasks.oracle import MIN_PSNR, PROMPT


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_family("upscale", tmp_path_factory.mktemp("upscaler") / "checkpoint")


@pytest.fixture(scope="module")
def pipe(checkpoint: Path) -> fastdiff.Pipeline:
    return fastdiff.load(build_engine(checkpoint, checkpoint.parent / "e.fd", target="torch").path)


def small(seed: int = 1, size: tuple[int, int] = (24, 16)) -> Image.Image:
    """Smooth colours, [16, 24]: neither side is a power of two times the other."""
    noise = np.random.default_rng(seed).integers(0, 256, (3, 3, 3), np.uint8)
    return Image.fromarray(noise).resize(size, Image.Resampling.BICUBIC)


def theirs(checkpoint: Path, prompt: Any, image: Any, **call: Any) -> list[Image.Image]:
    import torch
    from diffusers import StableDiffusionUpscalePipeline

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of configs and names that change from version to version
        made = StableDiffusionUpscalePipeline.from_pretrained(checkpoint, local_files_only=True)
        made.set_progress_bar_config(disable=True)
        images: list[Image.Image] = made(
            prompt, image=image, generator=torch.Generator().manual_seed(5), **call
        ).images
    return images


def same(ours: list[Image.Image], wanted: list[Image.Image]) -> None:
    assert len(ours) == len(wanted)
    for our, their in zip(ours, wanted, strict=True):
        assert our.size == their.size
        assert np.asarray(their).std() > 4, "a flat picture compares nothing"
        assert psnr(our, their) >= MIN_PSNR


@pytest.mark.parametrize(("guidance", "level"), [(4.0, 7), (1.0, None)])
def test_pictures_of_diffusers(
    pipe: fastdiff.Pipeline, checkpoint: Path, guidance: float, level: int | None
) -> None:
    ours = pipe.upscale(
        small(), PROMPT, steps=5, guidance=guidance, seed=5, noise_level=level, sampler="ddim"
    )
    wanted = theirs(
        checkpoint,
        PROMPT,
        small(),
        num_inference_steps=5,
        guidance_scale=guidance,
        noise_level=20 if level is None else level,
    )
    same(ours.images, wanted)
    assert ours.metadata[0]["settings"]["noise_level"] == (20 if level is None else level)


def test_a_picture_for_each_prompt(pipe: fastdiff.Pipeline, checkpoint: Path) -> None:
    prompts, pictures = [PROMPT, "a green square"], [small(1), small(2)]
    ours = pipe.upscale(pictures, prompts, steps=3, guidance=3.0, seed=5, sampler="ddim")
    wanted = theirs(checkpoint, prompts, pictures, num_inference_steps=3, guidance_scale=3.0)
    same(ours.images, wanted)


def test_metadata_repeat_the_picture(pipe: fastdiff.Pipeline, tmp_path: Path) -> None:
    ours = pipe.upscale(small(), PROMPT, steps=2, noise_level=9)
    settings = dict(ours.metadata[0]["settings"])
    again = pipe.upscale(small(), settings.pop("prompt"), **settings)
    assert np.array_equal(np.asarray(again.images[0]), np.asarray(ours.images[0]))


BAD: list[tuple[dict[str, Any], str]] = [
    ({"scale": 2}, "scale is 2: this model enlarges 4 times by itself"),
    ({"strength": 0.5}, "strength is 0.5: this model enlarges 4 times"),
    ({"method": "lanczos"}, "method is 'lanczos': this model"),
    ({"noise_level": 40}, "noise_level is 40: this model knows 0 to 39"),
    ({"noise_level": -1}, "noise_level is -1"),
    ({"noise_level": 1.5}, "noise_level is 1.5"),
    ({"height": 64}, "height with a model that enlarges"),
    ({"class_label": 3}, "class_label with a model that enlarges"),
    ({"image": "missing.png"}, "missing.png"),
    ({"image": [small(), small(size=(16, 16))], "prompt": ["a", "b"]}, "image is 16 x 16 .*wanted 16 x 24"),
    ({"image": small(size=(3, 16))}, "width is 12: unet of this engine takes 16 or more; use 16"),
]


@pytest.mark.parametrize(("call", "text"), BAD)
def test_refused(pipe: fastdiff.Pipeline, call: dict[str, Any], text: str) -> None:
    given = {"image": small(), "prompt": PROMPT, "steps": 1, **call}
    with pytest.raises(InputError, match=text):
        pipe.upscale(given.pop("image"), given.pop("prompt"), **given)


def test_other_tasks_are_refused(pipe: fastdiff.Pipeline) -> None:
    with pytest.raises(InputError, match="this model enlarges pictures: use upscale"):
        pipe(PROMPT)
    with pytest.raises(InputError, match="this model enlarges pictures: use upscale"):
        pipe.img2img(small(size=(32, 32)), PROMPT)


def test_other_schedules_cannot_be_built(checkpoint: Path, tmp_path: Path) -> None:
    import shutil

    copied = shutil.copytree(checkpoint, tmp_path / "copy")
    file = copied / "low_res_scheduler" / "scheduler_config.json"
    write_json(file, {**read_json(file), "rescale_betas_zero_snr": True})
    with pytest.raises(CheckpointError, match=r"low_res_scheduler.*rescale_betas_zero_snr"):
        load_checkpoint(copied)
    file.unlink()
    with pytest.raises(CheckpointError, match=r"low_res_scheduler/scheduler_config\.json is missing"):
        load_checkpoint(copied)
