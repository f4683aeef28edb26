"""Pictures whose sides are multiples of 8 alone, against diffusers: the U-Net rounds up on its way down."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import fastdiff
from fastdiff import InputError
from tests.builds import build_mixed
from tests.checkpoints import make_checkpoint
from tests.tasks.oracle import compare, drawn, hole

# 4 pixels a latent: 10 x 14 latents, then 5 x 7, which become 3 x 4; then one side alone; then both
SIDES = [(40, 56), (48, 40), (56, 72)]
THREE_LEVELS = {
    "block_out_channels": (16, 32, 32),
    "down_block_types": ("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("sides") / "three", unet=THREE_LEVELS)


@pytest.fixture(scope="module")
def pipe(checkpoint: Path) -> Any:
    engine = build_mixed(checkpoint, checkpoint.with_suffix(".fd"), {"unet": "native"})
    return fastdiff.load(engine, threads=1)


@pytest.mark.parametrize(("height", "width"), SIDES)
def test_text_to_image(pipe: fastdiff.Pipeline, checkpoint: Path, height: int, width: int) -> None:
    compare(pipe, checkpoint, "StableDiffusionPipeline", height=height, width=width, num=2)


@pytest.mark.parametrize(("height", "width"), SIDES)
def test_image_to_image(pipe: fastdiff.Pipeline, checkpoint: Path, height: int, width: int) -> None:
    image = drawn(height, width)
    compare(pipe.img2img, checkpoint, "StableDiffusionImg2ImgPipeline", image=image, strength=0.7)


@pytest.mark.parametrize(("height", "width"), SIDES)
def test_inpaint(pipe: fastdiff.Pipeline, checkpoint: Path, height: int, width: int) -> None:
    pictures = {"image": drawn(height, width), "mask": hole(height, width)}
    only_theirs = {"height": height, "width": width}
    pipeline = "StableDiffusionInpaintPipeline"
    compare(pipe.inpaint, checkpoint, pipeline, **pictures, strength=0.8, only_theirs=only_theirs)


def test_fit_and_upscale_go_by_the_shorter_multiple(pipe: fastdiff.Pipeline) -> None:
    options: dict[str, Any] = {"prompt": "a red circle", "steps": 2, "seed": 1}
    (image,) = pipe.img2img(drawn(45, 61), fit="crop", **options).images
    assert image.size == (60, 44)
    (image,) = pipe.upscale(drawn(32, 36), scale=1.5, strength=0.9, **options).images
    assert image.size == (52, 48)


def test_sides_that_it_does_not_take(pipe: fastdiff.Pipeline) -> None:
    with pytest.raises(InputError, match="height is 42: it must be a multiple of 4; use 40 or 44"):
        pipe("a red circle", height=42)
    with pytest.raises(InputError, match="width is 28: unet of this engine takes 32 or more; use 32"):
        pipe("a red circle", width=28)
