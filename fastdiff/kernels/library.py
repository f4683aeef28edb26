"""Registers the ops as ``torch.ops.fastdiff.*``, so that a captured graph can hold them.

Importing this module is the registration. On the CPU an op is its reference; targets replace the node with
kernels of their own. The fake implementations give ``torch.export`` shapes without computing.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fastdiff.errors import InputError
from fastdiff.kernels import reference

__all__ = ["group_norm_silu", "scheduler_step"]


@torch.library.custom_op("fastdiff::group_norm_silu", mutates_args=(), device_types="cpu")
def group_norm_silu(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    num_groups: int,
    eps: float = 1e-5,
    silu: bool = True,
    layout: str = "NHWC",
) -> Tensor:
    """As :func:`fastdiff.kernels.reference.group_norm_silu`."""
    _check_group_norm_silu(x, weight, bias, num_groups, layout)
    return reference.group_norm_silu(x, weight, bias, num_groups, eps, silu, layout)


@group_norm_silu.register_fake
def _(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    num_groups: int,
    eps: float = 1e-5,
    silu: bool = True,
    layout: str = "NHWC",
) -> Tensor:
    _check_group_norm_silu(x, weight, bias, num_groups, layout)
    return torch.empty_like(x, memory_format=torch.contiguous_format)


@torch.library.custom_op("fastdiff::scheduler_step", mutates_args=(), device_types="cpu")
def scheduler_step(
    sample: Tensor,
    cond: Tensor,
    uncond: Tensor | None,
    guidance: float,
    sample_coef: float,
    output_coef: float,
    history: Sequence[Tensor],
    history_coefs: Sequence[float],
    noise: Tensor | None = None,
    noise_coef: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """As :func:`fastdiff.kernels.reference.scheduler_step`."""
    return reference.scheduler_step(
        sample,
        cond,
        uncond,
        guidance,
        sample_coef,
        output_coef,
        history,
        history_coefs,
        noise,
        noise_coef,
    )


@scheduler_step.register_fake
def _(
    sample: Tensor,
    cond: Tensor,
    uncond: Tensor | None,
    guidance: float,
    sample_coef: float,
    output_coef: float,
    history: Sequence[Tensor],
    history_coefs: Sequence[float],
    noise: Tensor | None = None,
    noise_coef: float = 0.0,
) -> tuple[Tensor, Tensor]:
    return torch.empty_like(sample), torch.empty_like(cond)


def _check_group_norm_silu(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, num_groups: int, layout: str
) -> None:
    if layout not in ("NHWC", "NCHW"):
        raise InputError(f"layout: found {layout!r}, wanted 'NHWC' or 'NCHW'")
    channels = x.shape[-1 if layout == "NHWC" else 1]
    if num_groups < 1 or channels % num_groups != 0:
        raise InputError(
            f"num_groups: found {num_groups} for x of shape {tuple(x.shape)}, "
            f"wanted a divisor of its {channels} channels ({layout})"
        )
    for name, tensor in (("weight", weight), ("bias", bias)):
        if tensor is not None and tensor.shape != (channels,):
            raise InputError(f"{name}: found shape {tuple(tensor.shape)}, wanted ({channels},)")
