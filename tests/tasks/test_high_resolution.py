"""Large pictures in two passes, against the two pipelines of diffusers with the enlarging in between."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import fastdiff
from fastdiff import InputError
from fastdiff.errors import FastdiffWarning
from tests.engines import without_module
from tests.tasks.oracle import PROMPT, close, theirs

FILTERS = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}
CALL: dict[str, Any] = {"steps": 5, "guidance": 3.0, "seed": 6}


@pytest.fixture(scope="module")
def pipe(tiny_native_engine: Path) -> fastdiff.Pipeline:
    return fastdiff.load(tiny_native_engine, threads=1)


def first_pass(checkpoint: Path, sampler: str, **more: Any) -> tuple[list[Image.Image], np.ndarray]:
    return theirs(
        checkpoint,
        "StableDiffusionPipeline",
        sampler=sampler,
        seed=6,
        num_inference_steps=5,
        guidance_scale=3.0,
        **more,
    )


def second_pass(checkpoint: Path, sampler: str, image: Any, **more: Any) -> Any:
    return theirs(
        checkpoint,
        "StableDiffusionImg2ImgPipeline",
        sampler=sampler,
        seed=6,
        image=image,
        num_inference_steps=5,
        guidance_scale=3.0,
        **more,
    )


@pytest.mark.parametrize("method", FILTERS)
def test_pixels(pipe: fastdiff.Pipeline, tiny_checkpoint: Path, method: str) -> None:
    """32 x 32 to 56 x 56: 1.75 times; two pictures."""
    images, _ = first_pass(tiny_checkpoint, "dpmpp_2m", num_images_per_prompt=2)
    large = [image.resize((56, 56), FILTERS[method]) for image in images]
    pictures, latents = second_pass(tiny_checkpoint, "dpmpp_2m", large, strength=0.6, num_images_per_prompt=2)
    ours = pipe.high_resolution(
        PROMPT, scale=1.75, method=method, strength=0.6, num=2, sampler="dpmpp_2m", **CALL
    )
    close(ours, pictures, latents)


@pytest.mark.parametrize("method", ["nearest", "bilinear", "bicubic"])
@pytest.mark.parametrize("sampler", ["ddim", "euler_ancestral"])
def test_latents(pipe: fastdiff.Pipeline, tiny_checkpoint: Path, method: str, sampler: str) -> None:
    """24 x 40 to 38.4 x 64, of which 36 x 64 is left; never decoded in between."""
    import torch

    _, first = first_pass(tiny_checkpoint, sampler, height=24, width=40)
    large = torch.nn.functional.interpolate(torch.from_numpy(first), size=(9, 16), mode=method)
    pictures, latents = second_pass(tiny_checkpoint, sampler, large, strength=0.7)
    ours = pipe.high_resolution(
        PROMPT, scale=1.6, method=f"latent_{method}", height=24, width=40, sampler=sampler, **CALL
    )
    assert ours.images[0].size == (64, 36)
    close(ours, pictures, latents)


def test_what_it_does_by_default(pipe: fastdiff.Pipeline) -> None:
    call = {**CALL, "sampler": "ddim"}
    ours = pipe.high_resolution(PROMPT, **call)
    assert ours.images[0].size == (64, 64)
    named = pipe.high_resolution(PROMPT, scale=2, method="latent_bilinear", strength=0.7, **call)
    assert np.array_equal(ours.latents, named.latents)
    assert len(ours.timings.steps) == 5 + int(5 * 0.7), "those of both passes"


def test_options_hold_for_both_passes(pipe: fastdiff.Pipeline) -> None:
    """As the two calls by hand; the callback sees the steps of both."""
    seen: list[tuple[int, int]] = []
    call: dict[str, Any] = {
        **CALL,
        "negative": "blue",
        "sampler": "ddim",
        "eta": 0.5,
        "sampler_options": {"timestep_spacing": "trailing"},
    }
    ours = pipe.high_resolution(
        PROMPT,
        scale=1.5,
        method="bicubic",
        strength=0.5,
        callback=lambda step, total, latents: seen.append((step, total)),
        **call,
    )
    first = pipe(PROMPT, **call).images[0]
    second = pipe.img2img(first.resize((48, 48), Image.Resampling.BICUBIC), PROMPT, strength=0.5, **call)
    assert np.array_equal(ours.latents, second.latents)
    assert seen == [(step, 5) for step in range(1, 6)] + [(1, 2), (2, 2)]


def test_previews_count_on(pipe: fastdiff.Pipeline) -> None:
    seen: list[tuple[int, int, int]] = []
    pipe.high_resolution(
        PROMPT,
        steps=3,
        strength=0.7,
        height=16,
        width=16,
        sampler="ddim",
        preview=lambda step, total, pictures: seen.append((step, total, pictures[0].width)),
        preview_every=2,
    )
    assert seen == [(2, 5, 4), (3, 5, 4), (5, 5, 8)]
    with pytest.raises(InputError, match="preview is of type int"):
        pipe.high_resolution(PROMPT, steps=2, height=16, width=16, preview=3)


def test_metadata_repeats_the_picture(pipe: fastdiff.Pipeline) -> None:
    first = pipe.high_resolution(
        PROMPT, scale=1.5, method="lanczos", strength=0.4, height=24, width=32, steps=5, sampler="ddim"
    )
    metadata = first.metadata[0]
    assert metadata["task"] == "high_resolution"
    assert (metadata["settings"]["height"], metadata["settings"]["width"]) == (24, 32)
    again = getattr(pipe, metadata["task"])(**metadata["settings"])
    assert np.array_equal(np.asarray(again.images[0]), np.asarray(first.images[0]))
    assert again.metadata == first.metadata


@pytest.mark.parametrize(
    ("call", "message"),
    [
        ({"scale": 1}, "scale is 1: it must be more than 1, such as 2"),
        ({"scale": 0.5}, "scale is 0.5"),
        ({"scale": "2x"}, "scale is '2x': it must be a number"),
        ({"scale": float("nan")}, "scale is nan"),
        ({"scale": float("inf")}, "scale is inf"),
        ({"method": "esrgan"}, "method is 'esrgan': it must be one of nearest, .*, latent_bicubic"),
        ({"method": "latent_nearest-exact"}, "method is 'latent_nearest-exact'"),
        ({"method": 3}, "method is 3"),
        ({"strength": 0}, "strength is 0"),
        ({"strength": 1.1}, "strength is 1.1"),
        ({"strength": 0.1, "steps": 5}, "strength 0.1 of 5 steps leaves none to run"),
        ({"sampler": "rk45"}, "rk45"),
        ({"sampler": "karras_ve"}, "karras_ve"),
        ({"steppes": 4}, "unknown option 'steppes'"),
        ({"variation_seed": 4}, "unknown option 'variation_seed': it is for pictures from noise"),
        ({"height": 30}, "height is 30: it must be a multiple of 4"),
    ],
)
def test_what_is_refused_is_refused_before_the_first_pass(
    pipe: fastdiff.Pipeline, call: dict[str, Any], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*arguments: object) -> None:
        raise AssertionError("the first pass ran")

    monkeypatch.setattr(type(pipe), "carry_out", never)
    with pytest.raises(InputError, match=message) as caught:
        pipe.high_resolution(PROMPT, **call)
    assert "\n" not in str(caught.value)


def test_two_passes_warn_once(pipe: fastdiff.Pipeline) -> None:
    with pytest.warns(FastdiffWarning, match="negative prompt has no effect") as caught:
        pipe.high_resolution(PROMPT, steps=2, guidance=1.0, negative="blue", height=16, width=16)
    assert len(caught) == 1
    assert caught[0].filename == __file__
    with pytest.warns(FastdiffWarning) as caught:
        _ = [pipe(PROMPT, steps=1, guidance=1.0, negative="a", height=16, width=16) for _ in range(2)]
    assert len(caught) == 2, "two calls are two"


def test_an_engine_without_an_encoder(tiny_native_engine: Path, tmp_path: Path) -> None:
    """Pixels need one, latents do not."""
    plain = fastdiff.load(without_module("vae_encoder", tiny_native_engine, tmp_path / "plain.fd"), threads=1)
    with pytest.raises(InputError, match="this engine has no vae_encoder"):
        plain.high_resolution(PROMPT, steps=2, method="lanczos")
    assert plain.high_resolution(PROMPT, steps=2, height=16, width=16).images[0].size == (32, 32)
