"""Reading ControlNets: their configs against that of the U-Net."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fastdiff.build.control.config import read_config, refuse
from fastdiff.build.control.single_file import config_like, is_single_file
from fastdiff.config import ModelSpec
from fastdiff.control.spec import ControlNetSpec, FeatureSpec
from fastdiff.errors import CheckpointError

__all__ = ["read_controlnet", "residuals_of"]

_UNSUPPORTED = ("class_embed_type", "encoder_hid_dim", "encoder_hid_dim_type", "num_class_embeds")


def residuals_of(config: dict[str, Any]) -> tuple[FeatureSpec, ...]:
    """What passes from the way down to the way up of a U-Net, and its middle. Raises CheckpointError."""
    try:
        channels = [int(count) for count in config["block_out_channels"]]
        given = config.get("layers_per_block", 2)
        layers = [given] * len(channels) if isinstance(given, int) else [int(count) for count in given]
        found = [FeatureSpec(channels[0], 1)]
        for level, (width, count) in enumerate(zip(channels, layers, strict=True)):
            found += [FeatureSpec(width, 2**level)] * count
            if level + 1 < len(channels):
                found.append(FeatureSpec(width, 2 ** (level + 1)))
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise CheckpointError(f"block_out_channels or layers_per_block cannot be used ({error})") from error
    return (*found, FeatureSpec(channels[-1], 2 ** (len(channels) - 1)))


def read_controlnet(folder: Path, model: ModelSpec, unet: dict[str, Any]) -> ControlNetSpec:
    """The ControlNet of a folder or file, whose sizes are those of the U-Net. Raises CheckpointError."""
    if is_single_file(folder):
        config = config_like(unet, model.latent_channels)
    else:
        config = read_config(folder, "ControlNetModel", "a ControlNet")
    for key in _UNSUPPORTED:
        if config.get(key) is not None:
            raise CheckpointError(f"{folder}: {key} is {config[key]!r}: such ControlNets cannot be built")
    channels = config.get("in_channels", 4)
    if channels != model.latent_channels:
        raise refuse(folder, "in_channels", channels, model.latent_channels)
    for key, default in (
        ("block_out_channels", [320, 640, 1280, 1280]),
        ("layers_per_block", 2),
        ("cross_attention_dim", 1280),
        ("addition_embed_type", None),
        ("projection_class_embeddings_input_dim", None),
    ):
        found, wanted = config.get(key, default), unet.get(key, default)
        if found != wanted:
            raise refuse(folder, key, found, wanted)
    if residuals_of(config) != residuals_of(unet):
        raise refuse(folder, "the number of residuals", residuals_of(config), residuals_of(unet))
    embedding = config.get("conditioning_embedding_out_channels") or (16, 32, 96, 256)
    factor = 2 ** (len(embedding) - 1)
    if factor != model.vae_scale_factor:
        raise CheckpointError(
            f"{folder}: it makes a picture {factor} times smaller, the VAE {model.vae_scale_factor} times:"
            " give a ControlNet that was trained for this kind of checkpoint"
        )
    order = config.get("controlnet_conditioning_channel_order", "rgb")
    if order not in ("rgb", "bgr"):
        raise CheckpointError(f"{folder}: controlnet_conditioning_channel_order is {order!r}: rgb or bgr")
    return ControlNetSpec(
        source=folder.resolve().name,
        image_channels=int(config.get("conditioning_channels", 3)),
        channels=int(config["block_out_channels"][0]),
        pooled=bool(config.get("global_pool_conditions", False)),
    )
