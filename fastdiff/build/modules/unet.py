"""The module of a U-Net: one input for each thing that it is conditioned on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fastdiff.build.modules.control import control_arguments, control_inputs, control_shapes
from fastdiff.build.modules.named import Named, with_inputs
from fastdiff.build.modules.spec import ModuleSpec, block_sizes, latent
from fastdiff.config import ModelSpec, SizeRange, TensorSpec

__all__ = ["unet_spec", "wrap_unet"]

_ADDED = ("text_embeds", "time_ids")
"""Inputs that the library takes in a dict."""
_NAMED = ("encoder_hidden_states", "timestep_cond", "class_labels")
"""Inputs that it takes by the names that they have here."""


class _UNet(Named):
    """A U-Net of diffusers with some of its inputs: ``names``, in their order.

    ``condition`` is put behind ``sample`` as further channels, so that whoever calls it has samples of the
    latents' channels alone.
    """

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model
        if "image_embeds" in self.names:
            self.image_attention = model.image_attention

    def compute(self, given: dict[str, Tensor]) -> Any:
        """The output for the inputs by name."""
        sample, timestep = given.pop("sample"), given.pop("timestep")
        if "condition" in given:
            sample = torch.cat([sample, given.pop("condition")], dim=1)
        named: dict[str, Any] = {name: given.pop(name) for name in _NAMED if name in given}
        if added := {name: given.pop(name) for name in _ADDED if name in given}:
            named["added_cond_kwargs"] = added
        named.update(control_arguments(self.model, given))
        return self.model(sample, timestep, **named, return_dict=False)[0]


def wrap_unet(part: Any, inputs: Sequence[TensorSpec] | None = None) -> nn.Module:
    """The module around a ``UNet2DConditionModel`` or ``UNet2DModel`` with the given inputs; None: those that
    its config asks for beside latents, timestep and prompt.
    """
    if inputs is not None:
        return with_inputs(_UNet, tuple(tensor.name for tensor in inputs))(part)
    added = _ADDED if getattr(part.config, "addition_embed_type", None) == "text_time" else ()
    return with_inputs(_UNet, ("sample", "timestep", "encoder_hidden_states", *added))(part)


def unet_spec(name: str, model: ModelSpec) -> ModuleSpec:
    """The spec of a model's U-Net."""
    sides = block_sizes(model)
    shapes = {"batch": SizeRange(), "height": sides, "width": sides}
    inputs = [TensorSpec("sample", "float32", latent(model)), TensorSpec("timestep", "float32", ("batch",))]
    if model.hidden_size:
        inputs.append(TensorSpec("encoder_hidden_states", "float32", ("batch", "tokens", model.hidden_size)))
        shapes["tokens"] = SizeRange()
    vectors = (
        ("text_embeds", model.pooled_size),
        ("time_ids", model.time_ids),
        ("timestep_cond", model.guidance_embedding),
    )
    inputs += [TensorSpec(label, "float32", ("batch", size)) for label, size in vectors if size]
    if model.num_classes:
        inputs.append(TensorSpec("class_labels", "int64", ("batch",)))
    if model.condition_channels:
        shape = ("batch", model.condition_channels, "height", "width")
        inputs.append(TensorSpec("condition", "float32", shape))
    inputs += control_inputs(model)
    shapes.update(control_shapes(model))
    output = TensorSpec("sample", "float32", latent(model))
    return ModuleSpec(name, "unet", tuple(inputs), (output,), shapes, model.num_classes)
