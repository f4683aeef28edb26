"""Stable Diffusion XL: base, Turbo, Lightning, inpainting, latent consistency models, and the refiner.

Two text encoders, whose last but one hidden states stand side by side. The second one's embedding of the
whole prompt and numbers on the picture's size come in beside the timestep. The refiner has the second alone.
"""

from __future__ import annotations

from fastdiff.build.families.family import Family, Source
from fastdiff.build.families.shared import (
    channels_beside,
    check_conditions,
    conditions,
    sizes,
    text_encoder,
    time_ids,
    vae_factor,
    vae_scaling,
    vae_statistics,
)
from fastdiff.config import ModelSpec

__all__ = ["FAMILY", "describe"]


def describe(source: Source) -> ModelSpec:
    """The ModelSpec. Raises CheckpointError."""
    unet, vae = source.configs["unet"], source.configs["vae"]
    factor, channels = vae_factor(vae), int(vae["latent_channels"])
    encoders = tuple(
        text_encoder(source, part, penultimate=True)
        for part in ("text_encoder", "text_encoder_2")
        if part in source.configs
    )
    hidden = sum(encoder.hidden_size for encoder in encoders)
    pooled = encoders[-1].pooled_size
    check_conditions(source, hidden, "text_time")
    inpaints = (0, 1 + channels) if "Inpaint" in source.pipeline else (0,)
    return ModelSpec(
        family=FAMILY.name,
        latent_channels=channels,
        vae_scale_factor=factor,
        **vae_scaling(source),
        **vae_statistics(source),
        **sizes(unet, factor),
        max_tokens=min(encoder.window for encoder in encoders),
        hidden_size=hidden,
        pooled_size=pooled,
        time_ids=time_ids(source, pooled),
        condition_channels=channels_beside(source, channels, inpaints),
        text_encoders=encoders,
        **conditions(unet),
    )


FAMILY = Family(
    name="stable_diffusion_xl",
    pipelines=(
        "StableDiffusionXLPipeline",
        "StableDiffusionXLImg2ImgPipeline",
        "StableDiffusionXLInpaintPipeline",
    ),
    parts={
        "text_encoder": ("CLIPTextModel",),
        "text_encoder_2": ("CLIPTextModelWithProjection",),
        "unet": ("UNet2DConditionModel",),
        "vae": ("AutoencoderKL", "AutoencoderTiny"),
    },
    optional=("text_encoder",),
    describe=describe,
)
