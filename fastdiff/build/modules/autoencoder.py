"""The modules of an autoencoder: decoder, encoder, and the quantiser of a VQ-VAE."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from fastdiff.build.modules.spec import FEWEST, ModuleSpec, latent, picture
from fastdiff.config import ModelSpec, SizeRange, TensorSpec

__all__ = [
    "vae_decoder_spec",
    "vae_encoder_spec",
    "vae_quantizer_spec",
    "wrap_vae_decoder",
    "wrap_vae_encoder",
    "wrap_vae_quantizer",
]

_ANY = {"batch": SizeRange(), "height": SizeRange(FEWEST), "width": SizeRange(FEWEST)}
_CODES = ("batch", "height", "width")


class _VaeDecoder(nn.Module):
    def __init__(self, model: Any) -> None:
        super().__init__()
        self.decoder, self.post_quant_conv = model.decoder, getattr(model, "post_quant_conv", None)

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


class _PlainEncoder(nn.Module):
    """An encoder without a variance."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.encoder, self.quant_conv = model.encoder, getattr(model, "quant_conv", None)

    def forward(self, sample: Tensor) -> Any:
        latents = self.encoder(sample)
        return latents if self.quant_conv is None else self.quant_conv(latents)


class _CodeDecoder(nn.Module):
    """The decoder of a VQ-VAE: looks up what each code stands for."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.codebook = model.quantize.embedding
        self.decoder, self.post_quant_conv = model.decoder, model.post_quant_conv

    def forward(self, codes: Tensor) -> Any:
        vectors = self.codebook(codes).permute(0, 3, 1, 2)
        return self.decoder(self.post_quant_conv(vectors))


class _Quantizer(nn.Module):
    """How far latents are from each vector of a codebook: |e|² − 2 z·e, which is |z − e|² but for |z|², the
    same for all; as a convolution of one pixel.
    """

    def __init__(self, model: Any) -> None:
        super().__init__()
        codebook = model.quantize.embedding.weight.detach()
        self.scores = nn.Conv2d(codebook.shape[1], codebook.shape[0], 1)
        with torch.no_grad():
            self.scores.weight.copy_(-2 * codebook[:, :, None, None])
            self.scores.bias.copy_(codebook.square().sum(1))  # type: ignore[union-attr]

    def forward(self, latent_sample: Tensor) -> Any:
        return self.scores(latent_sample)


def wrap_vae_decoder(part: Any) -> nn.Module:
    """The decoder of an ``AutoencoderKL``, ``AutoencoderTiny`` or ``VQModel``."""
    return _CodeDecoder(part) if hasattr(part, "quantize") else _VaeDecoder(part)


def wrap_vae_encoder(part: Any) -> nn.Module:
    """The encoder of an ``AutoencoderKL``: mean and logarithm of the variance. Others give latents alone."""
    kinds = hasattr(part, "quantize"), hasattr(part, "latent_magnitude")
    return _PlainEncoder(part) if any(kinds) else _VaeEncoder(part)


def wrap_vae_quantizer(part: Any) -> nn.Module:
    """The quantiser of a ``VQModel``: the nearest code is the one with the least score."""
    return _Quantizer(part)


def vae_decoder_spec(name: str, model: ModelSpec) -> ModuleSpec:
    """The spec of the decoder. That of a VQ-VAE takes codes, as ``vae_quantizer`` finds them."""
    latents = TensorSpec("latent_sample", "float32", latent(model))
    codes = TensorSpec("codes", "int64", _CODES)
    return ModuleSpec(
        name,
        "vae",
        (codes if model.latent_codes else latents,),
        (TensorSpec("sample", "float32", picture(model)),),
        dict(_ANY),
        model.latent_codes,
    )


def vae_encoder_spec(name: str, model: ModelSpec) -> ModuleSpec:
    """The spec of the encoder; ``mean`` is all that one without a variance gives."""
    moments = ("mean", "logvar") if model.latent_variance else ("mean",)
    return ModuleSpec(
        name,
        "vae",
        (TensorSpec("sample", "float32", picture(model)),),
        tuple(TensorSpec(label, "float32", latent(model)) for label in moments),
        dict(_ANY),
    )


def vae_quantizer_spec(name: str, model: ModelSpec) -> ModuleSpec:
    """The spec of a VQ-VAE's quantiser."""
    scores = ("batch", model.latent_codes, "height", "width")
    return ModuleSpec(
        name,
        "vae",
        (TensorSpec("latent_sample", "float32", latent(model)),),
        (TensorSpec("scores", "float32", scores),),
        dict(_ANY),
    )
