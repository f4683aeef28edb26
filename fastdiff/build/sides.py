"""Which U-Nets are built for sides of any length, as diffusers runs them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from fastdiff.build.checkpoint import Checkpoint
from fastdiff.build.families.shared import sizes
from fastdiff.config import ModelSpec

__all__ = ["takes_any_sides", "with_any_sides"]

_BLOCKS = ("DownBlock2D", "CrossAttnDownBlock2D", "UpBlock2D", "CrossAttnUpBlock2D")
"""Those of Stable Diffusion. They halve by convolutions and round up, and enlarge to a size that is given."""


def takes_any_sides(unet: Mapping[str, Any]) -> bool:
    """Whether a ``UNet2DConditionModel`` of this config takes sides that are no multiples of its halvings."""
    blocks = (*unet.get("down_block_types", ()), *unet.get("up_block_types", ()))
    return (
        bool(blocks) and all(block in _BLOCKS for block in blocks) and unet.get("downsample_padding", 1) == 1
    )


def with_any_sides(checkpoint: Checkpoint, model: ModelSpec) -> ModelSpec:
    """The model with sides in multiples of the VAE's factor alone, where its U-Net is such a one.

    With a ControlNet or a T2I-Adapter it stays as it is: their features have the sizes of the U-Net's levels.
    """
    control = model.control
    if (
        checkpoint.classes.get("unet") != "UNet2DConditionModel"
        or control.controlnets
        or control.t2i_adapters
    ):
        return model
    unet = checkpoint.configs["unet"]
    if not takes_any_sides(unet):
        return model
    shortest, factor = 2 * model.size_multiple, model.vae_scale_factor
    usual = sizes(unet, factor, factor)
    return replace(model, **usual, shortest_side=shortest)
