"""The modules of a latent diffusion model: plain tensor inputs and outputs around the library classes.

Each ModuleSpec says which part of the checkpoint a module is made from and what goes in and out, with
symbolic sizes; its ``wrap`` turns the part into a ``torch.nn.Module`` with that signature. A kind of module
has a file.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import nn

from fastdiff.build.modules.any_sides import unet_for_any_sides
from fastdiff.build.modules.approximate import (
    SHALLOW,
    approximate_unet,
    approximate_unet_spec,
    shallow_unet_spec,
)
from fastdiff.build.modules.autoencoder import (
    vae_decoder_spec,
    vae_encoder_spec,
    vae_quantizer_spec,
    wrap_vae_decoder,
    wrap_vae_encoder,
    wrap_vae_quantizer,
)
from fastdiff.build.modules.control import control_kind
from fastdiff.build.modules.inputs import random_inputs
from fastdiff.build.modules.parts import PART_CLASSES, part_class
from fastdiff.build.modules.spec import ModuleSpec
from fastdiff.build.modules.text_encoder import text_encoder_spec, wrap_text_encoder
from fastdiff.build.modules.tiny_autoencoder import PREVIEW, preview_decoder_spec, wrap_preview_decoder
from fastdiff.build.modules.unet import wrap_unet
from fastdiff.config import ModelSpec, TensorSpec

__all__ = ["PART_CLASSES", "ModuleSpec", "module_spec", "module_wrapper", "part_class", "random_inputs"]

_KINDS: dict[str, tuple[Callable[[str, ModelSpec], ModuleSpec], Callable[..., nn.Module]]] = {
    "text_encoder": (text_encoder_spec, wrap_text_encoder),
    "text_encoder_2": (text_encoder_spec, wrap_text_encoder),
    "unet": (approximate_unet_spec, wrap_unet),
    SHALLOW: (shallow_unet_spec, wrap_unet),
    "vae_decoder": (vae_decoder_spec, wrap_vae_decoder),
    "vae_encoder": (vae_encoder_spec, wrap_vae_encoder),
    PREVIEW: (preview_decoder_spec, wrap_preview_decoder),
    "vae_quantizer": (vae_quantizer_spec, wrap_vae_quantizer),
}


def module_wrapper(
    name: str,
    part: Any,
    inputs: Sequence[TensorSpec] | None = None,
    outputs: Sequence[TensorSpec] | None = None,
    options: Mapping[str, Any] | None = None,
) -> nn.Module:
    """The torch module called ``name`` around a part that the library loaded, in evaluation mode.

    ``inputs`` and ``outputs`` are those of its spec, for kinds that do not always have the same; None leaves
    them to the part. ``options`` are those of its spec as well.
    """
    control = control_kind(name)
    if control is not None:
        return control[1](part, inputs or (), outputs or ()).eval()
    wrap = _KINDS[name][1]
    if wrap is wrap_text_encoder:
        return wrap(part, **(options or {})).eval()
    if wrap is not wrap_unet:
        return wrap(part).eval()
    module = wrap(part, inputs if name != SHALLOW or inputs is None else inputs[:-1]).eval()
    if not options:
        return module
    return approximate_unet(name, unet_for_any_sides(module) if "any_sides" in options else module, options)


def module_spec(name: str, model: ModelSpec) -> ModuleSpec:
    """The spec of a module for a model. Raises ValueError for a name that is unknown."""
    control = control_kind(name)
    if control is not None:
        return control[0](name, model)
    if name not in _KINDS:
        raise ValueError(f"unknown module {name!r}")
    return _KINDS[name][0](name, model)
