"""The modules of a Stable-Diffusion-shaped model: plain tensor inputs and outputs around the library classes.

Each ModuleSpec says which part of the checkpoint a module is made from and what goes in and out, with
symbolic sizes; its ``wrap`` turns the part into a ``torch.nn.Module`` with that signature.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from fastdiff.config import ModelSpec, SizeRange, TensorSpec

__all__ = ["PART_CLASSES", "ModuleSpec", "module_spec", "module_wrapper", "part_class", "random_inputs"]

PART_CLASSES = {
    "text_encoder": ("transformers", "CLIPTextModel"),
    "unet": ("diffusers", "UNet2DConditionModel"),
    "vae": ("diffusers", "AutoencoderKL"),
}
"""Parts of a checkpoint that hold weights, with the library and class that each must have."""


def part_class(part: str) -> Any:
    """The class of a part: its library's, or where diffusers is not installed the one of ``build/plain``."""
    library, name = PART_CLASSES[part]
    if library == "diffusers" and importlib.util.find_spec(library) is None:
        library = "fastdiff.build.plain"
    return getattr(importlib.import_module(library), name)


_FEWEST = 2
"""Least height and width on a module's coarsest level: the exporter tells 1 from all other sizes."""


_TIME_IDS = (1024, 1024, 0, 0, 1024, 1024)
"""What SDXL is told of a picture of its own size that was not cropped."""


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
    wrapper = _WRAPPERS[name]
    if name == "unet" and getattr(part.config, "addition_embed_type", None) == "text_time":
        wrapper = _UNetWithAddedConditions
    return wrapper(part).eval()


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
            added = (("text_embeds", model.pooled_size), ("time_ids", model.time_ids))
            return ModuleSpec(
                name,
                "unet",
                (
                    TensorSpec("sample", "float32", latent),
                    TensorSpec("timestep", "float32", ("batch",)),
                    TensorSpec("encoder_hidden_states", "float32", hidden),
                    *(TensorSpec(label, "float32", ("batch", size)) for label, size in added if size),
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
    """Inputs as they occur in sampling: token ids, timesteps of 0 to 999, picture sizes (original height and
    width, crop, target height and width), and normal deviates elsewhere.

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
        elif tensor.name == "time_ids":
            arrays[tensor.name] = np.broadcast_to(np.array(_TIME_IDS, np.float32), shape).copy()
        else:
            arrays[tensor.name] = rng.standard_normal(shape, np.float32)
    return arrays
