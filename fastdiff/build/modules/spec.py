"""What a module is: where it comes from, what goes in and out, at which sizes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from fastdiff.config import ModelSpec, SizeRange, TensorSpec

__all__ = ["FEWEST", "ModuleSpec", "block_sizes", "latent", "picture"]

FEWEST = 2
"""Least height and width on a module's coarsest level: the exporter tells 1 from all other sizes."""


@dataclass(frozen=True)
class ModuleSpec:
    """Name, source part, inputs, outputs and size ranges of a module.

    ``labels`` is how many values its integer input may have, classes or codes; 0: those of token ids.
    ``options`` say, in
    JSON values, what the module has that its part alone does not tell.
    """

    name: str
    part: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    shapes: dict[str, SizeRange]
    labels: int = 0
    options: Mapping[str, Any] = field(default_factory=dict)

    def wrap(self, part: Any) -> nn.Module:
        """The module around a loaded part, in evaluation mode."""
        from fastdiff.build.modules import module_wrapper

        return module_wrapper(self.name, part, self.inputs, self.outputs, self.options)


def latent(model: ModelSpec) -> tuple[int | str, ...]:
    """The shape of latents."""
    return ("batch", model.latent_channels, "height", "width")


def picture(model: ModelSpec) -> tuple[int | str, ...]:
    """The shape of pictures."""
    factor = model.vae_scale_factor
    return ("batch", model.picture_channels, f"{factor}*height", f"{factor}*width")


def block_sizes(model: ModelSpec) -> SizeRange:
    """Heights and widths that the U-Net takes: without ``shortest_side`` those that it halves on its way down
    without a remainder.
    """
    block = model.size_multiple // model.vae_scale_factor
    return SizeRange(model.least_side // model.vae_scale_factor, None, block)
