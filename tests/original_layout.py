"""Checkpoints in one file in the layouts of the models' own code, made of diffusers folders.

The names are written down here from the codes of CompVis, Stability AI and OpenCLIP, independent of
diffusers' converters, which must lead back to the folder's weights.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from tests.checkpoints import read_json

__all__ = ["single_file"]

Tensors = dict[str, Any]

_RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "time_emb_proj": "emb_layers.1",
    "conv_shortcut": "skip_connection",
}
_ENDS = {
    "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
}


def single_file(folder: Path, file: Path, ema: bool = False, dtype: torch.dtype | None = None) -> Path:
    """Write the weights of a diffusers folder as one file. With ``ema``, moving averages twice as large;
    ``dtype`` None leaves each tensor's.
    """
    parts: dict[str, Tensors] = {}
    for part in ("unet", "vae", "text_encoder", "text_encoder_2"):
        for path in sorted((folder / part).glob("*.safetensors")):
            parts.setdefault(part, {}).update(
                {name: tensor.to(dtype or tensor.dtype) for name, tensor in load_file(path).items()}
            )
    layers = read_json(folder / "unet" / "config.json")["layers_per_block"]
    tensors: Tensors = {}
    for name, tensor in parts["unet"].items():
        key = f"model.diffusion_model.{_unet_name(name, layers, parts['unet'])}"
        tensors[key] = tensor
        if ema:
            tensors[f"model_ema.{''.join(key.split('.')[1:])}"] = 2 * tensor
    blocks = len(read_json(folder / "vae" / "config.json")["block_out_channels"])
    for name, tensor in parts["vae"].items():
        key = _vae_name(name, blocks)
        is_kernel = ".mid.attn_1." in key and tensor.dim() == 2
        tensors[f"first_stage_model.{key}"] = tensor[:, :, None, None] if is_kernel else tensor
    several = "text_encoder_2" in parts or "text_encoder" not in parts
    if "text_encoder" in parts:
        open_clip = not several and read_json(folder / "text_encoder" / "config.json")["hidden_act"] == "gelu"
        prefix = "conditioner.embedders.0." if several else "cond_stage_model."
        own = _open_clip(parts["text_encoder"]) if open_clip else _clip(parts["text_encoder"])
        kind = "model." if open_clip else "transformer."
        tensors.update({f"{prefix}{kind}{name}": tensor for name, tensor in own.items()})
    if "text_encoder_2" in parts:
        number = 1 if "text_encoder" in parts else 0
        for name, tensor in _open_clip(parts["text_encoder_2"]).items():
            tensors[f"conditioner.embedders.{number}.model.{name}"] = tensor
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, file)
    return file


def _unet_name(name: str, layers: int, all_names: Tensors) -> str:
    for ours, theirs in _ENDS.items():
        if name.startswith(f"{ours}."):
            return name.replace(ours, theirs, 1)
    for ours, theirs in _RESNET.items():
        if ".resnets." in name:
            name = name.replace(f".{ours}.", f".{theirs}.")
    if match := re.fullmatch(r"down_blocks\.(\d+)\.(resnets|attentions)\.(\d+)\.(.*)", name):
        block, kind, layer, rest = int(match[1]), match[2], int(match[3]), match[4]
        return f"input_blocks.{1 + block * (layers + 1) + layer}.{int(kind == 'attentions')}.{rest}"
    if match := re.fullmatch(r"down_blocks\.(\d+)\.downsamplers\.0\.conv\.(.*)", name):
        return f"input_blocks.{(int(match[1]) + 1) * (layers + 1)}.0.op.{match[2]}"
    if match := re.fullmatch(r"mid_block\.(resnets|attentions)\.(\d+)\.(.*)", name):
        return f"middle_block.{1 if match[1] == 'attentions' else 2 * int(match[2])}.{match[3]}"
    if match := re.fullmatch(r"up_blocks\.(\d+)\.(resnets|attentions)\.(\d+)\.(.*)", name):
        block, kind, layer, rest = int(match[1]), match[2], int(match[3]), match[4]
        return f"output_blocks.{block * (layers + 1) + layer}.{int(kind == 'attentions')}.{rest}"
    match = re.fullmatch(r"up_blocks\.(\d+)\.upsamplers\.0\.(.*)", name)
    assert match is not None, name
    attends = any(key.startswith(f"up_blocks.{match[1]}.attentions") for key in all_names)
    return f"output_blocks.{int(match[1]) * (layers + 1) + layers}.{1 + attends}.{match[2]}"


def _vae_name(name: str, blocks: int) -> str:
    name = name.replace("conv_shortcut", "nin_shortcut").replace("conv_norm_out", "norm_out")
    name = re.sub(r"down_blocks\.(\d+)\.resnets\.(\d+)", r"down.\1.block.\2", name)
    name = re.sub(r"down_blocks\.(\d+)\.downsamplers\.0", r"down.\1.downsample", name)
    name = re.sub(
        r"up_blocks\.(\d+)\.resnets\.(\d+)", lambda m: f"up.{blocks - 1 - int(m[1])}.block.{m[2]}", name
    )
    name = re.sub(r"up_blocks\.(\d+)\.upsamplers\.0", lambda m: f"up.{blocks - 1 - int(m[1])}.upsample", name)
    name = re.sub(r"mid_block\.resnets\.(\d)", lambda m: f"mid.block_{int(m[1]) + 1}", name)
    if "mid_block.attentions.0" in name:
        name = name.replace("mid_block.attentions.0", "mid.attn_1").replace("group_norm", "norm")
        for letter in "qkv":
            name = name.replace(f"to_{letter}.", f"{letter}.")
        name = name.replace("to_out.0.", "proj_out.")
    return name


def _clip(tensors: Tensors) -> Tensors:
    return {f"text_model.{name.removeprefix('text_model.')}": tensor for name, tensor in tensors.items()}


def _open_clip(tensors: Tensors) -> Tensors:
    """OpenCLIP keeps q, k and v in one matrix, and the projection the other way round."""
    names = {
        "embeddings.token_embedding.weight": "token_embedding.weight",
        "embeddings.position_embedding.weight": "positional_embedding",
        "final_layer_norm.weight": "ln_final.weight",
        "final_layer_norm.bias": "ln_final.bias",
    }
    found: Tensors = {}
    plain = {name.removeprefix("text_model."): tensor for name, tensor in tensors.items()}
    for name, tensor in plain.items():
        if name == "text_projection.weight":
            found["text_projection"] = tensor.T
        elif name in names:
            found[names[name]] = tensor
        elif match := re.fullmatch(r"encoder\.layers\.(\d+)\.self_attn\.q_proj\.(weight|bias)", name):
            each = [plain[name.replace("q_proj", f"{letter}_proj")] for letter in "qkv"]
            found[f"transformer.resblocks.{match[1]}.attn.in_proj_{match[2]}"] = torch.cat(each)
        elif not re.search(r"\.[kv]_proj\.", name):
            rest = name.removeprefix("encoder.layers.").replace("self_attn", "attn")
            for ours, theirs in (("layer_norm", "ln_"), ("fc1", "c_fc"), ("fc2", "c_proj")):
                rest = rest.replace(ours, theirs)
            found[f"transformer.resblocks.{rest}"] = tensor
    return found
