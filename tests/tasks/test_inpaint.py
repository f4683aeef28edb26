"""Inpainting against diffusers.StableDiffusionInpaintPipeline: same picture, mask, prompt and seed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageFilter

import fastdiff
from fastdiff import InputError
from fastdiff.build.build import build_engine
from fastdiff.tasks.inpaint import mask_region
from tests.builds import build_mixed
from tests.families import make_family
from tests.oracle import psnr
from tests.tasks.oracle import MIN_PSNR, PROMPT, close, drawn, hole, theirs


@pytest.fixture(scope="module")
def pipe(tiny_native_engine: Path) -> fastdiff.Pipeline:
    return fastdiff.load(tiny_native_engine, threads=1)


@pytest.fixture(scope="module")
def inpainting(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny checkpoint whose U-Net sees mask and masked picture."""
    return make_family("inpainting", tmp_path_factory.mktemp("inpainting") / "checkpoint")


@pytest.fixture(scope="module")
def nine(inpainting: Path) -> fastdiff.Pipeline:
    """Its U-Net on the native target, whose own loop takes mask and picture; the rest needs no capture."""
    engine = build_mixed(inpainting, inpainting.with_name("nine.fd"), {"unet": "native"})
    return fastdiff.load(engine, threads=1)


def compare(pipe: fastdiff.Pipeline, checkpoint: Path, **call: Any) -> None:
    size = call.pop("size", (32, 32))
    image, mask = drawn(*size), hole(*size)
    call = {"steps": 8, "guidance": 3.0, "seed": 5, "num": 1, "strength": 0.7, **call}
    pictures, latents = theirs(
        checkpoint,
        "StableDiffusionInpaintPipeline",
        sampler=call["sampler"],
        seed=call["seed"],
        image=image,
        mask_image=mask,
        height=size[0],
        width=size[1],
        strength=call["strength"],
        num_inference_steps=call["steps"],
        guidance_scale=call["guidance"],
        num_images_per_prompt=call["num"],
        eta=call.get("eta", 0.0),
    )
    close(pipe.inpaint(image, mask, PROMPT, **call), pictures, latents)


@pytest.mark.parametrize(
    "sampler",
    [
        "ddim",
        "ddpm",
        "pndm",
        "lcm",
        "euler",
        "euler_ancestral",
        "heun",
        "dpmpp_2m",
        "dpmpp_2s",
        "unipc",
        "deis",
    ],
)
def test_any_model_keeps_what_lies_outside(
    pipe: fastdiff.Pipeline, tiny_checkpoint: Path, sampler: str
) -> None:
    """Solvers of several evaluations and those that keep earlier ones agree with diffusers."""
    compare(pipe, tiny_checkpoint, sampler=sampler)


