"""Build options for approximate accelerations: what they add to a model and to the modules of an engine."""

from __future__ import annotations

import dataclasses

from fastdiff.build.checkpoint import Checkpoint
from fastdiff.build.modules.approximate import SHALLOW
from fastdiff.build.modules.deep_cache import deep_features
from fastdiff.build.modules.token_merging import check_token_merging
from fastdiff.config import ModelSpec

__all__ = ["with_deep_cache", "with_token_merging"]


def with_deep_cache(
    checkpoint: Checkpoint, model: ModelSpec, modules: tuple[str, ...], branch: int
) -> tuple[ModelSpec, tuple[str, ...]]:
    """The model with the features of a branch, and its modules with the shallow part after the U-Net.

    Raises InputError for a branch that the U-Net does not have.
    """
    channels = deep_features(checkpoint.configs["unet"], branch)
    position = modules.index("unet") + 1 if "unet" in modules else len(modules)
    return (
        dataclasses.replace(model, deep_features=channels, deep_cache_branch=branch),
        (*modules[:position], SHALLOW, *modules[position:]),
    )


def with_token_merging(checkpoint: Checkpoint, model: ModelSpec, ratio: float) -> ModelSpec:
    """The model with a share of the tokens merged before the finest self-attentions. Raises InputError."""
    return dataclasses.replace(model, token_merging=check_token_merging(checkpoint.configs["unet"], ratio))
