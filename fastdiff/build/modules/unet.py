"""The module of a U-Net: one input for each thing that it is conditioned on."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from fastdiff.build.modules.spec import ModuleSpec, block_sizes, latent
from fastdiff.config import ModelSpec, SizeRange, TensorSpec

__all__ = ["unet_spec", "wrap_unet"]

_ADDED = ("text_embeds", "time_ids")
"""Inputs that the library takes in a dict."""
_NAMED = ("encoder_hidden_states", "timestep_cond", "class_labels")
"""Inputs that it takes by the names that they have here."""


class _UNet(nn.Module):
    """A U-Net of diffusers with some of its inputs: ``names``, in their order.

    ``condition`` is put behind ``sample`` as further channels, so that whoever calls it has samples of the
    latents' channels alone.
    """

    names: tuple[str, ...]

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, *arrays: Tensor) -> Any:
        given = dict(zip(self.names, arrays, strict=True))
        sample, timestep = given.pop("sample"), given.pop("timestep")
        if "condition" in given:
            sample = torch.cat([sample, given.pop("condition")], dim=1)
        named: dict[str, Any] = {name: given.pop(name) for name in _NAMED if name in given}
        if added := {name: given.pop(name) for name in _ADDED if name in given}:
            named["added_cond_kwargs"] = added
        return self.model(sample, timestep, **named, return_dict=False)[0]


@cache
def _with_inputs(names: tuple[str, ...]) -> type[_UNet]:
    """The class for these inputs. The exporter reads their names and number from ``forward``'s signature."""

    def forward(self: _UNet, *arrays: Tensor) -> Any:
        return _UNet.forward(self, *arrays)

    kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
    parameters = [inspect.Parameter(name, kind) for name in ("self", *names)]
    forward.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    return type("UNet", (_UNet,), {"names": names, "forward": forward})


def wrap_unet(part: Any, inputs: Sequence[TensorSpec] | None = None) -> nn.Module:
    """The module around a ``UNet2DConditionModel`` or ``UNet2DModel`` with the given inputs; None: those that
    its config asks for beside latents, timestep and prompt.
    """
    if inputs is not None:
        return _with_inputs(tuple(tensor.name for tensor in inputs))(part)
    added = _ADDED if getattr(part.config, "addition_embed_type", None) == "text_time" else ()
    return _with_inputs(("sample", "timestep", "encoder_hidden_states", *added))(part)


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
    output = TensorSpec("sample", "float32", latent(model))
    return ModuleSpec(name, "unet", tuple(inputs), (output,), shapes, model.num_classes)
