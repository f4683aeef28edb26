"""Stable Diffusion 1.x and 2.x, SD-Turbo and what is tuned from them, inpainting models among them.

SD 2.x differs in options that the library's classes read themselves: linear projections, head counts per
block, attention in float32, OpenCLIP's text encoder in the form of a ``CLIPTextModel``, v-prediction.
"""

from __future__ import annotations

from fastdiff.build.families.family import Family, Source
from fastdiff.build.families.shared import (
    channels_beside,
    check_conditions,
    conditions,
    sizes,
    text_window,
    vae_factor,
    vae_scaling,
)
from fastdiff.config import ModelSpec

__all__ = ["FAMILY", "describe"]


def describe(source: Source) -> ModelSpec:
    """The ModelSpec. Raises CheckpointError."""
    unet, vae, text = (source.configs[part] for part in ("unet", "vae", "text_encoder"))
    factor, channels = vae_factor(vae), int(vae["latent_channels"])
    inpaints = (0, 1 + channels) if "Inpaint" in source.pipeline else (0,)
    hidden = int(text["hidden_size"])
    check_conditions(source, hidden)
    return ModelSpec(
        family=FAMILY.name,
        latent_channels=channels,
        vae_scale_factor=factor,
        **vae_scaling(source),
        **sizes(unet, factor),
        max_tokens=text_window(source, "text_encoder"),
        hidden_size=hidden,
        condition_channels=channels_beside(source, channels, inpaints),
        **conditions(unet),
    )


FAMILY = Family(
    name="stable_diffusion",
    pipelines=(
        "StableDiffusionPipeline",
        "StableDiffusionImg2ImgPipeline",
        "StableDiffusionInpaintPipeline",
        "LatentConsistencyModelPipeline",
        "LatentConsistencyModelImg2ImgPipeline",
    ),
    parts={
        "text_encoder": ("CLIPTextModel",),
        "unet": ("UNet2DConditionModel",),
        "vae": ("AutoencoderKL", "AutoencoderTiny"),
    },
    describe=describe,
)
