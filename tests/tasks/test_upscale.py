"""Pictures enlarged and painted anew, against diffusers' image-to-image with the enlarging before it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import fastdiff
from fastdiff import InputError
from fastdiff.pictures import to_sample
from fastdiff.tasks.upscale import scaled_side
from tests.tasks.oracle import PROMPT, close, components, drawn, theirs
from tests.tasks.test_high_resolution import FILTERS

CALL: dict[str, Any] = {"steps": 6, "guidance": 3.0, "seed": 2, "sampler": "euler"}


@pytest.fixture(scope="module")
def pipe(tiny_native_engine: Path) -> fastdiff.Pipeline:
    return fastdiff.load(tiny_native_engine, threads=1)


def painted(checkpoint: Path, image: Any, seed: Any = 2, **more: Any) -> Any:
    return theirs(
        checkpoint,
        "StableDiffusionImg2ImgPipeline",
        sampler="euler",
        seed=seed,
        image=image,
        num_inference_steps=6,
        guidance_scale=3.0,
        **more,
    )


@pytest.mark.parametrize("method", FILTERS)
def test_pixels(pipe: fastdiff.Pipeline, tiny_checkpoint: Path, method: str) -> None:
    """A picture of any size: 27 x 33 becomes 67 x 82, of which 64 x 80 is taken."""
    image = drawn(27, 33)
    pictures, latents = painted(tiny_checkpoint, image.resize((80, 64), FILTERS[method]), strength=0.5)
    ours = pipe.upscale(image, PROMPT, scale=2.5, method=method, strength=0.5, **CALL)
    assert ours.images[0].size == (80, 64)
    close(ours, pictures, latents)


@pytest.mark.parametrize("method", ["nearest", "bilinear", "bicubic"])
def test_latents(pipe: fastdiff.Pipeline, tiny_checkpoint: Path, method: str) -> None:
    """One generator: for the encoder's posterior, then the noise of the large picture."""
    import torch

    image = drawn(24, 40)
    vae = components(tiny_checkpoint).vae
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        posterior = vae.encode(torch.from_numpy(to_sample(image))).latent_dist
    small = posterior.sample(generator) * vae.config.scaling_factor
    large = torch.nn.functional.interpolate(small, size=(12, 20), mode=method)
    pictures, latents = painted(tiny_checkpoint, large, generator, strength=0.6, num_images_per_prompt=2)
    ours = pipe.upscale(image, PROMPT, scale=2, method=f"latent_{method}", strength=0.6, num=2, **CALL)
    close(ours, pictures, latents)


def test_what_it_does_by_default(pipe: fastdiff.Pipeline) -> None:
    ours = pipe.upscale(drawn(), PROMPT, **CALL)
    named = pipe.upscale(drawn(), PROMPT, scale=2, method="lanczos", strength=0.3, **CALL)
    assert ours.images[0].size == (64, 64)
    assert np.array_equal(ours.latents, named.latents)


def test_several_pictures(pipe: fastdiff.Pipeline, tiny_checkpoint: Path) -> None:
    images = [drawn(), drawn().transpose(Image.Transpose.FLIP_LEFT_RIGHT)]
    large = [image.resize((48, 48), FILTERS["bicubic"]) for image in images]
    pictures, latents = painted(tiny_checkpoint, large, strength=0.5, num_images_per_prompt=2)
    ours = pipe.upscale(images, PROMPT, scale=1.5, method="bicubic", strength=0.5, num=2, **CALL)
    close(ours, pictures, latents)


def test_latents_of_a_picture_that_is_no_whole_cells(pipe: fastdiff.Pipeline) -> None:
    """The encoder takes whole cells of 4 pixels; the rest of a cell is squeezed in."""
    ours = pipe.upscale(drawn(29, 33), PROMPT, scale=2, method="latent_bilinear", **CALL)
    assert ours.images[0].size == (64, 56)
    whole = pipe.upscale(
        drawn(29, 33).resize((32, 28), Image.Resampling.LANCZOS),
        PROMPT,
        scale=2,
        method="latent_bilinear",
        **CALL,
    )
    assert np.array_equal(ours.latents, whole.latents)


def test_metadata_repeats_the_picture(pipe: fastdiff.Pipeline, tmp_path: Path) -> None:
    path = tmp_path / "small.png"
    drawn(24, 40).save(path)
    for method in ("lanczos", "latent_bicubic"):
        first = pipe.upscale(path, PROMPT, scale=1.5, method=method, strength=0.5, steps=4)
        metadata = first.metadata[0]
        assert (metadata["task"], metadata["inputs"]["image"][0]["of"]) == ("upscale", "file")
        assert "height" not in metadata["settings"], "the scale says it"
        again = getattr(pipe, metadata["task"])(path, **metadata["settings"])
        assert np.array_equal(again.latents, first.latents)
        assert again.metadata == first.metadata


@pytest.mark.parametrize(
    ("side", "scale", "wanted"), [(32, 2, 64), (33, 2, 64), (7, 1.1, 8), (100, 1.28, 128), (1023, 4, 4088)]
)
def test_sides(side: int, scale: float, wanted: int) -> None:
    assert scaled_side(side, scale, 8) == wanted


@pytest.mark.parametrize(
    ("call", "message"),
    [
        ({"scale": 1}, "scale is 1: it must be more than 1"),
        ({"scale": "2"}, "scale is '2'"),
        ({"scale": 1e9}, r"scale is 1e\+09: a side of 32 pixels would be longer than 1048576"),
        ({"method": "latent_lanczos"}, "method is 'latent_lanczos'"),
        ({"strength": 0}, "strength is 0"),
        ({"strength": 0.2, "steps": 4}, "strength 0.2 of 4 steps leaves none to run"),
        ({"strength": 0.2, "steps": 4, "method": "latent_bicubic"}, "leaves none to run"),
        ({"sampler": "rk45"}, "rk45"),
        ({"height": 64}, "height with upscale: the scale says how large"),
        ({"image": []}, "image is an empty list"),
        ({"image": "missing.png"}, "image 'missing.png' cannot be read"),
        ({"image": [drawn(), drawn()]}, "image: 2 for 1 picture, give one for all or one each"),
        ({"image": [drawn(), drawn(40, 32)], "num": 2}, "image 1 is 40 x 32 .*, the first 32 x 32"),
    ],
)
def test_options_that_cannot_be_used(pipe: fastdiff.Pipeline, call: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        pipe.upscale(**{"image": drawn(), "prompt": PROMPT, **call})
    assert "\n" not in str(caught.value)
