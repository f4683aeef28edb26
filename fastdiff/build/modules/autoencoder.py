"""The two modules of an autoencoder."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from fastdiff.build.modules.spec import FEWEST, ModuleSpec, latent, picture
from fastdiff.config import ModelSpec, SizeRange, TensorSpec

__all__ = ["vae_decoder_spec", "vae_encoder_spec", "wrap_vae_decoder", "wrap_vae_encoder"]

_ANY = {"batch": SizeRange(), "height": SizeRange(FEWEST), "width": SizeRange(FEWEST)}


class _VaeDecoder(nn.Module):
    def __init__(self, model: Any) -> None:
        super().__init__()
        self.decoder, self.post_quant_conv = model.decoder, model.post_quant_conv

    def forward(self, latent_sample: Tensor) -> Any:
        if self.post_quant_conv is not None:
            latent_sample = self.post_quant_conv(latent_sample)
        return self.decoder(latent_sample)


class _VaeEncoder(nn.Module):
    def __init__(self, model: Any) -> None:
        super().__init__()
        self.encoder, self.quant_conv = model.encoder, model.quant_conv

    def forward(self, sample: Tensor) -> tuple[Tensor, Tensor]:
        moments = self.encoder(sample)
        if self.quant_conv is not None:
            moments = self.quant_conv(moments)
        mean, logvar = torch.chunk(moments, 2, dim=1)
        return mean, torch.clamp(logvar, -30.0, 20.0)


def wrap_vae_decoder(part: Any) -> nn.Module:
    """The decoder of an ``AutoencoderKL``."""
    return _VaeDecoder(part)


def wrap_vae_encoder(part: Any) -> nn.Module:
    """The encoder of an ``AutoencoderKL``: mean and logarithm of the variance."""
    return _VaeEncoder(part)


def vae_decoder_spec(name: str, model: ModelSpec) -> ModuleSpec:
    """The spec of the decoder."""
    return ModuleSpec(
        name,
        "vae",
        (TensorSpec("latent_sample", "float32", latent(model)),),
        (TensorSpec("sample", "float32", picture(model)),),
        dict(_ANY),
    )


def vae_encoder_spec(name: str, model: ModelSpec) -> ModuleSpec:
    """The spec of the encoder."""
    moments = ("mean", "logvar")
    return ModuleSpec(
        name,
        "vae",
        (TensorSpec("sample", "float32", picture(model)),),
        tuple(TensorSpec(label, "float32", latent(model)) for label in moments),
        dict(_ANY),
    )
