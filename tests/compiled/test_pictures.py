"""Pictures of compiled pipelines against those of the pipelines that they were made from: at least 45 dB."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from tests.compare import assert_close
from tests.compiled.pipelines import picture, psnr

MIN_PSNR = 45.0
Twins = Callable[[str], tuple[Any, Any]]


def mask() -> Any:
    from PIL import Image

    pixels = np.zeros((32, 32), np.uint8)
    pixels[8:24, 8:] = 255
    return Image.fromarray(pixels)


def call(pipe: Any, *arguments: Any, seed: int = 3, **options: Any) -> Any:
    """Pictures [n, height, width, 3] of 0 to 1, or what ``output_type`` says."""
    generator = torch.Generator().manual_seed(seed)
    options = {"num_inference_steps": 4, "output_type": "np", **options}
    return pipe(*arguments, generator=generator, **options).images


def assert_same(twins: tuple[Any, Any], *arguments: Any, **options: Any) -> None:
    wanted, found = (call(pipe, *arguments, **options) for pipe in twins)
    assert np.shape(found) == np.shape(wanted)
    for ours, theirs in zip(found, wanted, strict=True):
        assert np.std(theirs) > 4 / 255, "a flat picture compares nothing"
        assert psnr(ours, theirs) >= MIN_PSNR


PROMPT = "a red circle on a blue square"
CALLS: dict[str, dict[str, Any]] = {
    "defaults": {},
    "no guidance": {"guidance_scale": 1.0},
    "several pictures of several prompts": {
        "prompt": [PROMPT, "a star"],
        "negative_prompt": ["green", ""],
        "num_images_per_prompt": 2,
    },
    "another size": {"height": 40, "width": 24},
    "rescaled guidance": {"guidance_rescale": 0.7},
}


@pytest.mark.parametrize("options", CALLS.values(), ids=CALLS)
@pytest.mark.parametrize("name", ["text to image", "SDXL"])
def test_text_to_image(twins: Twins, name: str, options: dict[str, Any]) -> None:
    assert_same(twins(name), **{"prompt": PROMPT, **options})


@pytest.mark.parametrize("name", ["text to image", "SDXL"])
def test_sides_that_are_rounded_up_when_halved(twins: Twins, name: str) -> None:
    """The U-Net alone: with 4 pixels a latent, the pipelines' multiples of 8 are even numbers of latents."""
    theirs, ours = twins(name)
    rng = torch.Generator().manual_seed(1)
    width = theirs.unet.config.cross_attention_dim
    sample, states = torch.randn(2, 4, 9, 11, generator=rng), torch.randn(2, 7, width, generator=rng)
    added = {"text_embeds": torch.randn(2, 20, generator=rng), "time_ids": torch.full((2, 6), 36.0)}
    options = {"added_cond_kwargs": added} if name == "SDXL" else {}
    with torch.no_grad():
        wanted = theirs.unet(sample, 501, states, **options).sample
    assert_close(ours.unet(sample, 501, states, **options).sample, wanted, rel_l2=1e-5)


@pytest.mark.parametrize("name", ["LCM", "tiny autoencoder"])
def test_text_to_image_of_other_models(twins: Twins, name: str) -> None:
    assert_same(twins(name), PROMPT, num_images_per_prompt=2)


def test_image_to_image(twins: Twins) -> None:
    assert_same(twins("image to image"), PROMPT, image=picture(), strength=0.6)


@pytest.mark.parametrize("channels", [4, 9])
def test_inpainting(twins: Twins, channels: int) -> None:
    pair = twins(f"inpainting with {channels} channels")
    assert_same(pair, PROMPT, image=picture(), mask_image=mask(), height=32, width=32)


def test_pixels_without_a_prompt(twins: Twins) -> None:
    assert_same(twins("pixels"), batch_size=2)


@pytest.mark.parametrize(
    "options", [{}, {"guess_mode": True}, {"controlnet_conditioning_scale": 0.3, "control_guidance_end": 0.5}]
)
def test_controlnet(twins: Twins, options: dict[str, Any]) -> None:
    pair = twins("ControlNet")
    assert_same(pair, PROMPT, image=picture(), **options)
    without = call(pair[1], PROMPT, image=picture(), controlnet_conditioning_scale=0.0)
    assert psnr(call(pair[1], PROMPT, image=picture(), **options), without) < 60, "the residuals do something"


