"""attention: PyTorch's backends, Triton's kernel, and CUDA C++ for the head sizes that it is written for."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel

from fastdiff.targets.cuda.calls import Call
from fastdiff.targets.cuda.implementations import Implementation

__all__ = ["IMPLEMENTATIONS"]

_BACKENDS = {
    "flash": SDPBackend.FLASH_ATTENTION,
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
}
_LARGEST_HEAD = {"flash": 256, "cudnn": 128, "efficient": 1 << 16}


def _heads(call: Call) -> list[Tensor]:
    """Query, key and value as (B, H, N, d), without copies."""
    heads = call["heads"]
    parts = [x for x in call.inputs if x is not None]
    return [x.view(*x.shape[:2], heads, x.shape[2] // heads).transpose(1, 2) for x in parts]


def _torch(call: Call, config: Any) -> Tensor:
    """``config``: one of the backends by name, None for PyTorch's own choice."""
    query, key, value = _heads(call)
    options = {"scale": call["scale"], "is_causal": bool(call["causal"])}
    if config is None:
        result = functional.scaled_dot_product_attention(query, key, value, **options)
    else:
        with sdpa_kernel(_BACKENDS[config]):
            result = functional.scaled_dot_product_attention(query, key, value, **options)
    return result.transpose(1, 2).reshape(call.shape)


def _torch_configs(call: Call, arch: int) -> tuple[Any, ...]:
    query, _, value = _heads(call)
    size = query.shape[3]
    half = query.dtype.itemsize == 2
    fitting = [name for name in _BACKENDS if size <= _LARGEST_HEAD[name] and (half or name == "efficient")]
    return (None, *(name for name in fitting if size % 8 == 0 and value.shape[3] == size))


IMPLEMENTATIONS = {"attention": (Implementation("torch", _torch, configs=_torch_configs),)}
