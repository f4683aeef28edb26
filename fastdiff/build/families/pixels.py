"""Models on pixels without a prompt: DDPM, DDIM, ADM's blocks, consistency models; also with class labels."""

from __future__ import annotations

from fastdiff.build.families.family import Family, Source
from fastdiff.build.families.shared import channels_beside, conditions, sizes
from fastdiff.config import ModelSpec

__all__ = ["FAMILY", "describe"]


def describe(source: Source) -> ModelSpec:
    """The ModelSpec. Raises CheckpointError."""
    unet = source.configs["unet"]
    channels = int(unet["in_channels"])
    channels_beside(source, channels)
    return ModelSpec(
        family=FAMILY.name,
        latent_channels=channels,
        vae_scale_factor=1,
        scaling_factor=1.0,
        shift_factor=0.0,
        **sizes(unet, 1),
        max_tokens=0,
        hidden_size=0,
        picture_channels=channels,
        **conditions(unet),
    )


FAMILY = Family(
    name="pixels",
    pipelines=("DDPMPipeline", "DDIMPipeline", "ConsistencyModelPipeline"),
    parts={"unet": ("UNet2DModel",)},
    describe=describe,
)
