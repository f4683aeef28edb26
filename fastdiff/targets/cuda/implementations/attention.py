"""attention: PyTorch's backends, Triton's kernel, and CUDA C++ for the head sizes that it is written for."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel

from fastdiff.targets.cuda.calls import Call
from fastdiff.targets.cuda.implementations.implementation import Implementation
from fastdiff.targets.cuda.implementations.triton import config_of, json_configs, on_gpu

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


def _sizes(call: Call) -> tuple[int, int, int, int]:
    """Head size of queries and of values, queries, keys."""
    query, key, value = (x for x in call.inputs if x is not None)
    heads = call["heads"]
    return query.shape[2] // heads, value.shape[2] // heads, query.shape[1], key.shape[1]


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
    size, value_size, _, _ = _sizes(call)
    half = call.x.dtype.itemsize == 2
    fitting = [name for name in _BACKENDS if size <= _LARGEST_HEAD[name] and (half or name == "efficient")]
    return (None, *(name for name in fitting if size % 8 == 0 and value_size == size))


def _arguments(call: Call) -> tuple[Any, ...]:
    return (*call.inputs, call["heads"], call["scale"], bool(call["causal"]))


def _triton(call: Call, config: Any) -> Tensor:
    from fastdiff.kernels.triton.attention import attention

    return attention(*_arguments(call), config=config_of(config))


def _triton_configs(call: Call, arch: int) -> tuple[Any, ...]:
    from fastdiff.kernels.triton.attention import configs

    return json_configs(lambda: configs(*_sizes(call), call.x.dtype, arch))


def _cuda(call: Call, config: Any) -> Tensor:
    from fastdiff.kernels.cuda.attention import attention

    return attention(*_arguments(call), config=config)


def _cuda_configs(call: Call, arch: int) -> tuple[Any, ...]:
    from fastdiff.kernels.cuda.attention import configs

    size, _, queries, _ = _sizes(call)
    heads = call["heads"] * len(call.x)
    return configs(
        size, queries, heads, torch.cuda.get_device_properties(call.x.device).multi_processor_count
    )


def _cuda_applies(call: Call) -> bool:
    """Whether it is one of the head sizes, in halves, with rows at multiples of 16 bytes."""
    from fastdiff.kernels.cuda.attention import TILINGS

    size, value_size, _, _ = _sizes(call)
    aligned = all(
        x is not None and x.data_ptr() % 16 == 0 and x.stride(2) == 1 and x.stride(1) % 8 == 0
        for x in call.inputs
    )
    half = call.x.dtype in (torch.float16, torch.bfloat16)
    return on_gpu(call) and half and aligned and size == value_size and size in TILINGS and not call["causal"]


IMPLEMENTATIONS = {
    "attention": (
        Implementation("torch", _torch, configs=_torch_configs),
        Implementation("triton", _triton, applies=on_gpu, configs=_triton_configs, triton=True),
        Implementation("cuda", _cuda, applies=_cuda_applies, configs=_cuda_configs),
    )
}
