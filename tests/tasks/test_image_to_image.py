"""Image-to-image against diffusers.StableDiffusionImg2ImgPipeline: same picture, prompt and seed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fastdiff
from fastdiff import InputError
from tests.tasks.oracle import PROMPT, close, drawn, theirs

SAMPLERS = (
    *("ddim", "ddpm", "pndm", "lcm", "euler", "euler_ancestral", "heun", "dpm2", "dpm2_ancestral"),
    *("dpmpp_2m", "dpmpp_3m", "dpmpp_2m_sde", "dpmpp_2s", "unipc", "deis", "sa_solver"),
)
NO_MIDDLE = ("karras_ve", "pc", "rk45", "ddim_inverse", "dpmpp_2m_inverse", "consistency")


@pytest.fixture(scope="module")
def pipe(tiny_native_engine: Path) -> fastdiff.Pipeline:
    return fastdiff.load(tiny_native_engine, threads=1)


def compare(pipe: fastdiff.Pipeline, checkpoint: Path, **call: Any) -> None:
    image = drawn(call.pop("height", 32), call.pop("width", 32))
    call = {"steps": 10, "guidance": 3.0, "seed": 5, "num": 1, "strength": 0.6, **call}
    pictures, latents = theirs(
        checkpoint,
        "StableDiffusionImg2ImgPipeline",
        sampler=call["sampler"],
        seed=call["seed"],
        image=image,
        strength=call["strength"],
        num_inference_steps=call["steps"],
        guidance_scale=call["guidance"],
        num_images_per_prompt=call["num"],
        eta=call.get("eta", 0.0),
        options=call.get("sampler_options"),
    )
    close(pipe.img2img(image, PROMPT, **call), pictures, latents)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_every_kind_of_sampler_starts_in_the_middle(
    pipe: fastdiff.Pipeline, tiny_checkpoint: Path, sampler: str
) -> None:
    compare(pipe, tiny_checkpoint, sampler=sampler)


def test_lms_knows_nothing_of_the_steps_that_were_left_out(
    pipe: fastdiff.Pipeline, tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """diffusers' takes the first of the coefficients for four derivatives where it has one."""
    import functools

    from diffusers import LMSDiscreteScheduler

    step = LMSDiscreteScheduler.step

    @functools.wraps(step)
    def growing(self: Any, output: Any, timestep: Any, sample: Any, order: int = 4, **options: Any) -> Any:
        return step(self, output, timestep, sample, min(order, len(self.derivatives) + 1), **options)

    monkeypatch.setattr(LMSDiscreteScheduler, "step", growing)
    compare(pipe, tiny_checkpoint, sampler="lms")


@pytest.mark.parametrize(
    ("sampler", "strength"),
    [
        *(("pndm", 0.11), ("pndm", 1.0), ("dpmpp_2m", 0.11), ("dpmpp_2m", 0.95)),
        *(("heun", 0.5), ("heun", 1.0), ("unipc", 0.5), ("unipc", 0.95)),
    ],
)
def test_strengths(pipe: fastdiff.Pipeline, tiny_checkpoint: Path, sampler: str, strength: float) -> None:
    """17 steps: orders fall at the end only where all steps are fewer than 15, however few remain."""
    compare(pipe, tiny_checkpoint, sampler=sampler, strength=strength, steps=17)


def test_several_pictures_of_another_shape(pipe: fastdiff.Pipeline, tiny_checkpoint: Path) -> None:
    """One draw from the posterior for all, then noise for each."""
    compare(pipe, tiny_checkpoint, sampler="euler_ancestral", num=3, height=40, width=24)


def test_noise_of_ddim(pipe: fastdiff.Pipeline, tiny_checkpoint: Path) -> None:
    compare(pipe, tiny_checkpoint, sampler="ddim", eta=0.7)


def test_placed_levels(pipe: fastdiff.Pipeline, tiny_checkpoint: Path) -> None:
    compare(pipe, tiny_checkpoint, sampler="dpmpp_2m", sampler_options={"use_karras_sigmas": True})


def test_no_guidance(pipe: fastdiff.Pipeline, tiny_checkpoint: Path) -> None:
    compare(pipe, tiny_checkpoint, sampler="euler", guidance=1.0)


@pytest.mark.parametrize("target", ["onnxruntime", "torch"])
def test_other_targets(
    target: str, tiny_engine: Path, tiny_torch_engine: Path, tiny_checkpoint: Path
) -> None:
    engine = tiny_torch_engine if target == "torch" else tiny_engine
    compare(fastdiff.load(engine, threads=1), tiny_checkpoint, sampler="dpmpp_2m")


def test_a_list_of_pictures(pipe: fastdiff.Pipeline) -> None:
    """Each picture gets its own, as if it were alone but for the noise."""
    one = pipe.img2img([drawn()] * 2, PROMPT, num=2, seed=1, steps=4, sampler="ddim")
    assert len(one.images) == 2
    with pytest.raises(InputError, match="image: 2 for 1 picture, give one for all or one each"):
        pipe.img2img([drawn()] * 2, PROMPT, steps=4)
    with pytest.raises(InputError, match="empty list"):
        pipe.img2img([], PROMPT)


def test_latents_in_place_of_a_picture(pipe: fastdiff.Pipeline, tiny_checkpoint: Path) -> None:
    import torch

    first = pipe(PROMPT, steps=3, seed=2, output="latents")
    assert first.images == []
    pictures, latents = theirs(
        tiny_checkpoint,
        "StableDiffusionImg2ImgPipeline",
        sampler="ddim",
        seed=3,
        image=torch.from_numpy(first.latents),
        strength=0.5,
        num_inference_steps=8,
        guidance_scale=3.0,
    )
    second = pipe.img2img(
        latents=first.latents, prompt=PROMPT, strength=0.5, steps=8, guidance=3.0, seed=3, sampler="ddim"
    )
    close(second, pictures, latents)
    assert second.metadata[0]["latents"] == "given"


