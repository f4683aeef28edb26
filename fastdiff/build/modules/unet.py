"""The module of a U-Net: one input for each thing that it is conditioned on."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from fastdiff.build.modules.spec import ModuleSpec, block_sizes, latent
from fastdiff.config import ModelSpec, SizeRange, TensorSpec

__all__ = ["unet_spec", "wrap_unet"]


class _UNet(nn.Module):
    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, sample: Tensor, timestep: Tensor, encoder_hidden_states: Tensor) -> Any:
        return self.model(sample, timestep, encoder_hidden_states, return_dict=False)[0]


class _UNetWithAddedConditions(nn.Module):
    """SDXL's: an embedding of the whole prompt and the picture's sizes come in beside the tokens."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(
        self,
        sample: Tensor,
        timestep: Tensor,
        encoder_hidden_states: Tensor,
        text_embeds: Tensor,
        time_ids: Tensor,
    ) -> Any:
        added = {"text_embeds": text_embeds, "time_ids": time_ids}
        return self.model(
            sample, timestep, encoder_hidden_states, added_cond_kwargs=added, return_dict=False
        )[0]


def wrap_unet(part: Any) -> nn.Module:
    """The module around a ``UNet2DConditionModel``."""
    if getattr(part.config, "addition_embed_type", None) == "text_time":
        return _UNetWithAddedConditions(part)
    return _UNet(part)


def unet_spec(name: str, model: ModelSpec) -> ModuleSpec:
    """The spec of a model's U-Net."""
    hidden = ("batch", "tokens", model.hidden_size)
    added = (("text_embeds", model.pooled_size), ("time_ids", model.time_ids))
    sides = block_sizes(model)
    return ModuleSpec(
        name,
        "unet",
        (
            TensorSpec("sample", "float32", latent(model)),
            TensorSpec("timestep", "float32", ("batch",)),
            TensorSpec("encoder_hidden_states", "float32", hidden),
            *(TensorSpec(label, "float32", ("batch", size)) for label, size in added if size),
        ),
        (TensorSpec("sample", "float32", latent(model)),),
        {"batch": SizeRange(), "height": sides, "width": sides, "tokens": SizeRange()},
    )
