"""The specification of every ``fastdiff::`` op, in plain PyTorch.

Each function is the op's CPU implementation inside PyTorch, what every kernel test compares with, and what
every benchmark verifies against before it prints a number. They compute in the dtype of their inputs: called
with float32 they are the op, called with float64 they are the yardstick for its rounding. No function returns
memory of its arguments.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from fastdiff.errors import InputError

__all__ = [
    "attention",
    "check_attention",
    "check_group_norm_silu",
    "geglu",
    "group_norm_silu",
    "quick_gelu",
    "scheduler_step",
]


def attention(
    query: Tensor, key: Tensor, value: Tensor, num_heads: int, scale: float, causal: bool = False
) -> Tensor:
    """Scaled dot-product attention (Vaswani et al. 2017, eq. 1) of ``num_heads`` heads, side by side.

    ``query``: (B, N, H·d), ``key``: (B, M, H·d), ``value``: (B, M, H·e), result: (B, N, H·e). ``causal``
    keeps position n from seeing key positions after n.
    """
    check_attention(query, key, value, num_heads)
    q, k, v = (
        x.reshape(*x.shape[:2], num_heads, x.shape[2] // num_heads).transpose(1, 2)  # (B, H, …, d)
        for x in (query, key, value)
    )
    scores = scale * (q @ k.transpose(2, 3))  # (B, H, N, M)
    if causal:
        n, m = scores.shape[2:]
        later = torch.arange(m, device=q.device) > torch.arange(n, device=q.device).unsqueeze(1)
        scores = scores.masked_fill(later, -math.inf)
    result: Tensor = torch.softmax(scores, 3) @ v  # (B, H, N, e)
    return result.transpose(1, 2).flatten(2)


def check_attention(query: Tensor, key: Tensor, value: Tensor, num_heads: int) -> None:
    """Raise InputError for arguments that :func:`attention` does not take."""
    shapes = ", ".join(str(tuple(x.shape)) for x in (query, key, value))
    if not query.dim() == key.dim() == value.dim() == 3:
        raise InputError(f"query, key, value: found shapes {shapes}, wanted three axes each")
    if query.shape[2] != key.shape[2] or key.shape[1] != value.shape[1]:
        raise InputError(
            f"query, key, value: found shapes {shapes}, wanted query and key of one width, "
            "key and value of one length"
        )
    if num_heads < 1 or query.shape[2] % num_heads or value.shape[2] % num_heads:
        raise InputError(
            f"num_heads: found {num_heads} for widths {query.shape[2]} and {value.shape[2]}, "
            "wanted a divisor of both"
        )


def geglu(x: Tensor) -> Tensor:
    """``a · gelu(b)`` of the halves ``a``, ``b`` of the last axis (Shazeer 2020, eq. 6), with the exact GELU.

    ``x``: (…, 2·C), result: (…, C).
    """
    if x.dim() == 0 or x.shape[-1] % 2:
        raise InputError(f"x: found shape {tuple(x.shape)}, wanted an even last axis")
    a, b = x.chunk(2, -1)
    return a * (0.5 * b * (1 + torch.erf(b * math.sqrt(0.5))))


def quick_gelu(x: Tensor) -> Tensor:
    """``x · sigmoid(1.702 x)``, GELU as Hendrycks and Gimpel 2016, section 2, approximate it. Any shape."""
    return x * torch.sigmoid(1.702 * x)


def group_norm_silu(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    num_groups: int,
    eps: float = 1e-5,
    silu: bool = True,
    layout: str = "NHWC",
) -> Tensor:
    """Group normalisation (Wu and He 2018), then SiLU if asked for.

    ``x``: (N, …, C) in layout "NHWC", (N, C, …) in layout "NCHW"; ``weight``, ``bias``: (C,) or None for ones
    and zeros. The variance is biased and taken around the mean, not from a difference of squares.
    """
    check_group_norm_silu(x, weight, bias, num_groups, layout)
    x = x.movedim(-1, 1) if layout == "NHWC" else x  # (N, C, …)
    grouped = x.reshape(x.shape[0], num_groups, x.shape[1] // num_groups * math.prod(x.shape[2:]))
    centred = grouped - grouped.mean(dim=2, keepdim=True)
    variance = centred.square().mean(dim=2, keepdim=True)
    y = (centred * torch.rsqrt(variance + eps)).reshape(x.shape)
    per_channel = (-1, *(1,) * (x.ndim - 2))  # (C, 1, …)
    if weight is not None:
        y = y * weight.reshape(per_channel)
    if bias is not None:
        y = y + bias.reshape(per_channel)
    if silu:
        y = y * torch.sigmoid(y)
    return (y.movedim(1, -1) if layout == "NHWC" else y).contiguous()


def check_group_norm_silu(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, num_groups: int, layout: str
) -> None:
    """Raise InputError for arguments that :func:`group_norm_silu` does not take."""
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
    """Return (out, guided) of one solver step with classifier-free guidance (Ho and Salimans 2022).

    All tensors have one shape. ``guided`` is the model output after guidance, which multistep solvers keep.
    """
    guided = cond.clone() if uncond is None else uncond + guidance * (cond - uncond)
    out = sample_coef * sample + output_coef * guided
    for coef, array in zip(history_coefs, history, strict=True):
        out = out + coef * array
    if noise is not None:
        out = out + noise_coef * noise
    return out, guided
