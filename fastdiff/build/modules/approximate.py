"""What a build option changes in a U-Net's modules: DeepCache's features, merged tokens.

The options are in the ModelSpec of an engine, so that its modules can be made again to verify them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from torch import nn

from fastdiff.build.modules.deep_cache import ADAPTER, FEATURES, shallow_unet, with_deep_features
from fastdiff.build.modules.spec import ModuleSpec
from fastdiff.build.modules.token_merging import with_merged_tokens
from fastdiff.build.modules.unet import unet_spec
from fastdiff.config import ModelSpec, TensorSpec

__all__ = ["SHALLOW", "approximate_unet", "approximate_unet_spec", "shallow_unet_spec"]

SHALLOW = "unet_shallow"
"""The module of DeepCache's shallow evaluations, made from the same part as the U-Net."""

_CONTROL = ("down_residual_", "mid_residual", ADAPTER)


def approximate_unet(name: str, wrapper: nn.Module, options: Mapping[str, Any]) -> nn.Module:
    """The module of a U-Net, or of its shallow part, as the options of its spec change it."""
    if percent := options.get("token_merging"):
        wrapper = with_merged_tokens(wrapper, percent)
    branch = options.get("deep_cache_branch")
    if branch is None:
        return wrapper
    return shallow_unet(wrapper, branch) if name == SHALLOW else with_deep_features(wrapper, branch)


def approximate_unet_spec(name: str, model: ModelSpec) -> ModuleSpec:
    """The spec of a model's U-Net, with its deep features where the model has them."""
    spec = unet_spec(name, model)
    outputs = (*spec.outputs, _features(model)) if model.deep_features else spec.outputs
    return dataclasses.replace(spec, outputs=outputs, options=_options(model))


def shallow_unet_spec(name: str, model: ModelSpec) -> ModuleSpec:
    """The spec of the shallow part: the U-Net's inputs and the features of a full evaluation.

    What a T2I-Adapter adds behind a level does not reach it, and it is not there for calls with a ControlNet.
    """
    spec = unet_spec(name, model)
    inputs = [tensor for tensor in spec.inputs if not tensor.name.startswith(_CONTROL)]
    return dataclasses.replace(spec, inputs=(*inputs, _features(model)), options=_options(model))


def _features(model: ModelSpec) -> TensorSpec:
    return TensorSpec(FEATURES, "float32", ("batch", model.deep_features, "height", "width"))


def _options(model: ModelSpec) -> dict[str, Any]:
    options: dict[str, Any] = {"any_sides": True} if model.shortest_side else {}
    if model.token_merging:
        options["token_merging"] = model.token_merging
    return {**options, **({"deep_cache_branch": model.deep_cache_branch} if model.deep_features else {})}
