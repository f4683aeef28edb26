"""diffusers' pipelines for pictures from pictures, called with our names."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from tests.oracle import psnr, scheduler_of

__all__ = ["MIN_PSNR", "PROMPT", "close", "compare", "components", "drawn", "hole", "theirs"]

MIN_PSNR = 45.0
PROMPT = "a red circle left of a blue square"
_FLAGS = ("requires_aesthetics_score", "force_zeros_for_empty_prompt")
_THEIRS = {
    "steps": "num_inference_steps",
    "guidance": "guidance_scale",
    "num": "num_images_per_prompt",
    "negative": "negative_prompt",
    "negative_2": "negative_prompt_2",
    "mask": "mask_image",
    "sampler_options": "options",
}
"""Arguments whose names differ."""


@cache
def components(checkpoint: Path) -> Any:
    """diffusers' pipeline of a checkpoint, whose parts all others share."""
    import torch
    from diffusers import DiffusionPipeline

    torch.set_num_threads(1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pipe: Any = DiffusionPipeline.from_pretrained(
            checkpoint, torch_dtype=torch.float32, local_files_only=True
        )
    if text := getattr(pipe, "text_encoder", None):
        # the clip-skip of diffusers looks for a name that transformers has dropped
        text.__dict__.setdefault("text_model", text)
    return pipe


def theirs(
    checkpoint: Path,
    pipeline: str,
    prompt: str | list[str] = PROMPT,
    *,
    sampler: str,
    seed: Any,
    options: dict[str, Any] | None = None,
    parts: dict[str, Any] | None = None,
    ip_adapter: Path | None = None,
    **call: Any,
) -> tuple[list[Image.Image], np.ndarray]:
    """Pictures and final latents of a class of diffusers, with further ``parts``; ``call`` has its names.

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
        made = getattr(diffusers, pipeline)
        known = inspect.signature(made.__init__).parameters
        shared = {
            **dict.fromkeys(("safety_checker", "feature_extractor")),
            **base.components,
            **(parts or {}),
        }
        shared |= {flag: base.config[flag] for flag in _FLAGS if flag in base.config}
        shared |= {"requires_safety_checker": False, "add_watermarker": False}
        pipe = made(**{part: value for part, value in shared.items() if part in known})
        pipe.scheduler = scheduler  # set afterwards, as its constructor would change DDIM's clip_sample
        pipe.set_progress_bar_config(disable=True)
        if ip_adapter is not None:
            folder, file = str(ip_adapter.parent), ip_adapter.name
            pipe.load_ip_adapter(folder, subfolder="", weight_name=file, local_files_only=True)
        try:
            drawn_from = torch.Generator().manual_seed(seed) if isinstance(seed, int) else seed
            images = pipe(prompt, generator=drawn_from, callback_on_step_end=keep, **call).images
        finally:
            if ip_adapter is not None:
                pipe.unload_ip_adapter()
    return images, last["latents"].numpy()


def compare(
    task: Callable[..., Any],
    checkpoint: Path,
    pipeline: str,
    *,
    prompt: str | list[str] = PROMPT,
    only_theirs: Mapping[str, Any] | None = None,
    only_ours: Mapping[str, Any] | None = None,
    **call: Any,
) -> Any:
    """A task of ours against a class of diffusers, ``call`` having our names; returns our result."""
    call = {"steps": 8, "guidance": 3.0, "seed": 5, "sampler": "euler", **call}
    named = {_THEIRS.get(name, name): value for name, value in call.items()}
    pictures, latents = theirs(checkpoint, pipeline, prompt, **{**named, **(only_theirs or {})})
    found = task(prompt=prompt, **{**call, **(only_ours or {})})
    close(found, pictures, latents)
    return found


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
