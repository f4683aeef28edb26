"""The modules of what controls a U-Net, by name, and the inputs that they give it."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn

from fastdiff.build.modules.controlnet import (
    controlnet_embedding_spec,
    controlnet_spec,
    features,
    wrap_controlnet,
    wrap_controlnet_embedding,
)
from fastdiff.build.modules.ip_adapter import (
    image_encoder_spec,
    ip_adapter_spec,
    wrap_image_encoder,
    wrap_ip_adapter,
)
from fastdiff.build.modules.spec import ModuleSpec
from fastdiff.build.modules.t2i_adapter import t2i_adapter_spec, wrap_t2i_adapter
from fastdiff.config import ModelSpec, SizeRange, TensorSpec

__all__ = ["control_arguments", "control_inputs", "control_kind", "control_shapes"]

_KINDS: dict[str, tuple[Callable[[str, ModelSpec], ModuleSpec], Callable[..., nn.Module]]] = {
    "controlnet": (controlnet_spec, wrap_controlnet),
    "controlnet_embedding": (controlnet_embedding_spec, wrap_controlnet_embedding),
    "t2i_adapter": (t2i_adapter_spec, wrap_t2i_adapter),
    "image_encoder": (image_encoder_spec, wrap_image_encoder),
    "ip_adapter": (ip_adapter_spec, wrap_ip_adapter),
}
_NUMBER = re.compile(r"_[0-9]+(?=$|_embedding$)")


def control_kind(
    name: str,
) -> tuple[Callable[[str, ModelSpec], ModuleSpec], Callable[..., nn.Module]] | None:
    """Spec and wrapper of a module such as ``controlnet_2``; None for a module of another sort."""
    return _KINDS.get(_NUMBER.sub("", name))


def control_inputs(model: ModelSpec) -> tuple[TensorSpec, ...]:
    """The inputs of a model's U-Net that control it: residuals, features, a picture's tokens and scale."""
    control = model.control
    inputs = features(control.residual_names(), control.residuals)
    inputs += features(control.feature_names(), control.features)
    if control.ip_adapter is not None:
        inputs += (
            TensorSpec("image_embeds", "float32", ("batch", "image_tokens", model.hidden_size)),
            TensorSpec("image_scale", "float32", ("batch",)),
        )
    return inputs


def control_shapes(model: ModelSpec) -> dict[str, SizeRange]:
    """The ranges of symbols that these inputs bring: several pictures have several times the tokens."""
    adapter = model.control.ip_adapter
    return {} if adapter is None else {"image_tokens": SizeRange(adapter.tokens, None, adapter.tokens)}


def control_arguments(unet: Any, given: Mapping[str, Tensor]) -> dict[str, Any]:
    """Arguments of ``UNet2DConditionModel.forward`` for those inputs that are there."""
    down = [given[name] for name in given if name.startswith("down_residual_")]
    steps = [given[name] for name in given if name.startswith("adapter_feature_")]
    arguments: dict[str, Any] = {}
    if down:
        arguments["down_block_additional_residuals"] = down
        arguments["mid_block_additional_residual"] = given["mid_residual"]
    if steps:
        arguments["down_intrablock_additional_residuals"] = steps
    if "image_embeds" in given:
        unet.image_attention.attend(given["image_embeds"], given["image_scale"])
    return arguments