@pytest.mark.parametrize(
    ("scheduler", "options"), [("EulerAncestralDiscrete", {}), ("DDIM", {"eta": 1.0}), ("DPMSolverSDE", {})]
)
def test_samplers_with_noise(twins: Twins, scheduler: str, options: dict[str, Any]) -> None:
    import diffusers

    pair = twins("text to image")
    before = [pipe.scheduler for pipe in pair]
    name = scheduler if scheduler != "DPMSolverSDE" else "DPMSolverMultistep"
    more = {"algorithm_type": "sde-dpmsolver++"} if scheduler == "DPMSolverSDE" else {}
    try:
        for pipe in pair:
            pipe.scheduler = getattr(diffusers, f"{name}Scheduler").from_config(pipe.scheduler.config, **more)
        assert_same(pair, PROMPT, **options)
    finally:
        for pipe, scheduler_before in zip(pair, before, strict=True):
            pipe.scheduler = scheduler_before


def test_latents_and_their_way(twins: Twins) -> None:
    """``output_type="latent"``, a callback that sees and changes every step, and a tuple as the result."""
    results = []
    for pipe in twins("text to image"):
        seen: list[torch.Tensor] = []

        def keep(
            pipe: Any, step: int, timestep: Any, tensors: dict[str, Any], seen: list[torch.Tensor] = seen
        ) -> dict[str, Any]:
            seen.append(tensors["latents"].clone())
            return {"latents": tensors["latents"] * 0.9}

        latents = call(pipe, PROMPT, output_type="latent", callback_on_step_end=keep)
        (again, _) = pipe(
            PROMPT,
            num_inference_steps=4,
            output_type="latent",
            generator=torch.Generator().manual_seed(3),
            callback_on_step_end=keep,
            return_dict=False,
        )
        assert torch.equal(latents, again)
        results.append(torch.stack([*seen, latents]))
    assert results[0].std() > 0.1
    assert_close(results[1], results[0], rel_l2=1e-4)


@pytest.mark.parametrize("name", ["text to image", "SDXL"])
def test_prompt_embeddings_given(twins: Twins, name: str) -> None:
    pair = twins(name)
    options = {"device": "cpu", "num_images_per_prompt": 1, "do_classifier_free_guidance": True}
    found = [pipe.encode_prompt(PROMPT, **options) for pipe in pair]
    for ours, theirs in zip(found[1], found[0], strict=True):
        assert_close(ours, theirs, rel_l2=1e-4)
    names = (
        "prompt_embeds",
        "negative_prompt_embeds",
        "pooled_prompt_embeds",
        "negative_pooled_prompt_embeds",
    )
    assert_same(pair, **dict(zip(names, found[0], strict=False)))


def test_clip_skip_of_two_text_encoders(twins: Twins) -> None:
    pair = twins("SDXL")
    assert_same(pair, PROMPT, clip_skip=1)
    assert psnr(call(pair[1], PROMPT, clip_skip=1), call(pair[1], PROMPT)) < 60


def test_clip_skip_of_one_text_encoder(twins: Twins) -> None:
    """By hand: diffusers 0.42 looks for a part of the text encoder that transformers 5 has elsewhere."""
    pipe, ours = twins("text to image")
    ids = pipe.tokenizer(PROMPT, padding="max_length", max_length=77, return_tensors="pt").input_ids
    with torch.no_grad():
        states = pipe.text_encoder(ids, output_hidden_states=True).hidden_states
        wanted = pipe.text_encoder.final_layer_norm(states[-2])
    found, _ = ours.encode_prompt(PROMPT, "cpu", 1, False, clip_skip=1)
    assert_close(found, wanted, rel_l2=1e-4)


def test_tiling_and_slicing_of_diffusers(twins: Twins) -> None:
    pair = twins("text to image")
    try:
        for pipe in pair:
            pipe.vae.enable_tiling()
            pipe.vae.enable_slicing()
            pipe.vae.tile_latent_min_size, pipe.vae.tile_sample_min_size = 8, 32
        assert_same(pair, PROMPT, height=64, width=48, num_images_per_prompt=2)
    finally:
        for pipe in pair:
            pipe.vae.disable_tiling()
            pipe.vae.disable_slicing()


def test_onnxruntime(twins: Twins, engines: Any) -> None:
    from tests.compiled.pipelines import compiled

    pipe, _ = twins("LCM")
    ours = compiled(pipe, engines, target="onnxruntime", modules=["unet"])
    assert ours.fastdiff.left.keys() == {"text_encoder", "vae"}
    assert ours.vae is pipe.vae
    assert_same((pipe, ours), PROMPT)