def test_a_stage_between_two_steps_has_noise_of_its_own(
    pipe: fastdiff.Pipeline, tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """diffusers gives the picture outside the mask the noise of the step's end, beside latents in between."""
    from diffusers import KDPM2DiscreteScheduler

    add_noise = KDPM2DiscreteScheduler.add_noise

    def between(self: Any, picture: Any, noise: Any, timesteps: Any) -> Any:
        if self.step_index is None or self.state_in_first_order:
            return add_noise(self, picture, noise, timesteps)
        return picture + noise * self.sigmas_interpol[self.step_index]

    monkeypatch.setattr(KDPM2DiscreteScheduler, "add_noise", between)
    compare(pipe, tiny_checkpoint, sampler="dpm2")


@pytest.mark.parametrize("sampler", ["euler_ancestral", "sa_solver"])
def test_from_noise_alone(pipe: fastdiff.Pipeline, tiny_checkpoint: Path, sampler: str) -> None:
    """Two pictures: what is drawn for the encoder comes before the noise, or between it and the steps'."""
    compare(pipe, tiny_checkpoint, sampler=sampler, strength=1.0, num=2, size=(24, 40))


@pytest.mark.parametrize("target", ["onnxruntime", "torch"])
def test_other_targets(
    target: str, tiny_engine: Path, tiny_torch_engine: Path, tiny_checkpoint: Path
) -> None:
    engine = tiny_torch_engine if target == "torch" else tiny_engine
    compare(fastdiff.load(engine, threads=1), tiny_checkpoint, sampler="dpmpp_2m")


@pytest.mark.parametrize("radius", [2, 3.5])
def test_a_mask_is_blurred_as_diffusers_blurs_it(
    pipe: fastdiff.Pipeline, tiny_checkpoint: Path, radius: float
) -> None:
    """Its users call ``mask_processor.blur`` first. Lone dots are painted of a hard mask alone."""
    from diffusers.image_processor import VaeImageProcessor

    dots = np.zeros((32, 32), np.uint8)
    dots[::4, ::4] = 255  # the pixels that are nearest to the latents
    dots[:, 16:] = 255
    image, mask = drawn(), Image.fromarray(dots)
    call = {"steps": 6, "guidance": 3.0, "sampler": "ddim", "strength": 0.8, "seed": 5}
    pictures, latents = theirs(
        tiny_checkpoint,
        "StableDiffusionInpaintPipeline",
        sampler="ddim",
        seed=5,
        image=image,
        mask_image=VaeImageProcessor.blur(mask, radius),
        height=32,
        width=32,
        strength=0.8,
        num_inference_steps=6,
        guidance_scale=3.0,
    )
    close(pipe.inpaint(image, mask, PROMPT, mask_blur=radius, **call), pictures, latents)
    hard = pipe.inpaint(image, mask, PROMPT, **call)
    assert psnr(hard.images[0], pictures[0]) < MIN_PSNR


@pytest.mark.parametrize(
    ("sampler", "call"),
    [
        ("ddim", {"strength": 1.0, "num": 2}),
        ("ddim", {"strength": 0.6, "eta": 0.5}),
        ("euler_ancestral", {"strength": 1.0, "guidance": 1.0}),
        ("euler_ancestral", {"strength": 0.6, "num": 2, "size": (24, 40)}),
        ("dpmpp_2m", {"strength": 0.8, "num": 3}),
        ("pndm", {"strength": 0.5, "guidance": 1.0}),
        ("heun", {"strength": 0.9}),
    ],
)
def test_a_model_for_inpainting(
    nine: fastdiff.Pipeline, inpainting: Path, sampler: str, call: dict[str, Any]
) -> None:
    compare(nine, inpainting, sampler=sampler, **call)


def test_a_model_for_inpainting_does_nothing_else(nine: fastdiff.Pipeline) -> None:
    for call in (lambda: nine(PROMPT, steps=1), lambda: nine.img2img(drawn(), PROMPT, steps=2)):
        with pytest.raises(InputError, match="use inpaint with a picture and a mask"):
            call()


@pytest.mark.full
@pytest.mark.parametrize("target", ["native", "onnxruntime", "torch"])
def test_a_model_for_inpainting_on_every_target(inpainting: Path, target: str, tmp_path: Path) -> None:
    """The condition goes through the target's own loop."""
    engine = build_engine(inpainting, tmp_path / "nine.fd", target=target, modules=None).path
    compare(fastdiff.load(engine, threads=1), inpainting, sampler="ddim", strength=1.0)


def test_the_surroundings_of_the_mask(pipe: fastdiff.Pipeline, tiny_checkpoint: Path) -> None:
    image, mask = drawn(96, 80), Image.new("L", (80, 96))
    mask.paste(hole(), (30, 40))
    pictures, latents = theirs(
        tiny_checkpoint,
        "StableDiffusionInpaintPipeline",
        sampler="euler",
        seed=7,
        image=image,
        mask_image=mask,
        height=32,
        width=32,
        padding_mask_crop=6,
        strength=0.8,
        num_inference_steps=6,
        guidance_scale=3.0,
    )
    ours = pipe.inpaint(
        image, mask, PROMPT, crop_padding=6, strength=0.8, steps=6, guidance=3.0, seed=7, sampler="euler"
    )
    close(ours, pictures, latents)
    outside = np.asarray(mask) == 0
    assert (np.asarray(ours.images[0])[outside] == np.asarray(image)[outside]).all()


@pytest.mark.parametrize(
    ("height", "width", "padding"), [(32, 32, 0), (64, 32, 5), (32, 96, 40), (40, 24, 3)]
)
def test_regions_are_those_of_diffusers(height: int, width: int, padding: int) -> None:
    from diffusers.image_processor import VaeImageProcessor

    for at in ((0, 0), (30, 40), (47, 63)):
        mask = Image.new("L", (80, 96))
        mask.paste(hole(), at)
        theirs = VaeImageProcessor.get_crop_region(mask, width, height, pad=padding)
        assert mask_region(mask, height, width, padding) == theirs


def test_the_rest_is_pasted_back(pipe: fastdiff.Pipeline, tiny_checkpoint: Path) -> None:
    from diffusers.image_processor import VaeImageProcessor

    image, mask = drawn(), hole()
    call: dict[str, Any] = {"steps": 4, "seed": 3, "sampler": "ddim"}
    plain = pipe.inpaint(image, mask, PROMPT, **call).images[0]
    sharp = pipe.inpaint(image, mask, PROMPT, overlay=True, **call)
    assert sharp.metadata[0]["settings"]["overlay"] is True
    outside = np.asarray(mask) == 0
    assert (np.asarray(sharp.images[0])[outside] == np.asarray(image)[outside]).all()
    assert (np.asarray(plain)[outside] != np.asarray(image)[outside]).any()
    blurred = mask.filter(ImageFilter.GaussianBlur(2))
    soft = pipe.inpaint(image, mask, PROMPT, overlay=True, mask_blur=2, **call).images[0]
    under = pipe.inpaint(image, mask, PROMPT, mask_blur=2, **call).images[0]
    assert psnr(soft, VaeImageProcessor().apply_overlay(blurred, image, under)) >= MIN_PSNR


def test_metadata_repeats_the_picture(pipe: fastdiff.Pipeline) -> None:
    first = pipe.inpaint(drawn(), hole(), PROMPT, steps=3, seed=4, mask_blur=1.5, strength=0.9)
    metadata = first.metadata[0]
    assert (metadata["task"], sorted(metadata["inputs"])) == ("inpaint", ["image", "mask"])
    again = pipe.inpaint(drawn(), hole(), **metadata["settings"])
    assert np.array_equal(again.latents, first.latents)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        ({"strength": 0}, "strength is 0"),
        ({"strength": 0.1, "steps": 4}, "leaves none to run"),
        ({"strength": float("nan")}, "strength is nan"),
        ({"strength": None}, "strength is None: it must be a number"),
        ({"fit": 3}, "fit is 3: it must be one of exact"),
        ({"mask_blur": float("inf")}, "mask_blur is inf"),
        ({"crop_padding": 1.5}, "crop_padding is 1.5"),
        ({"crop_padding": True}, "crop_padding is True"),
        ({"image": [drawn()]}, "image is of type list: it must be a path"),
        ({"mask": [hole()]}, "mask is of type list"),
        ({"image": drawn(40, 32), "mask": hole(40, 32), "height": 32}, "image is 40 x 32 .*, wanted 32 x 32"),
        ({"image": drawn(37, 32), "mask": hole(37, 32)}, "picture's height is 37: it must be a multiple"),
        ({"mask": np.zeros((32, 32, 2), np.uint8)}, r"mask has shape \[32, 32, 2\]"),
        ({"mask": np.full((32, 32), 100, np.uint8)}, "the mask has no white"),
        ({"denoising_start": 0.5}, "unknown option 'denoising_start': it is for img2img; leave"),
        ({"latents": np.zeros((1, 4, 8, 8), np.float32)}, "unknown option 'latents'"),
        ({"output": "latents"}, "unknown option 'output'"),
        ({"mask_blur": -1}, "mask_blur is -1: it must be a radius"),
        ({"mask_blur": "soft"}, "mask_blur is 'soft'"),
        ({"overlay": 1}, "overlay is 1: it must be True or False"),
        ({"crop_padding": -3}, "crop_padding is -3"),
        ({"crop_padding": 3, "fit": "crop"}, "fit beside crop_padding"),
        ({"mask": hole(40, 32)}, "mask is 40 x 32 .*, the picture 32 x 32"),
        ({"mask": Image.new("L", (32, 32))}, "the mask has no white"),
        ({"mask": Image.new("L", (32, 32)), "crop_padding": 4}, "the mask has no white"),
        ({"mask": "nowhere.png"}, "mask 'nowhere.png' cannot be read"),
        ({"sampler": "rk45", "strength": 1.0}, "rk45"),
        ({"sampler": "karras_ve", "strength": 0.5}, "karras_ve"),
        ({"sampler": "ddim_inverse"}, "leads from a picture to noise"),
    ],
)
def test_options_that_cannot_be_used(pipe: fastdiff.Pipeline, call: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        pipe.inpaint(**{"image": drawn(), "mask": hole(), "prompt": PROMPT, **call})
    assert "\n" not in str(caught.value)
