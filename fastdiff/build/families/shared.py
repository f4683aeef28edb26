"""What several families read from their configs in the same way."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from fastdiff.build.families.family import Source
from fastdiff.config import TextEncoderSpec
from fastdiff.errors import CheckpointError

__all__ = [
    "channels_beside",
    "check_conditions",
    "conditions",
    "sizes",
    "text_encoder",
    "text_window",
    "time_ids",
    "vae_factor",
    "vae_scaling",
    "vae_statistics",
]

TOKENIZERS = {"text_encoder": "tokenizer", "text_encoder_2": "tokenizer_2"}
"""The folder of each text encoder's tokenizer."""


def vae_factor(config: Mapping[str, Any]) -> int:
    """Picture pixels of a latent pixel, in each direction."""
    blocks = config.get("block_out_channels") or config["encoder_block_out_channels"]
    return int(2 ** (len(blocks) - 1))


def vae_scaling(source: Source) -> dict[str, Any]:
    """What the ModelSpec says of the latents' scale, and of what the encoder gives."""
    config, kind = source.configs["vae"], source.classes["vae"]
    scaling = config.get("scaling_factor")
    usual = 1.0 if kind == "AutoencoderTiny" else 0.18215
    factor, shift = usual if scaling is None else float(scaling), float(config.get("shift_factor") or 0.0)
    if not (math.isfinite(factor) and factor > 0 and math.isfinite(shift)):
        raise CheckpointError(
            f"{source.path}: the VAE has scaling_factor {factor:g} and shift_factor {shift:g}, wanted a"
            " number above 0 and a finite one: correct vae/config.json"
        )
    described: dict[str, Any] = {
        "scaling_factor": factor,
        "shift_factor": shift,
        "latent_variance": kind == "AutoencoderKL",
        "picture_channels": int(config.get("out_channels", 3)),
    }
    if kind == "VQModel":
        described["latent_codes"] = int(config["num_vq_embeddings"])
    return described


def vae_statistics(source: Source) -> dict[str, Any]:
    """``latents_mean`` and ``latents_std`` of a VAE that has both. Raises CheckpointError."""
    config = source.configs["vae"]
    names = ("latents_mean", "latents_std")
    values = [config.get(name) for name in names]
    if any(value is None for value in values):
        return {}
    found = {name: tuple(float(each) for each in config[name]) for name in names}
    for name, each in found.items():
        if len(each) != int(config["latent_channels"]):
            raise CheckpointError(
                f"{source.path}: {name} of the VAE has {len(each)} numbers, its latents"
                f" {config['latent_channels']} channels: download the checkpoint again"
            )
    return found


def sizes(unet: Mapping[str, Any], factor: int, multiple: int | None = None) -> dict[str, Any]:
    """Default sizes and their multiple, in picture pixels, of a U-Net on latents of ``factor`` pixels.

    ``multiple`` None is what the U-Net halves on its way down without a remainder.
    """
    if multiple is None:
        multiple = factor * 2 ** (len(unet["block_out_channels"]) - 1)
    size = unet.get("sample_size") or 64
    height, width = (size, size) if isinstance(size, int) else (int(size[0]), int(size[1]))
    return {
        "default_height": max(multiple, height * factor // multiple * multiple),
        "default_width": max(multiple, width * factor // multiple * multiple),
        "default_batch": 1,
        "size_multiple": multiple,
    }


def text_window(source: Source, part: str) -> int:
    """Tokens per prompt: the tokenizer's limit, and at most what the text encoder has positions for."""
    positions = int(source.configs[part]["max_position_embeddings"])
    limit = source.windows.get(TOKENIZERS[part], 0)
    return min(positions, limit) if limit > 2 else positions


def text_encoder(source: Source, part: str, *, penultimate: bool = False) -> TextEncoderSpec:
    """The spec of a text encoder; ``pooled_size`` is 0 for one without a projection."""
    config = source.configs[part]
    projected = source.classes[part] == "CLIPTextModelWithProjection"
    return TextEncoderSpec(
        module=part,
        tokenizer=TOKENIZERS[part],
        window=text_window(source, part),
        hidden_size=int(config["hidden_size"]),
        pooled_size=int(config["projection_dim"]) if projected else 0,
        layers=int(config["num_hidden_layers"]) + (0 if penultimate else 1),
        penultimate=penultimate,
        vocabulary=int(config["vocab_size"]),
    )


def time_ids(source: Source, pooled: int) -> int:
    """How many numbers on a picture's size SDXL's U-Net takes beside ``pooled`` numbers on the prompt."""
    unet = source.configs["unet"]
    total, each = int(unet["projection_class_embeddings_input_dim"]), int(unet["addition_time_embed_dim"])
    if total <= pooled or (total - pooled) % each:
        raise CheckpointError(
            f"{source.path}: projection_class_embeddings_input_dim of the U-Net is {total}, which is not"
            f" {pooled} of the pooled prompt and a multiple of {each}: the text encoders are of another model"
        )
    return (total - pooled) // each


def conditions(unet: Mapping[str, Any]) -> dict[str, Any]:
    """Width of the guidance's embedding and number of classes of a U-Net; 0 each without."""
    return {
        "guidance_embedding": int(unet.get("time_cond_proj_dim") or 0),
        "num_classes": int(unet.get("num_class_embeds") or 0),
    }


def channels_beside(source: Source, channels: int, allowed: tuple[int, ...] = (0,)) -> int:
    """Channels that the U-Net takes beside ``channels`` of the latents. Raises CheckpointError."""
    unet = source.configs["unet"]
    beside = int(unet["in_channels"]) - channels
    if int(unet["out_channels"]) != channels or beside not in allowed:
        wanted = " or ".join(str(channels + more) for more in allowed)
        raise CheckpointError(
            f"{source.path}: the U-Net takes {unet['in_channels']} and gives {unet['out_channels']} channels,"
            f" the latents have {channels}: those of {source.pipeline} take {wanted} and give {channels}"
        )
    return beside


def check_conditions(source: Source, hidden_size: int, added: str | None = None) -> None:
    """Raises CheckpointError where the U-Net does not attend to vectors of ``hidden_size``, or is conditioned
    on something else beside than ``added``.
    """
    unet = source.configs["unet"]
    if (found := unet.get("addition_embed_type")) != added:
        raise CheckpointError(
            f"{source.path}: unet/config.json sets addition_embed_type to {found!r}: {source.pipeline} has"
            f" {added!r} there"
        )
    if unet["cross_attention_dim"] != hidden_size:
        raise CheckpointError(
            f"{source.path}: cross_attention_dim of the U-Net is {unet['cross_attention_dim']}, hidden_size"
            f" of the text encoder is {hidden_size}: they must be equal"
        )
