"""Registers the ops as ``torch.ops.fastdiff.*``, so that a captured graph can hold them.

Importing this module is the registration. On the CPU an op is its reference, whose signature is the op's;
targets replace the node with kernels of their own. The fake implementations give ``torch.export`` shapes
without computing.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fastdiff.kernels import reference

__all__ = [
    "add_group_norm_silu",
    "attention",
    "avg_pool2d",
    "conv2d",
    "epilogue",
    "geglu",
    "group_norm_silu",
    "layer_norm",
    "linear",
    "quick_gelu",
    "scheduler_step",
    "timestep_embedding",
    "upsample_nearest2d",
]


def _register(op: str) -> Any:
    """The custom op of the reference of that name."""
    return torch.library.custom_op(
        f"fastdiff::{op}", getattr(reference, op), mutates_args=(), device_types="cpu"
    )


add_group_norm_silu = _register("add_group_norm_silu")
attention = _register("attention")
avg_pool2d = _register("avg_pool2d")
conv2d = _register("conv2d")
epilogue = _register("epilogue")
geglu = _register("geglu")
group_norm_silu = _register("group_norm_silu")
layer_norm = _register("layer_norm")
linear = _register("linear")
quick_gelu = _register("quick_gelu")
scheduler_step = _register("scheduler_step")
timestep_embedding = _register("timestep_embedding")
upsample_nearest2d = _register("upsample_nearest2d")


@add_group_norm_silu.register_fake  # type: ignore[untyped-decorator]
def _(
    x: Tensor,
    bias: Tensor | None,
    vector: Tensor | None,
    residual: Tensor | None,
    norm_weight: Tensor | None,
    norm_bias: Tensor | None,
    num_groups: int,
    *rest: object,
) -> tuple[Tensor, Tensor]:
    reference.check_add_group_norm_silu(x, bias, vector, residual, norm_weight, norm_bias, num_groups)
    return x.new_empty(x.shape), x.new_empty(x.shape)


@attention.register_fake  # type: ignore[untyped-decorator]
def _(query: Tensor, key: Tensor, value: Tensor, num_heads: int, *rest: object) -> Tensor:
    reference.check_attention(query, key, value, num_heads)
    return query.new_empty(*query.shape[:2], value.shape[2])


@avg_pool2d.register_fake  # type: ignore[untyped-decorator]
def _(x: Tensor, factor: int) -> Tensor:
    reference.check_picture(x, factor)
    batch, height, width, channels = x.shape
    return x.new_empty(batch, height // factor, width // factor, channels)


@conv2d.register_fake  # type: ignore[untyped-decorator]
def _(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    vector: Tensor | None,
    residual: Tensor | None,
    stride: int,
    padding: Sequence[int],
    upsample: int = 1,
    activation: str = "none",
    *rest: object,
) -> Tensor:
    reference.check_conv2d(x, weight, bias, vector, residual, stride, padding, upsample, activation)
    top, bottom, left, right = padding
    height = (x.shape[1] * upsample + top + bottom - weight.shape[2]) // stride + 1
    width = (x.shape[2] * upsample + left + right - weight.shape[3]) // stride + 1
    return x.new_empty(x.shape[0], height, width, weight.shape[0])


@epilogue.register_fake  # type: ignore[untyped-decorator]
def _(
    x: Tensor,
    bias: Tensor | None = None,
    vector: Tensor | None = None,
    residual: Tensor | None = None,
    activation: str = "none",
    *rest: object,
) -> Tensor:
    reference.check_epilogue(x, bias, vector, residual, activation)
    return x.new_empty(*x.shape[:-1], x.shape[-1] // 2 if activation == "geglu" else x.shape[-1])


@geglu.register_fake  # type: ignore[untyped-decorator]
def _(x: Tensor) -> Tensor:
    return x.new_empty(*x.shape[:-1], x.shape[-1] // 2)


@layer_norm.register_fake  # type: ignore[untyped-decorator]
def _(
    x: Tensor, residual: Tensor | None, weight: Tensor | None, bias: Tensor | None, *rest: object
) -> tuple[Tensor, Tensor]:
    reference.check_layer_norm(x, residual, weight, bias)
    return x.new_empty(x.shape), x.new_empty(x.shape)


@linear.register_fake  # type: ignore[untyped-decorator]
def _(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    activation: str = "none",
    *rest: object,
) -> Tensor:
    reference.check_linear(x, weight, bias, residual, activation)
    out = weight.shape[0]
    return x.new_empty(*x.shape[:-1], out // 2 if activation == "geglu" else out)


@quick_gelu.register_fake  # type: ignore[untyped-decorator]
def _(x: Tensor) -> Tensor:
    return torch.empty_like(x, memory_format=torch.contiguous_format)


@group_norm_silu.register_fake  # type: ignore[untyped-decorator]
def _(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    num_groups: int,
    eps: float = 1e-5,
    silu: bool = True,
    layout: str = "NHWC",
) -> Tensor:
    reference.check_group_norm_silu(x, weight, bias, num_groups, layout)
    return torch.empty_like(x, memory_format=torch.contiguous_format)


@scheduler_step.register_fake  # type: ignore[untyped-decorator]
def _(sample: Tensor, cond: Tensor, *rest: object) -> tuple[Tensor, Tensor]:
    return torch.empty_like(sample), torch.empty_like(cond)


@timestep_embedding.register_fake  # type: ignore[untyped-decorator]
def _(timesteps: Tensor, frequencies: Tensor, sine_first: bool) -> Tensor:
    reference.check_timestep_embedding(timesteps, frequencies)
    dtype = torch.promote_types(timesteps.dtype, frequencies.dtype)
    return timesteps.new_empty(timesteps.shape[0], 2 * frequencies.shape[0], dtype=dtype)


@upsample_nearest2d.register_fake  # type: ignore[untyped-decorator]
def _(x: Tensor, factor: int) -> Tensor:
    reference.check_picture(x, factor)
    batch, height, width, channels = x.shape
    return x.new_empty(batch, height * factor, width * factor, channels)
