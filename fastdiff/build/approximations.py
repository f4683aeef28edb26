"""Build options for approximate accelerations: what they add to a model and to the modules of an engine."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

from fastdiff.build.checkpoint import Checkpoint
from fastdiff.build.modules.approximate import SHALLOW
from fastdiff.build.modules.deep_cache import ADAPTER, deep_features
from fastdiff.build.modules.tiny_autoencoder import PREVIEW, PREVIEW_PART
from fastdiff.build.modules.token_merging import check_token_merging
from fastdiff.build.modules.unet import unet_spec
from fastdiff.build.weights import weight_files
from fastdiff.config import ModelSpec
from fastdiff.errors import CheckpointError, InputError

__all__ = ["with_deep_cache", "with_preview_vae", "with_token_merging"]


def with_deep_cache(
    checkpoint: Checkpoint, model: ModelSpec, modules: tuple[str, ...], branch: int
) -> tuple[ModelSpec, tuple[str, ...]]:
    """The model with the features of a branch, and its modules with the shallow part after the U-Net.

    Raises InputError for a branch that the U-Net does not have.
    """
    unet = checkpoint.configs["unet"]
    channels = deep_features(unet, branch)
    layers = unet["layers_per_block"]
    adapted = any(tensor.name.startswith(ADAPTER) for tensor in unet_spec("unet", model).inputs)
    if adapted and branch == (layers if isinstance(layers, int) else layers[0]):
        raise InputError(
            f"deep_cache is {branch} with a T2I-Adapter, which adds to the last layer that it computes: "
            f"use {branch - 1} or less"
        )
    position = modules.index("unet") + 1 if "unet" in modules else len(modules)
    return (
        dataclasses.replace(model, deep_features=channels, deep_cache_branch=branch),
        (*modules[:position], SHALLOW, *modules[position:]),
    )


def with_token_merging(checkpoint: Checkpoint, model: ModelSpec, ratio: float) -> ModelSpec:
    """The model with a share of the tokens merged before the finest self-attentions. Raises InputError."""
    percent = check_token_merging(checkpoint.configs.get("unet", {}), ratio)
    return dataclasses.replace(model, token_merging=percent)


def with_preview_vae(
    checkpoint: Checkpoint, modules: tuple[str, ...], folder: str | Path | bool
) -> tuple[Checkpoint, tuple[str, ...]]:
    """The checkpoint with the tiny autoencoder of a folder, True being its own, and the modules with it.

    Raises InputError and CheckpointError for a folder without an ``AutoencoderTiny`` that fits the latents.
    """
    path = checkpoint.path / PREVIEW_PART if folder is True else Path(str(folder))
    if folder is True and not path.is_dir():
        raise InputError(
            f"preview_vae: {checkpoint.name} has no folder {PREVIEW_PART}: give that of an AutoencoderTiny"
        )
    config = _tiny_config(path)
    channels, levels = config["latent_channels"], len(config["decoder_block_out_channels"])
    factor = int(config.get("upsampling_scaling_factor", 2)) ** (levels - 1)
    model = checkpoint.spec
    for what, found, wanted in (
        ("latent channels", channels, model.latent_channels),
        ("pixels for a latent", factor, model.vae_scale_factor),
        ("picture channels", config.get("out_channels", 3), model.picture_channels),
    ):
        if found != wanted:
            raise CheckpointError(
                f"{path} has {found} {what}, {checkpoint.name} has {wanted}: they must be equal"
            )
    weight_files(path, PREVIEW_PART)
    return dataclasses.replace(
        checkpoint, folders={**checkpoint.folders, PREVIEW_PART: str(path.absolute())}
    ), (*modules, PREVIEW)


def _tiny_config(folder: Path) -> dict[str, Any]:
    file = folder / "config.json"
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except OSError:
        raise CheckpointError(f"{file} is missing: give the folder of an AutoencoderTiny") from None
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{file} is not readable JSON: download it again") from error
    named = config.get("_class_name") if isinstance(config, dict) else None
    if named != "AutoencoderTiny":
        raise CheckpointError(f"{folder} holds a {named}: give the folder of an AutoencoderTiny")
    if missing := [key for key in ("latent_channels", "decoder_block_out_channels") if key not in config]:
        raise CheckpointError(f"{file} lacks {missing[0]}: download it again")
    return dict(config)
