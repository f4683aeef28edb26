"""diffusers' pipelines for pictures from pictures, called with our names."""

from __future__ import annotations

import warnings
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from tests.oracle import psnr, scheduler_of

__all__ = ["MIN_PSNR", "PROMPT", "close", "components", "drawn", "hole", "theirs"]

MIN_PSNR = 45.0
PROMPT = "a red circle left of a blue square"


@cache
def components(checkpoint: Path) -> Any:
    """diffusers' parts of a checkpoint, loaded once."""
    import torch
    from diffusers import StableDiffusionPipeline

    torch.set_num_threads(1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return StableDiffusionPipeline.from_pretrained(
            checkpoint, torch_dtype=torch.float32, safety_checker=None, local_files_only=True
        )


def theirs(
    checkpoint: Path,
    pipeline: str,
    prompt: str = PROMPT,
    *,
    sampler: str,
    seed: Any,
    options: dict[str, Any] | None = None,
    **call: Any,
) -> tuple[list[Image.Image], np.ndarray]:
    """Pictures and final latents of a class of diffusers; ``call`` has its own names.

    ``seed`` may be a generator that something else was drawn from.
    """
    import diffusers
    import torch

    base = components(checkpoint)
    name, config = scheduler_of(sampler)
    last: dict[str, Any] = {}

    def keep(pipe: object, step: int, timestep: object, tensors: dict[str, Any]) -> dict[str, Any]:
        last.update(tensors)
        return {}

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        scheduler = getattr(diffusers, name).from_config(
            base.scheduler.config, **{**config, **(options or {})}
        )
        pipe = getattr(diffusers, pipeline)(**base.components, requires_safety_checker=False)
        pipe.scheduler = scheduler  # set afterwards, as its constructor would change DDIM's clip_sample
        pipe.set_progress_bar_config(disable=True)
        images = pipe(
            prompt,
            generator=torch.Generator().manual_seed(seed) if isinstance(seed, int) else seed,
            callback_on_step_end=keep,
            **call,
        ).images
    return images, last["latents"].numpy()


def close(ours: Any, pictures: list[Image.Image], latents: np.ndarray, error: float = 3e-3) -> None:
    """Both pictures and both latents, and that the pictures show something."""
    assert ours.latents.shape == latents.shape
    assert np.linalg.norm(ours.latents - latents) <= error * np.linalg.norm(latents)
    assert len(ours.images) == len(pictures)
    for our, their in zip(ours.images, pictures, strict=True):
        pixels = np.asarray(their)
        assert pixels.std() > 4, "a flat picture compares nothing"
        assert ((pixels > 0) & (pixels < 255)).mean() > 0.5, "a saturated picture compares little"
        assert our.size == their.size
        assert psnr(our, their) >= MIN_PSNR


def drawn(height: int = 32, width: int = 32) -> Image.Image:
    """A disc, a bar and a gradient."""
    y, x = np.mgrid[0:height, 0:width]
    pixels = np.stack([255 * x / width, 255 * y / height, np.full(x.shape, 90.0)], axis=-1).astype(np.uint8)
    image = Image.fromarray(pixels)
    draw = ImageDraw.Draw(image)
    draw.ellipse((4, 4, 18, 18), fill=(200, 30, 40))
    draw.rectangle((width - 10, 6, width - 6, height - 4), fill=(20, 40, 220))
    return image


def hole(height: int = 32, width: int = 32) -> Image.Image:
    """A mask whose white part is about a third, off the grid of the latents."""
    mask = Image.new("L", (width, height))
    ImageDraw.Draw(mask).ellipse((7, 9, width - 4, height - 6), fill=255)
    return mask
