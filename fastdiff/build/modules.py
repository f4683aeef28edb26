"""The modules of a Stable-Diffusion-shaped model: plain tensor inputs and outputs around the library classes.

Each ModuleSpec says which part of the checkpoint a module is made from and what goes in and out, with
symbolic sizes; its ``wrap`` turns the part into a ``torch.nn.Module`` with that signature.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from fastdiff.config import ModelSpec, SizeRange, TensorSpec

__all__ = ["PART_CLASSES", "ModuleSpec", "module_spec", "module_wrapper", "random_inputs"]

PART_CLASSES = {
    "text_encoder": ("transformers", "CLIPTextModel"),
    "unet": ("diffusers", "UNet2DConditionModel"),
    "vae": ("diffusers", "AutoencoderKL"),
}
"""Parts of a checkpoint that hold weights, with the library and class that each must have."""


_FEWEST = 2
"""Least height and width on a module's coarsest level: the exporter tells 1 from all other sizes."""


@dataclass(frozen=True)
class ModuleSpec:
    """Name, source part, inputs, outputs and size ranges of a module."""

    name: str
    part: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    shapes: dict[str, SizeRange]

    def wrap(self, part: Any) -> nn.Module:
        """The module around a loaded part, in evaluation mode."""
        return module_wrapper(self.name, part)


class _TextEncoder(nn.Module):
    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor) -> Any:
        return self.model(input_ids).last_hidden_state


class _UNet(nn.Module):
    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, sample: Tensor, timestep: Tensor, encoder_hidden_states: Tensor) -> Any:
        return self.model(sample, timestep, encoder_hidden_states, return_dict=False)[0]


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


_WRAPPERS: dict[str, Callable[[Any], nn.Module]] = {
    "text_encoder": _TextEncoder,
    "unet": _UNet,
    "vae_decoder": _VaeDecoder,
    "vae_encoder": _VaeEncoder,
}


def module_wrapper(name: str, part: Any) -> nn.Module:
    """The torch module called ``name`` around a part that the library loaded, in evaluation mode."""
    return _WRAPPERS[name](part).eval()


def module_spec(name: str, model: ModelSpec) -> ModuleSpec:
    """The spec of one of ``fastdiff.config.MODULES`` for a model."""
    channels, factor = model.latent_channels, model.vae_scale_factor
    picture = ("batch", 3, f"{factor}*height", f"{factor}*width")
    latent = ("batch", channels, "height", "width")
    hidden = ("batch", "tokens", model.hidden_size)
    block = model.size_multiple // factor  # the U-Net halves its sample this often without a remainder
    any_size = {"batch": SizeRange(), "height": SizeRange(_FEWEST), "width": SizeRange(_FEWEST)}
    multiple = SizeRange(_FEWEST * block, None, block)
    match name:
        case "text_encoder":
            return ModuleSpec(
                name,
                "text_encoder",
                (TensorSpec("input_ids", "int64", ("batch", "tokens")),),
                (TensorSpec("last_hidden_state", "float32", hidden),),
                {"batch": SizeRange(), "tokens": SizeRange(1, model.max_tokens)},
            )
        case "unet":
            return ModuleSpec(
                name,
                "unet",
                (
                    TensorSpec("sample", "float32", latent),
                    TensorSpec("timestep", "float32", ("batch",)),
                    TensorSpec("encoder_hidden_states", "float32", hidden),
                ),
                (TensorSpec("sample", "float32", latent),),
                {"batch": SizeRange(), "height": multiple, "width": multiple, "tokens": SizeRange()},
            )
        case "vae_decoder":
            return ModuleSpec(
                name,
                "vae",
                (TensorSpec("latent_sample", "float32", latent),),
                (TensorSpec("sample", "float32", picture),),
                any_size,
            )
        case "vae_encoder":
            return ModuleSpec(
                name,
                "vae",
                (TensorSpec("sample", "float32", picture),),
                (TensorSpec("mean", "float32", latent), TensorSpec("logvar", "float32", latent)),
                any_size,
            )
    raise ValueError(f"unknown module {name!r}")


def random_inputs(
    spec: ModuleSpec, sizes: dict[str, int], seed: int, vocab_size: int = 1
) -> dict[str, NDArray[Any]]:
    """Inputs as they occur in sampling: token ids, timesteps of 0 to 999, and normal deviates elsewhere.

    ``sizes`` gives the symbolic sizes, ``height`` and ``width`` in latent pixels.
    """
    rng = np.random.default_rng(seed)
    arrays: dict[str, NDArray[Any]] = {}
    for tensor in spec.inputs:
        shape = tuple(
            factor if symbol is None else factor * sizes[symbol] for factor, symbol in tensor.factors()
        )
        if tensor.dtype == "int64":
            arrays[tensor.name] = rng.integers(0, vocab_size, shape)
        elif tensor.name == "timestep":
            arrays[tensor.name] = rng.integers(0, 1000, shape).astype(np.float32)
        else:
            arrays[tensor.name] = rng.standard_normal(shape, np.float32)
    return arrays
