"""The modules that a diffusers pipeline's components become: inputs, outputs and sizes from their configs.

Heights and widths count latent pixels; where a ControlNet's residuals go into the U-Net, or it takes no sides
of any length, they count its coarsest pixels, of which every level has whole multiples. What diffusers
computes around a module (concatenated masks, scaled residuals, sampling a posterior) stays in diffusers.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fastdiff.build.modules import ModuleSpec
from fastdiff.build.modules.any_sides import unet_for_any_sides
from fastdiff.build.sides import takes_any_sides
from fastdiff.compiled.copies import private_copy
from fastdiff.config import ModelSpec, SizeRange, TensorSpec
from fastdiff.errors import InputError

__all__ = ["Part", "Surroundings", "parts_of"]

_FEWEST = 2
"""Least height and width: the exporter tells 1 from all other sizes."""


@dataclass(frozen=True)
class Surroundings:
    """What a component's module depends on beside its own config.

    residuals  whether the U-Net is given a ControlNet's residuals
    pooled     width of the second text encoder's embedding of the whole prompt, 0 where there is none
    scores     whether the picture's sizes come with an aesthetic score, as SDXL's refiner takes them
    height     of the pictures that the pipeline mostly makes, in pixels, None: the U-Net's own
    width      the same
    batch      pictures that it mostly makes at once
    factor     picture pixels of a latent pixel, 1 without an autoencoder
    any_sides  whether the target compiles U-Nets for sides of any length
    """

    residuals: bool = False
    pooled: int = 0
    scores: bool = False
    height: int | None = None
    width: int | None = None
    batch: int = 1
    factor: int = 1
    any_sides: bool = False


@dataclass(frozen=True)
class Part:
    """A module to compile: its spec, the torch module with that signature, and what both come from.

    ``model`` has the sizes that it is tuned and verified at; ``vocabulary`` is the range of its integers.
    """

    spec: ModuleSpec
    eager: nn.Module
    source: nn.Module
    model: ModelSpec
    vocabulary: int


def parts_of(name: str, component: Any, around: Surroundings, own: bool) -> list[Part]:
    """The modules of a component that ``reasons.why_not`` lets through. ``own`` is for ``private_copy``."""
    kind = type(component).__name__
    if kind in ("UNet2DConditionModel", "UNet2DModel"):
        return [_unet(name, component, around, own)]
    if kind == "ControlNetModel":
        return [_controlnet(name, component, around, own)]
    if kind in ("CLIPTextModel", "CLIPTextModelWithProjection"):
        return [_text_encoder(name, component, around, own)]
    if kind in ("AutoencoderKL", "AutoencoderTiny", "VQModel"):
        return _autoencoder(name, component, around, own)
    raise InputError(f"{name} is a {kind}, which compile does not take over: leave it out of modules")


def _model(
    around: Surroundings, unit: int, height: int, width: int, tokens: int = 1, shortest: int = 0
) -> ModelSpec:
    """Sizes in picture pixels for a module whose height and width count ``unit`` of them.

    ``shortest`` is the shortest side of one that takes sides of any length.
    """
    sides = [max(shortest, _FEWEST * unit, round(side / unit) * unit) for side in (height, width)]
    return ModelSpec(
        family="diffusers",
        latent_channels=1,
        vae_scale_factor=unit,
        scaling_factor=1.0,
        shift_factor=0.0,
        default_height=sides[0],
        default_width=sides[1],
        default_batch=around.batch,
        size_multiple=unit,
        max_tokens=tokens,
        hidden_size=1,
        shortest_side=shortest,
    )


def _sides(around: Surroundings, size: Any) -> tuple[int, int]:
    """Height and width in picture pixels, by default those of a U-Net with the ``sample_size``."""
    pair = (size, size) if isinstance(size, int) else tuple(size or (64, 64))
    return around.height or pair[0] * around.factor, around.width or pair[1] * around.factor


def _spatial(name: str, channels: int, factor: int) -> TensorSpec:
    side = "{}" if factor == 1 else f"{factor}*{{}}"
    return TensorSpec(name, "float32", ("batch", channels, side.format("height"), side.format("width")))


class _Call(nn.Module):
    """A library's model with tensors in and out; ``call`` takes them by the names of the spec's inputs."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def call(self, given: Mapping[str, Tensor]) -> Any:
        raise NotImplementedError


