"""Why a component of a diffusers pipeline stays with PyTorch."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

__all__ = ["why_not"]

_CLASSES = (
    "AutoencoderKL",
    "AutoencoderTiny",
    "CLIPTextModel",
    "CLIPTextModelWithProjection",
    "ControlNetModel",
    "UNet2DConditionModel",
    "UNet2DModel",
    "VQModel",
)
_PLAIN_ATTENTION = ("AttnProcessor", "AttnProcessor2_0", "AttnAddedKVProcessor", "AttnAddedKVProcessor2_0")
_OFF = (None, False)
_OPTIONS: dict[str, dict[str, tuple[Any, ...]]] = {
    "CLIPTextModel": {"use_attention_mask": _OFF},
    "CLIPTextModelWithProjection": {"use_attention_mask": _OFF},
    "ControlNetModel": {
        "addition_embed_type": (None, "text_time"),
        "class_embed_type": (*_OFF, "timestep"),
        "encoder_hid_dim_type": _OFF,
    },
    "UNet2DConditionModel": {
        "addition_embed_type": (None, "text_time"),
        "class_embed_type": (*_OFF, "timestep"),
        "encoder_hid_dim_type": _OFF,
    },
    "UNet2DModel": {"class_embed_type": (*_OFF, "timestep")},
    "VQModel": {"norm_type": (None, "group")},
}
"""Options of configs whose other values ask for inputs that no module has."""


def why_not(component: nn.Module) -> str | None:
    """The reason as the rest of a sentence that begins with the component's name; None: there is none."""
    kind = type(component).__name__
    if hasattr(component, "_hf_hook"):
        return "is moved between devices by accelerate: compile before any offloading is enabled"
    if kind not in _CLASSES:
        return f"is a {kind}, which compile does not take over"
    config: Any = component.config
    for option, values in _OPTIONS.get(kind, {}).items():
        value = getattr(config, option, None)
        if not any(value is known or value == known for known in values):
            return f"has {option} {value!r}, which fastdiff has no inputs for"
    return _changed(component)


def _changed(component: nn.Module) -> str | None:
    """What was done to a component since it was loaded that its config does not say."""
    for label, module in component.named_modules():
        place = f" of {label}" if label else ""
        if any(map(_changes, (*module._forward_hooks.values(), *module._forward_pre_hooks.values()))):
            return f"has forward hooks{place}, which would not run: remove them first"
        if "forward" in module.__dict__:
            return f"has a forward{place} that is not its class's: undo the change first"
    if getattr(component, "encoder_hid_proj", None) is not None:
        return "holds an IP-Adapter: unload it, or leave the component to PyTorch"
    if any(hasattr(module, "lora_A") for module in component.modules()):
        return "holds LoRA layers: call fuse_lora() and unload_lora_weights() first"
    kinds = {type(processor).__name__ for processor in getattr(component, "attn_processors", {}).values()}
    if others := sorted(kinds - set(_PLAIN_ATTENTION)):
        return f"has attention processors of its own ({', '.join(others)})"
    if any(getattr(block, "s1", None) is not None for block in getattr(component, "up_blocks", ())):
        return "has FreeU enabled: call disable_freeu() first"
    floats = (torch.float32, torch.float16, torch.bfloat16)
    for label, weight in component.named_parameters():
        if weight.dtype not in floats or type(weight.data) is not torch.Tensor:
            return (
                f"has weights that are not plain floats ({label}: {str(weight.dtype).removeprefix('torch.')})"
            )
        if weight.is_meta:
            return f"has weights without values ({label} is on the meta device)"
    return None


def _changes(hook: Any) -> bool:
    """Whether a forward hook is somebody's own; those of transformers record hidden states."""
    return not str(getattr(hook, "__module__", "")).startswith("transformers.")
