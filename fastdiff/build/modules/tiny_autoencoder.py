"""The decoder of an ``AutoencoderTiny`` beside a model's own VAE, for previews.

It takes latents as samplers have them, with the scaling of its own config inside.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from fastdiff.build.modules.spec import FEWEST, ModuleSpec, latent, picture
from fastdiff.config import ModelSpec, SizeRange, TensorSpec

__all__ = ["PREVIEW", "PREVIEW_PART", "preview_decoder_spec", "wrap_preview_decoder"]

PREVIEW, PREVIEW_PART = "preview_decoder", "preview_vae"
"""The module, and the part that it is made from."""


class _PreviewDecoder(nn.Module):
    def __init__(self, model: Any) -> None:
        super().__init__()
        self.decoder = model.decoder
        self.scale = 1.0 / float(model.config.scaling_factor)
        self.shift = float(model.config.shift_factor or 0.0)

    def forward(self, latent_sample: Tensor) -> Any:
        return self.decoder(latent_sample * self.scale + self.shift)


def wrap_preview_decoder(part: Any) -> nn.Module:
    """The decoder of an ``AutoencoderTiny``."""
    return _PreviewDecoder(part)


def preview_decoder_spec(name: str, model: ModelSpec) -> ModuleSpec:
    """The spec of the decoder: what that of the VAE has."""
    return ModuleSpec(
        name,
        PREVIEW_PART,
        (TensorSpec("latent_sample", "float32", latent(model)),),
        (TensorSpec("sample", "float32", picture(model)),),
        {"batch": SizeRange(), "height": SizeRange(FEWEST), "width": SizeRange(FEWEST)},
    )