def _called(kind: type[_Call], inputs: list[TensorSpec], model: Any) -> nn.Module:
    """An instance of ``kind`` whose ``forward`` has one parameter per input, as the exporter wants it."""
    names = tuple(tensor.name for tensor in inputs)

    def forward(self: _Call, *tensors: Tensor) -> Any:
        return self.call(dict(zip(names, tensors, strict=True)))

    positional = inspect.Parameter.POSITIONAL_OR_KEYWORD
    signature = inspect.Signature([inspect.Parameter(name, positional) for name in ("self", *names)])
    forward.__signature__ = signature  # type: ignore[attr-defined]
    made: nn.Module = type(kind.__name__, (kind,), {"forward": forward})(model)
    return made.eval()


class _UNet(_Call):
    def call(self, given: Mapping[str, Tensor]) -> Any:
        arguments = _conditions(given)
        if "mid_residual" in given:
            down = [given[name] for name in given if name.startswith("down_residual_")]
            arguments["down_block_additional_residuals"] = down
            arguments["mid_block_additional_residual"] = given["mid_residual"]
        return self.model(given["sample"], given["timestep"], **arguments, return_dict=False)[0]


class _ControlNet(_Call):
    def call(self, given: Mapping[str, Tensor]) -> Any:
        arguments = _conditions(given)
        hidden = arguments.pop("encoder_hidden_states")
        tensors = given["sample"], given["timestep"], hidden, given["condition"]
        down, mid = self.model(*tensors, **arguments, return_dict=False)
        return (*down, mid)


def _conditions(given: Mapping[str, Tensor]) -> dict[str, Any]:
    """Arguments of diffusers for what a U-Net is conditioned on."""
    names = ("encoder_hidden_states", "timestep_cond", "class_labels")
    arguments: dict[str, Any] = {name: given[name] for name in names if name in given}
    added = {name: given[name] for name in ("text_embeds", "time_ids") if name in given}
    if added:
        arguments["added_cond_kwargs"] = added
    return arguments


class _TextEncoder(_Call):
    def call(self, given: Mapping[str, Tensor]) -> Any:
        result = self.model(given["input_ids"], output_hidden_states=True)
        states = torch.cat([state.unsqueeze(1) for state in result.hidden_states], dim=1)
        pooled = result.text_embeds if "text_embeds" in result else result.pooler_output
        return result.last_hidden_state, states, pooled


class _Coder(_Call):
    def call(self, given: Mapping[str, Tensor]) -> Any:
        (tensor,) = given.values()
        return self.model(tensor)


def _added_conditions(config: Any, around: Surroundings) -> list[TensorSpec]:
    """What a U-Net or ControlNet takes beside the prompt."""
    found = []
    if config.get("addition_embed_type") == "text_time":
        width, each = config["projection_class_embeddings_input_dim"], config["addition_time_embed_dim"]
        count = (width - around.pooled) // each if around.pooled else (5 if around.scores else 6)
        found.append(TensorSpec("text_embeds", "float32", ("batch", width - count * each)))
        found.append(TensorSpec("time_ids", "float32", ("batch", count)))
    if config.get("time_cond_proj_dim"):
        found.append(TensorSpec("timestep_cond", "float32", ("batch", config["time_cond_proj_dim"])))
    if config.get("num_class_embeds"):
        found.append(TensorSpec("class_labels", "int64", ("batch",)))
    elif config.get("class_embed_type") == "timestep":
        found.append(TensorSpec("class_labels", "float32", ("batch",)))
    return found


def _residuals(config: Any) -> list[TensorSpec]:
    """The residuals of a ControlNet for a U-Net of this config, in diffusers' order."""
    widths = config["block_out_channels"]
    layers = config["layers_per_block"]
    counts = [layers] * len(widths) if isinstance(layers, int) else list(layers)
    coarsest = len(widths) - 1
    sizes = [(widths[0], 0)]
    for level, (width, count) in enumerate(zip(widths, counts, strict=True)):
        sizes += [(width, level)] * count
        if level < coarsest:
            sizes.append((width, level + 1))
    named = [(f"down_residual_{index}", *size) for index, size in enumerate(sizes)]
    named.append(("mid_residual", widths[-1], coarsest))
    return [_spatial(name, width, 2 ** (coarsest - level)) for name, width, level in named]


