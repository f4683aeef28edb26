"""Stable Diffusion's upscaler by 4: a U-Net that takes the small picture, and how noisy that was made.

The noise level is a class label, and the picture's channels are the input ``condition``. The VAE has a factor
of 4, so that latents are as large as the small picture.
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

_PICTURE = 3
"""Channels of the small picture."""


def describe(source: Source) -> ModelSpec:
    """The ModelSpec. Raises CheckpointError."""
    unet, vae, text = (source.configs[part] for part in ("unet", "vae", "text_encoder"))
    factor, channels = vae_factor(vae), int(vae["latent_channels"])
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
        condition_channels=channels_beside(source, channels, (_PICTURE,)),
        **conditions(unet),
    )


FAMILY = Family(
    name="upscale",
    pipelines=("StableDiffusionUpscalePipeline",),
    parts={
        "text_encoder": ("CLIPTextModel",),
        "unet": ("UNet2DConditionModel",),
        "vae": ("AutoencoderKL",),
    },
    describe=describe,
)
