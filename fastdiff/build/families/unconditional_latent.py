"""Latent diffusion without a prompt: a U-Net on the latents of a VQ-VAE, such as CompVis's of faces."""

from __future__ import annotations

from fastdiff.build.families.family import Family, Source
from fastdiff.build.families.shared import channels_beside, conditions, sizes, vae_factor, vae_scaling
from fastdiff.config import ModelSpec

__all__ = ["FAMILY", "describe"]


def describe(source: Source) -> ModelSpec:
    """The ModelSpec. Raises CheckpointError."""
    unet, vae = source.configs["unet"], source.configs["vae"]
    factor = vae_factor(vae)
    channels = int(vae.get("vq_embed_dim") or vae["latent_channels"])
    channels_beside(source, channels)
    return ModelSpec(
        family=FAMILY.name,
        latent_channels=channels,
        vae_scale_factor=factor,
        **vae_scaling(source),
        **sizes(unet, factor),
        max_tokens=0,
        hidden_size=0,
        **conditions(unet),
    )


FAMILY = Family(
    name="unconditional_latent",
    pipelines=("LDMPipeline",),
    parts={"unet": ("UNet2DModel",), "vae": ("VQModel",)},
    describe=describe,
    folders={"vae": "vqvae"},
)