def _unet(name: str, unet: Any, around: Surroundings, own: bool) -> Part:
    config = unet.config
    block = 2 ** (len(config.block_out_channels) - 1)
    conditional = type(unet).__name__ == "UNet2DConditionModel"
    any_sides = conditional and around.any_sides and not around.residuals and takes_any_sides(config)
    unit, fewest = (1, _FEWEST * block) if any_sides else (block, _FEWEST)
    shapes = {"batch": SizeRange(), "height": SizeRange(fewest), "width": SizeRange(fewest)}
    inputs = [
        _spatial("sample", config.in_channels, unit),
        TensorSpec("timestep", "float32", ("batch",)),
    ]
    if conditional:
        hidden = ("batch", "tokens", config.cross_attention_dim)
        inputs.append(TensorSpec("encoder_hidden_states", "float32", hidden))
        shapes["tokens"] = SizeRange()
    inputs += _added_conditions(config, around)
    if around.residuals:
        inputs += _residuals(config)
    output = _spatial("sample", config.out_channels, unit)
    sides = _sides(around, config.sample_size)
    shortest = fewest * around.factor if any_sides else 0
    model = _model(around, unit * around.factor, *sides, tokens=77, shortest=shortest)
    source = private_copy(unet, own)
    spec = ModuleSpec("unet", name, tuple(inputs), (output,), shapes)
    eager = _called(_UNet, inputs, source)
    if any_sides:
        eager = unet_for_any_sides(eager)
    return Part(spec, eager, source, model, config.get("num_class_embeds") or 1)


def _controlnet(name: str, net: Any, around: Surroundings, own: bool) -> Part:
    config = net.config
    block = 2 ** (len(config.block_out_channels) - 1)
    factor = 2 ** (len(config.conditioning_embedding_out_channels) - 1)
    hidden = ("batch", "tokens", config.cross_attention_dim)
    inputs = [
        _spatial("sample", config.in_channels, block),
        TensorSpec("timestep", "float32", ("batch",)),
        TensorSpec("encoder_hidden_states", "float32", hidden),
        *_added_conditions(config, around),
        _spatial("condition", config.conditioning_channels, block * factor),
    ]
    shapes = {symbol: SizeRange(_FEWEST) for symbol in ("height", "width")}
    shapes |= {"batch": SizeRange(), "tokens": SizeRange()}
    model = _model(around, block * around.factor, *_sides(around, None), tokens=77)
    source = private_copy(net, own)
    # the caller's to do, as it does what is scaled
    settled = {"global_pool_conditions": False, "controlnet_conditioning_channel_order": "rgb"}
    source._internal_dict = type(config)({**config, **settled})
    spec = ModuleSpec(name, name, tuple(inputs), tuple(_residuals(config)), shapes)
    return Part(
        spec, _called(_ControlNet, inputs, source), source, model, config.get("num_class_embeds") or 1
    )


def _text_encoder(name: str, encoder: Any, around: Surroundings, own: bool) -> Part:
    config = encoder.config
    ids = TensorSpec("input_ids", "int64", ("batch", "tokens"))
    projects = type(encoder).__name__ == "CLIPTextModelWithProjection"
    pooled, width = (
        ("text_embeds", config.projection_dim) if projects else ("pooler_output", config.hidden_size)
    )
    outputs = (
        TensorSpec("last_hidden_state", "float32", ("batch", "tokens", config.hidden_size)),
        TensorSpec(
            "hidden_states", "float32", ("batch", config.num_hidden_layers + 1, "tokens", config.hidden_size)
        ),
        TensorSpec(pooled, "float32", ("batch", width)),
    )
    shapes = {"batch": SizeRange(), "tokens": SizeRange(1, config.max_position_embeddings)}
    model = _model(around, 8, 64, 64, tokens=config.max_position_embeddings)
    source = private_copy(encoder, own)
    vocabulary = source.get_input_embeddings().weight.shape[0]
    spec = ModuleSpec(name, name, (ids,), outputs, shapes)
    return Part(spec, _called(_TextEncoder, [ids], source), source, model, vocabulary)


def _autoencoder(name: str, vae: Any, around: Surroundings, own: bool) -> list[Part]:
    """Decoder and encoder; the 1×1 convolutions and the codebook between them stay in diffusers."""
    config = vae.config
    blocks = config.get("encoder_block_out_channels") or config["block_out_channels"]
    factor = 2 ** (len(blocks) - 1)
    shapes = {"batch": SizeRange(), "height": SizeRange(_FEWEST), "width": SizeRange(_FEWEST)}
    model = _model(around, factor, around.height or 64 * factor, around.width or 64 * factor)
    moments = config.latent_channels * (2 if type(vae).__name__ == "AutoencoderKL" else 1)
    tensors = {
        "decoder": (
            _spatial("latent_sample", config.latent_channels, 1),
            _spatial("sample", config.out_channels, factor),
        ),
        "encoder": (_spatial("sample", config.in_channels, factor), _spatial("moments", moments, 1)),
    }
    parts = []
    for half, (before, after) in tensors.items():
        source = private_copy(getattr(vae, half), own)
        spec = ModuleSpec(f"{name}_{half}", name, (before,), (after,), dict(shapes))
        parts.append(Part(spec, _called(_Coder, [before], source), source, model, 1))
    return parts
