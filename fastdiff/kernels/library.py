"""Registers the ops as ``torch.ops.fastdiff.*``, so that a captured graph can hold them.

Importing this module is the registration. On the CPU an op is its reference, whose signature is the op's;
targets replace the node with kernels of their own. The fake implementations give ``torch.export`` shapes
without computing.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastdiff.kernels import reference

__all__ = ["attention", "geglu", "group_norm_silu", "quick_gelu", "scheduler_step"]


def _register(op: str) -> Any:
    """The custom op of the reference of that name."""
    return torch.library.custom_op(
        f"fastdiff::{op}", getattr(reference, op), mutates_args=(), device_types="cpu"
    )


attention = _register("attention")
geglu = _register("geglu")
group_norm_silu = _register("group_norm_silu")
quick_gelu = _register("quick_gelu")
scheduler_step = _register("scheduler_step")


@attention.register_fake  # type: ignore[untyped-decorator]
def _(query: Tensor, key: Tensor, value: Tensor, num_heads: int, *rest: object) -> Tensor:
    reference.check_attention(query, key, value, num_heads)
    return query.new_empty(*query.shape[:2], value.shape[2])


@geglu.register_fake  # type: ignore[untyped-decorator]
def _(x: Tensor) -> Tensor:
    return x.new_empty(*x.shape[:-1], x.shape[-1] // 2)


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
