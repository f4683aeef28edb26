"""Methods of diffusers' pipelines that a compiled one refuses."""

from __future__ import annotations

import functools
from typing import Any

from fastdiff.errors import InputError

__all__ = ["refuse_methods"]

_REFUSED = (
    "delete_adapters",
    "disable_freeu",
    "disable_lora",
    "disable_lora_hotswap",
    "enable_attention_slicing",
    "enable_freeu",
    "enable_group_offload",
    "enable_lora",
    "enable_lora_hotswap",
    "enable_model_cpu_offload",
    "enable_sequential_cpu_offload",
    "enable_xformers_memory_efficient_attention",
    "fuse_lora",
    "fuse_qkv_projections",
    "load_ip_adapter",
    "load_lora_weights",
    "load_textual_inversion",
    "push_to_hub",
    "save_pretrained",
    "set_adapters",
    "set_attention_slice",
    "set_ip_adapter_scale",
    "set_lora_device",
    "unfuse_lora",
    "unfuse_qkv_projections",
    "unload_ip_adapter",
    "unload_lora_weights",
    "unload_textual_inversion",
)
"""Methods of diffusers' pipelines that change models, or move or store them."""


def refuse_methods(compiled: Any) -> None:
    """Put methods that raise in the place of those of a pipeline that would be without effect."""
    kind = type(compiled)
    for method in _REFUSED:
        if hasattr(kind, method):
            compiled.__dict__[method] = _refusal(kind.__name__, method)
    if hasattr(compiled, "encode_prompt"):
        compiled.__dict__["encode_prompt"] = _without_lora(compiled.encode_prompt)


def _refusal(pipeline: str, method: str) -> Any:
    def raises(*args: Any, **kwargs: Any) -> None:
        from fastdiff.compiled.stand_ins import refuse

        raise refuse(f"this {pipeline}", method)

    return raises


def _without_lora(encode_prompt: Any) -> Any:
    """``encode_prompt``, which a call's ``cross_attention_kwargs`` reach first, by way of their ``scale``."""

    @functools.wraps(encode_prompt)
    def encode(*args: Any, **kwargs: Any) -> Any:
        if kwargs.get("lora_scale") is not None:
            raise InputError(
                "a compiled pipeline takes no cross_attention_kwargs or lora_scale: leave it out, or use the"
                " original pipeline"
            )
        return encode_prompt(*args, **kwargs)

    return encode