def test_metadata_repeats_the_picture(pipe: fastdiff.Pipeline, tmp_path: Path) -> None:
    import hashlib

    path = tmp_path / "in.png"
    drawn(40, 32).save(path)
    first = pipe.img2img(path, PROMPT, fit="crop", height=32, width=32, steps=5, strength=0.5, seed=4)
    metadata = first.metadata[0]
    assert metadata["task"] == "img2img"
    (source,) = metadata["inputs"]["image"]
    assert source["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    assert source["size"] == [32, 40]
    again = getattr(pipe, metadata["task"])(path, **metadata["settings"])
    assert np.array_equal(again.latents, first.latents)


@pytest.mark.parametrize("sampler", NO_MIDDLE)
def test_samplers_without_a_middle_are_refused_by_name(pipe: fastdiff.Pipeline, sampler: str) -> None:
    with pytest.raises(InputError, match=sampler):
        pipe.img2img(drawn(), PROMPT, sampler=sampler, steps=10, strength=0.5)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        ({"strength": 0}, "strength is 0: it must be above 0 and up to 1"),
        ({"strength": 1.5}, "strength is 1.5"),
        ({"strength": "much"}, "strength is 'much': it must be a number"),
        ({"strength": float("nan")}, "strength is nan"),
        ({"strength": True}, "strength is True: it must be a number"),
        ({"image": "nowhere.png"}, "image 'nowhere.png' cannot be read"),
        ({"image": [drawn(), 3], "num": 2}, "image 1 is of type int"),
        ({"image": [drawn(), drawn(40)], "num": 2}, "image is 40 x 32 .*, wanted 32 x 32"),
        ({"fit": None}, "fit is None: it must be one of"),
        ({"height": "32"}, "height is '32'"),
        ({"denoising_end": float("nan")}, "denoising_end is nan"),
        ({"denoising_end": 1.5}, "denoising_end is 1.5"),
        ({"output": None}, "output is None"),
        ({"mask": drawn()}, "unknown option 'mask': it is for inpaint; leave it out"),
        ({"strenght": 0.5}, "unknown option 'strenght': did you mean strength\\?"),
        ({"strength": 0.05, "steps": 10}, "strength 0.05 of 10 steps leaves none to run.* 20 steps"),
        ({"fit": "stretch"}, "fit is 'stretch': it must be one of exact, resize, crop, fill"),
        ({"height": 40}, "image is 32 x 32 .*, wanted 40 x 32: resize it, or set fit"),
        ({"height": 30, "fit": "crop"}, "height is 30: it must be a multiple of 4; use 28 or 32"),
        ({"output": "video"}, "output is 'video': it must be pictures or latents"),
        ({"latents": np.zeros((1, 4, 8, 8), np.float32)}, "both image and latents"),
        ({"denoising_start": 0.5}, "denoising_start with an image"),
        ({"denoising_end": 0}, "denoising_end is 0"),
        ({"steppes": 5}, "unknown option 'steppes': did you mean steps\\?"),
    ],
)
def test_options_that_cannot_be_used(pipe: fastdiff.Pipeline, call: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        pipe.img2img(**{"image": drawn(), "prompt": PROMPT, **call})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        ({}, "neither image nor latents"),
        ({"latents": np.zeros((1, 3, 8, 8), np.float32)}, r"float32 \[1, 3, 8, 8\]: they must be float32"),
        ({"latents": np.full((1, 4, 8, 8), np.nan, np.float32)}, "NaN or infinity"),
        ({"latents": np.zeros((4, 8, 8), np.float32)}, r"float32 \[4, 8, 8\]: they must be"),
        ({"latents": np.zeros((1, 4, 8, 8), np.int32)}, r"int32 \[1, 4, 8, 8\]: they must be"),
        ({"latents": np.zeros((0, 4, 8, 8), np.float32)}, r"float32 \[0, 4, 8, 8\]: they must be"),
        ({"latents": "latents"}, "latents are <U7"),
        ({"latents": np.zeros((1, 4, 3, 8), np.float32)}, "height is 12: .* takes 16 or more; use 16"),
        ({"latents": np.zeros((2, 4, 8, 8), np.float32)}, "latents: 2 for 1 picture, give"),
        ({"latents": np.zeros((1, 4, 8, 8), np.float32), "fit": "crop"}, "fit is 'crop' with latents"),
        (
            {"latents": np.zeros((1, 4, 8, 8), np.float32), "height": 64},
            "height is 64, but the latents",
        ),
        (
            {"latents": np.zeros((1, 4, 8, 8), np.float32), "denoising_start": 0.5, "strength": 0.5},
            "strength beside denoising_start",
        ),
        (
            {"latents": np.zeros((1, 4, 8, 8), np.float32), "denoising_start": 0.5, "denoising_end": 0.4},
            "denoising_start is 0.5: it must be less than 0.4",
        ),
        ({"latents": np.zeros((1, 4, 8, 8), np.float32), "denoising_start": 1}, "denoising_start is 1"),
    ],
)
def test_latents_that_cannot_be_used(pipe: fastdiff.Pipeline, call: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        pipe.img2img(prompt=PROMPT, **call)


def test_a_picture_of_no_whole_blocks(pipe: fastdiff.Pipeline) -> None:
    with pytest.raises(InputError, match="picture's height is 37: it must be a multiple of 4"):
        pipe.img2img(drawn(37, 32), PROMPT, steps=2)
    assert pipe.img2img(drawn(37, 32), PROMPT, steps=2, fit="crop").images[0].size == (32, 36)
