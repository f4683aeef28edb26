"""What stand-ins refuse: methods of diffusers' models that would do nothing to an engine."""

from __future__ import annotations

from typing import Any

from fastdiff.errors import InputError

__all__ = ["MissingFeatureError", "refuse", "refusing"]


class MissingFeatureError(InputError, AttributeError):
    """Something of a diffusers component that its stand-in does not have."""


def refuse(name: str, attribute: str) -> MissingFeatureError:
    """The error for using ``attribute`` of the stand-in, or the pipeline, called ``name``."""
    return MissingFeatureError(
        f"{name} was compiled by fastdiff and has no {attribute}: change the original pipeline and compile it"
        " again"
    )


_REFUSED = (
    "add_adapter",
    "disable_adapters",
    "disable_lora",
    "enable_adapters",
    "enable_gradient_checkpointing",
    "enable_group_offload",
    "enable_layerwise_casting",
    "enable_lora",
    "enable_xformers_memory_efficient_attention",
    "fuse_lora",
    "fuse_qkv_projections",
    "load_attn_procs",
    "load_lora_adapter",
    "load_state_dict",
    "push_to_hub",
    "save_pretrained",
    "set_adapter",
    "set_adapters",
    "set_attention_backend",
    "set_attention_slice",
    "set_attn_processor",
    "set_default_attn_processor",
    "unfuse_lora",
    "unload_lora",
)
"""Methods of diffusers' models that would do nothing to an engine."""


def refusing(module: Any, name: str) -> Any:
    """The module with methods that raise in place of those that would be without effect."""
    for method in _REFUSED:
        if hasattr(type(module), method):

            def raises(*args: Any, _method: str = method, **kwargs: Any) -> None:
                raise refuse(name, _method)

            module.__dict__[method] = raises
    return module
