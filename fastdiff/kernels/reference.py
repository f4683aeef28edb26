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
from torch.nn import functional

from fastdiff.errors import InputError
from fastdiff.kernels.reference_tokens import (
    check_token_match,
    check_token_plan,
    token_match,
    token_merge,
    token_unmerge,
)

__all__ = [
    "ACTIVATIONS",
    "TABLE_COLUMNS",
    "add_group_norm_silu",
    "attention",
    "avg_pool2d",
    "check_add_group_norm_silu",
    "check_attention",
    "check_conv2d",
    "check_epilogue",
    "check_geglu",
    "check_group_norm_silu",
    "check_layer_norm",
    "check_linear",
    "check_picture",
    "check_scheduler_step",
    "check_table_step",
    "check_timestep_embedding",
    "check_token_match",
    "check_token_plan",
    "conv2d",
    "epilogue",
    "geglu",
    "group_norm_silu",
    "layer_norm",
    "linear",
    "quick_gelu",
    "scheduler_step",
    "table_step",
    "timestep_embedding",
    "token_match",
    "token_merge",
    "token_unmerge",
    "upsample_nearest2d",
]

ACTIVATIONS = ("none", "silu", "gelu", "quick_gelu", "geglu")
"""What :func:`linear` may apply to a sum; :func:`conv2d` all but the last."""


def add_group_norm_silu(
    x: Tensor,
    bias: Tensor | None,
    vector: Tensor | None,
    residual: Tensor | None,
    norm_weight: Tensor | None,
    norm_bias: Tensor | None,
    num_groups: int,
    eps: float = 1e-5,
    silu: bool = True,
) -> tuple[Tensor, Tensor]:
    """Return (sum, normed): what follows a convolution that adds nothing, and the norm after it.

    ``sum = x + bias + vector + residual``, ``normed``: :func:`group_norm_silu` of the sum. ``x``,
    ``residual`` and results: (N, …, C), ``bias``: (C,), ``vector``: (N, C), one for all pixels of a sample.
    """
    check_add_group_norm_silu(x, bias, vector, residual, norm_weight, norm_bias, num_groups)
    total = x.clone()
    if bias is not None:
        total = total + bias
    if vector is not None:
        total = total + vector.reshape(x.shape[0], *(1,) * (x.dim() - 2), x.shape[-1])
    if residual is not None:
        total = total + residual
    total = total.contiguous()
    return total, group_norm_silu(total, norm_weight, norm_bias, num_groups, eps, silu)


def check_add_group_norm_silu(
    x: Tensor,
    bias: Tensor | None,
    vector: Tensor | None,
    residual: Tensor | None,
    norm_weight: Tensor | None,
    norm_bias: Tensor | None,
    num_groups: int,
) -> None:
    """Raise InputError for arguments that :func:`add_group_norm_silu` does not take."""
    if x.dim() < 2:
        raise InputError(f"x: found shape {tuple(x.shape)}, wanted two axes or more, (N, …, C)")
    check_group_norm_silu(x, norm_weight, norm_bias, num_groups, "NHWC")
    _check_shape("bias", bias, (x.shape[-1],))
    _check_shape("vector", vector, (x.shape[0], x.shape[-1]))
    _check_shape("residual", residual, tuple(x.shape))


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


def avg_pool2d(x: Tensor, factor: int) -> Tensor:
    """The mean of each square of ``factor`` × ``factor`` pixels.

    ``x``: (B, H, W, C), result: (B, H // factor, W // factor, C); what is left over at the right and the
    bottom is not read.
    """
    check_picture(x, factor)
    batch, height, width, channels = x.shape
    h, w = height // factor, width // factor
    whole = x[:, : h * factor, : w * factor].reshape(batch, h, factor, w, factor, channels)
    return whole.mean(dim=(2, 4))


def check_picture(x: Tensor, factor: int) -> None:
    """Raise InputError for arguments that :func:`avg_pool2d` does not take."""
    if x.dim() != 4:
        raise InputError(f"x: found shape {tuple(x.shape)}, wanted four axes (B, H, W, C)")
    if factor < 1:
        raise InputError(f"factor: found {factor}, wanted 1 or more")


def conv2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    vector: Tensor | None,
    residual: Tensor | None,
    stride: int,
    padding: Sequence[int],
    upsample: int = 1,
    activation: str = "none",
    scale: float = 1.0,
    size: Sequence[int] | None = None,
) -> Tensor:
    """``scale · (activation(conv(upsample(x)) + bias + vector) + residual)``, a picture's channels last.

    ``x``: (B, H, W, I), ``weight``: (O, I, kh, kw), ``bias``: (O,), ``vector``: (B, O), one for all pixels of
    an image, ``residual`` and result: (B, H', W', O) with ``H' = (H·upsample + top + bottom - kh) // stride +
    1`` and W' likewise. ``padding``: zeros at (top, bottom, left, right). ``upsample`` repeats each pixel so
    often in both directions; of the larger picture the convolution sees ``size`` (rows, columns), None: all,
    as in :func:`upsample_nearest2d`. ``activation``: one of ACTIVATIONS but "geglu".
    """
    check_conv2d(x, weight, bias, vector, residual, stride, padding, upsample, activation, size)
    top, bottom, left, right = padding
    picture = upsample_nearest2d(x, upsample, size).permute(0, 3, 1, 2)  # (B, I, H·upsample, W·upsample)
    padded = functional.pad(picture, (left, right, top, bottom))
    y = functional.conv2d(padded, weight, bias, stride).permute(0, 2, 3, 1)  # (B, H', W', O)
    if vector is not None:
        y = y + vector[:, None, None, :]
    return _finished(y, residual, activation, scale)


def check_conv2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    vector: Tensor | None,
    residual: Tensor | None,
    stride: int,
    padding: Sequence[int],
    upsample: int = 1,
    activation: str = "none",
    size: Sequence[int] | None = None,
) -> None:
    """Raise InputError for arguments that :func:`conv2d` does not take."""
    check_picture(x, 1)
    if weight.dim() != 4 or weight.shape[1] != x.shape[3]:
        raise InputError(f"weight: found shape {tuple(weight.shape)}, wanted (O, {x.shape[3]}, kh, kw)")
    if len(padding) != 4 or min(padding) < 0:
        raise InputError(f"padding: found {list(padding)}, wanted (top, bottom, left, right), none negative")
    for name, value in (("stride", stride), ("upsample", upsample)):
        if value < 1:
            raise InputError(f"{name}: found {value}, wanted 1 or more")
    if activation not in ACTIVATIONS or activation == "geglu":
        wanted = ", ".join(name for name in ACTIVATIONS if name != "geglu")
        raise InputError(f"activation: found {activation!r}, wanted one of {wanted}")
    seen = upsampled_size(x, upsample, size)
    sizes = [seen[axis] + sum(padding[2 * axis : 2 * axis + 2]) for axis in (0, 1)]
    if any(size < kernel for size, kernel in zip(sizes, weight.shape[2:], strict=True)):
        raise InputError(
            f"x: found {sizes[0]} × {sizes[1]} pixels with padding, wanted at least the kernel's "
            f"{weight.shape[2]} × {weight.shape[3]}"
        )
    batch, out = x.shape[0], weight.shape[0]
    height, width = ((size - k) // stride + 1 for size, k in zip(sizes, weight.shape[2:], strict=True))
    _check_shape("bias", bias, (out,))
    _check_shape("vector", vector, (batch, out))
    _check_shape("residual", residual, (batch, height, width, out))


def epilogue(
    x: Tensor,
    bias: Tensor | None = None,
    vector: Tensor | None = None,
    residual: Tensor | None = None,
    activation: str = "none",
    scale: float = 1.0,
) -> Tensor:
    """``scale · (activation(x + bias + vector) + residual)``, what follows a library's GEMM or convolution.

    ``x``: (N, …, C), ``bias``: (C,), ``vector``: (N, C), one for all pixels of a sample, ``residual`` and
    result: (N, …, C), or (N, …, C / 2) with ``activation`` "geglu", one of ACTIVATIONS.
    """
    check_epilogue(x, bias, vector, residual, activation)
    y = x.clone()
    if bias is not None:
        y = y + bias
    if vector is not None:
        y = y + vector.reshape(x.shape[0], *(1,) * (x.dim() - 2), x.shape[-1])
    return _finished(y, residual, activation, scale)


def check_epilogue(
    x: Tensor, bias: Tensor | None, vector: Tensor | None, residual: Tensor | None, activation: str = "none"
) -> None:
    """Raise InputError for arguments that :func:`epilogue` does not take."""
    if x.dim() < 2:
        raise InputError(f"x: found shape {tuple(x.shape)}, wanted two axes or more, (N, …, C)")
    if activation not in ACTIVATIONS:
        raise InputError(f"activation: found {activation!r}, wanted one of {', '.join(ACTIVATIONS)}")
    channels = x.shape[-1]
    if activation == "geglu" and channels % 2:
        raise InputError(f"x: found {channels} channels, wanted an even number for geglu")
    _check_shape("bias", bias, (channels,))
    _check_shape("vector", vector, (x.shape[0], channels))
    out = channels // 2 if activation == "geglu" else channels
    _check_shape("residual", residual, (*x.shape[:-1], out))


def layer_norm(
    x: Tensor,
    residual: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float = 1e-5,
) -> tuple[Tensor, Tensor]:
    """(``x + residual``, its layer normalisation (Ba et al. 2016, eq. 3) over the last axis).

    ``x``, ``residual`` and both results: (…, C), ``weight``, ``bias``: (C,) or None for ones and zeros.
    Without a residual the first result equals ``x``. The variance is biased and taken around the mean.
    """
    check_layer_norm(x, residual, weight, bias)
    total = (x.clone() if residual is None else x + residual).contiguous()
    centred = total - total.mean(dim=-1, keepdim=True)
    y = centred * torch.rsqrt(centred.square().mean(dim=-1, keepdim=True) + eps)
    if weight is not None:
        y = y * weight
    if bias is not None:
        y = y + bias
    return total, y


def check_layer_norm(x: Tensor, residual: Tensor | None, weight: Tensor | None, bias: Tensor | None) -> None:
    """Raise InputError for arguments that :func:`layer_norm` does not take."""
    if x.dim() < 1 or not x.shape[-1]:
        raise InputError(f"x: found shape {tuple(x.shape)}, wanted one channel or more on the last axis")
    _check_shape("residual", residual, tuple(x.shape))
    _check_shape("weight", weight, (x.shape[-1],))
    _check_shape("bias", bias, (x.shape[-1],))


def linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    activation: str = "none",
    scale: float = 1.0,
) -> Tensor:
    """``scale · (activation(x Wᵀ + bias) + residual)`` on the last axis.

    ``x``: (…, K), ``weight``: (O, K), ``bias``: (O,), ``residual`` and result: (…, O), or (…, O / 2) with
    ``activation`` "geglu", one of ACTIVATIONS.
    """
    check_linear(x, weight, bias, residual, activation)
    return _finished(functional.linear(x, weight, bias), residual, activation, scale)


def check_linear(
    x: Tensor, weight: Tensor, bias: Tensor | None, residual: Tensor | None, activation: str = "none"
) -> None:
    """Raise InputError for arguments that :func:`linear` does not take."""
    if x.dim() < 1 or weight.dim() != 2 or weight.shape[1] != x.shape[-1]:
        raise InputError(
            f"weight: found shape {tuple(weight.shape)} for x of shape {tuple(x.shape)}, wanted (O, K) with "
            "K the last axis of x"
        )
    if activation not in ACTIVATIONS:
        raise InputError(f"activation: found {activation!r}, wanted one of {', '.join(ACTIVATIONS)}")
    out = weight.shape[0]
    if activation == "geglu" and out % 2:
        raise InputError(f"weight: found {out} rows, wanted an even number for geglu")
    _check_shape("bias", bias, (out,))
    _check_shape("residual", residual, (*x.shape[:-1], out // 2 if activation == "geglu" else out))


def _check_shape(name: str, tensor: Tensor | None, wanted: tuple[int, ...]) -> None:
    if tensor is not None and tuple(tensor.shape) != wanted:
        raise InputError(f"{name}: found shape {tuple(tensor.shape)}, wanted {wanted}")


def _finished(y: Tensor, residual: Tensor | None, activation: str, scale: float) -> Tensor:
    """``scale · (activation(y) + residual)``, contiguous."""
    match activation:
        case "silu":
            y = y * torch.sigmoid(y)
        case "gelu":
            y = 0.5 * y * (1 + torch.erf(y * math.sqrt(0.5)))
        case "quick_gelu":
            y = quick_gelu(y)
        case "geglu":
            y = geglu(y)
    if residual is not None:
        y = y + residual
    return (y if scale == 1 else scale * y).contiguous()


def geglu(x: Tensor) -> Tensor:
    """``a · gelu(b)`` of the halves ``a``, ``b`` of the last axis (Shazeer 2020, eq. 6), with the exact GELU.

    ``x``: (…, 2·C), result: (…, C).
    """
    check_geglu(x)
    a, b = x.chunk(2, -1)
    return a * (0.5 * b * (1 + torch.erf(b * math.sqrt(0.5))))


def check_geglu(x: Tensor) -> None:
    """Raise InputError for arguments that :func:`geglu` does not take."""
    if x.dim() == 0 or x.shape[-1] % 2:
        raise InputError(f"x: found shape {tuple(x.shape)}, wanted an even last axis")


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
    estimate_sample: float = 0.0,
    estimate_output: float = 1.0,
    estimate_limit: float = math.inf,
    estimate_coef: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """Return (x', d) of one solver step with classifier-free guidance (Ho and Salimans 2022).

    With x = ``sample``, hₖ = ``history[k]``, z = ``noise``::

        m  = cond                                without ``uncond``
             uncond + guidance · (cond - uncond) with it
        d  = clamp(estimate_sample · x + estimate_output · m, ±estimate_limit)
        x' = sample_coef · x + output_coef · m + Σₖ history_coefs[k] · hₖ + estimate_coef · d + noise_coef · z

    All tensors have one shape. d is what multistep solvers keep: by default m, the model output after
    guidance. Its term counts where ``estimate_coef`` is not 0.
    """
    check_scheduler_step(sample, cond, uncond, history, history_coefs, noise)
    m = cond.clone() if uncond is None else uncond + guidance * (cond - uncond)
    d = m
    if (estimate_sample, estimate_output, estimate_limit) != (0.0, 1.0, math.inf):
        d = (estimate_sample * sample + estimate_output * m).clamp(-estimate_limit, estimate_limit)
    out = sample_coef * sample + output_coef * m
    for coef, array in zip(history_coefs, history, strict=True):
        out = out + coef * array
    if estimate_coef:
        out = out + estimate_coef * d
    if noise is not None:
        out = out + noise_coef * noise
    return out, d


def check_scheduler_step(
    sample: Tensor,
    cond: Tensor,
    uncond: Tensor | None,
    history: Sequence[Tensor],
    history_coefs: Sequence[float],
    noise: Tensor | None,
) -> None:
    """Raise InputError for arguments that :func:`scheduler_step` does not take."""
    if len(history) != len(history_coefs):
        raise InputError(f"history_coefs: found {len(history_coefs)}, wanted {len(history)}, one per history")
    named = [("cond", cond), ("uncond", uncond), ("noise", noise), *(("history", h) for h in history)]
    for name, tensor in named:
        _check_shape(name, tensor, tuple(sample.shape))


TABLE_COLUMNS = (
    "guidance",
    "sample",
    "output",
    "noise",
    "estimate_sample",
    "estimate_output",
    "estimate_limit",
    "estimate_weight",
    "next_scale",
)
"""What the first columns of :func:`table_step`'s ``rows`` hold; a coefficient for each slot follows."""


def table_step(
    sample: Tensor,
    output: Tensor,
    slots: Tensor,
    rows: Tensor,
    saves: Tensor,
    counter: Tensor,
    guided: bool,
    noise: Tensor | None = None,
    rescale: Tensor | None = None,
    threshold: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Step ``counter`` of a sampler's table, with every coefficient read from device memory.

    With i = ``counter[0]``, x = ``sample``, the columns of row i by their names in TABLE_COLUMNS and hₖ the
    slots as they are before the step::

        m   = output                                      without guidance
              uncond + guidance · (cond - uncond)         with ``guided``; (uncond, cond) = halves of output
        m   = rescale[b] · m                              if given (Lin et al. 2023, section 3.4)
        d   = estimate_sample · x + estimate_output · m
        d   = clamp(d, ±estimate_limit)                   without ``threshold``
              clamp(d, ±threshold[b]) / threshold[b]      with it (Saharia et al. 2022, section 2.3)
        x'  = sample · x + output · m + Σₖ slot_k · hₖ + noise · z + estimate_weight · d

    ``sample``: (B, C, H, W) float32, ``output``: (B, C, H, W) or, with ``guided``, (2·B, C, H, W) of any
    floating dtype, ``slots``: (K, B, C, H, W), ``rows``: (S, len(TABLE_COLUMNS) + K) float32, ``saves``:
    (S, 2) int32, the slots that take x and d in each step, -1 for none, ``counter``: (1,) int32, ``noise``:
    z of every step, (S, B, C, H, W), ``rescale``, ``threshold``: (B,). Coefficients of 0 and 1 and an
    infinite limit make d = m. Its term counts where ``estimate_weight`` is not 0. Returns x', the slots
    afterwards, and what the model sees next: ``next_scale · x'`` in the dtype of ``output`` and as often as
    its batch asks for.
    """
    check_table_step(sample, output, slots, rows, saves, counter, guided, noise, rescale, threshold)
    step = int(counter[0])
    c = dict(zip(TABLE_COLUMNS, rows[step], strict=False))
    m = output.to(sample.dtype)
    if guided:
        uncond, cond = m.chunk(2)
        m = uncond + c["guidance"] * (cond - uncond)
    if rescale is not None:
        m = m * rescale.view(-1, 1, 1, 1)
    out = c["sample"] * sample + c["output"] * m
    for history, coef in zip(slots, rows[step, len(TABLE_COLUMNS) :], strict=True):
        out = out + coef * history
    if noise is not None:
        out = out + c["noise"] * noise[step]
    d = c["estimate_sample"] * sample + c["estimate_output"] * m
    if threshold is None:
        d = d.clamp(-c["estimate_limit"], c["estimate_limit"])
    else:
        limit = threshold.view(-1, 1, 1, 1)
        d = torch.minimum(torch.maximum(d, -limit), limit) / limit
    if c["estimate_weight"] != 0:
        out = out + c["estimate_weight"] * d
    slots = slots.clone()
    for slot, kept in zip(saves[step].tolist(), (sample, d), strict=True):
        if slot >= 0:
            slots[slot] = kept
    model_input = (c["next_scale"] * out).to(output.dtype)
    return out, slots, torch.cat([model_input, model_input]) if guided else model_input


def check_table_step(
    sample: Tensor,
    output: Tensor,
    slots: Tensor,
    rows: Tensor,
    saves: Tensor,
    counter: Tensor,
    guided: bool,
    noise: Tensor | None = None,
    rescale: Tensor | None = None,
    threshold: Tensor | None = None,
) -> None:
    """Raise InputError for arguments that :func:`table_step` does not take."""
    if sample.dim() != 4:
        raise InputError(f"sample: found shape {tuple(sample.shape)}, wanted four axes (B, C, H, W)")
    batch, *inner = sample.shape
    if slots.dim() != 5 or rows.dim() != 2:
        raise InputError(
            f"slots, rows: found shapes {tuple(slots.shape)}, {tuple(rows.shape)}, wanted five and two axes"
        )
    count, steps = slots.shape[0], rows.shape[0]
    _check_shape("output", output, (2 * batch if guided else batch, *inner))
    _check_shape("slots", slots, (count, *sample.shape))
    _check_shape("rows", rows, (steps, len(TABLE_COLUMNS) + count))
    _check_shape("saves", saves, (steps, 2))
    _check_shape("counter", counter, (1,))
    _check_shape("noise", noise, (steps, *sample.shape))
    _check_shape("rescale", rescale, (batch,))
    _check_shape("threshold", threshold, (batch,))


def timestep_embedding(timesteps: Tensor, frequencies: Tensor, sine_first: bool) -> Tensor:
    """The sinusoidal embedding of timesteps (Ho et al. 2020, after Vaswani et al. 2017, section 3.5).

    ``timesteps``: (B,), ``frequencies``: (half,), result: (B, 2·half), the sines of all products before the
    cosines with ``sine_first``, else after them.
    """
    check_timestep_embedding(timesteps, frequencies)
    angles = timesteps[:, None] * frequencies  # (B, half)
    parts = (angles.sin(), angles.cos())
    return torch.cat(parts if sine_first else parts[::-1], dim=1)


def check_timestep_embedding(timesteps: Tensor, frequencies: Tensor) -> None:
    """Raise InputError for arguments that :func:`timestep_embedding` does not take."""
    for name, tensor in (("timesteps", timesteps), ("frequencies", frequencies)):
        if tensor.dim() != 1:
            raise InputError(f"{name}: found shape {tuple(tensor.shape)}, wanted one axis")


def upsample_nearest2d(x: Tensor, factor: int, size: Sequence[int] | None = None) -> Tensor:
    """Each pixel repeated ``factor`` times in both directions.

    ``x``: (B, H, W, C), result: (B, factor·H, factor·W, C), or the first ``size`` (rows, columns) of it,
    fewer by less than ``factor``: a U-Net enlarges to the odd size that it once halved, rounding up.
    """
    rows, columns = upsampled_size(x, factor, size)
    batch, height, width, channels = x.shape
    repeated = x[:, :, None, :, None, :].expand(batch, height, factor, width, factor, channels)
    whole = repeated.reshape(batch, height * factor, width * factor, channels)
    return whole[:, :rows, :columns].clone()


def upsampled_size(x: Tensor, factor: int, size: Sequence[int] | None) -> tuple[int, int]:
    """Rows and columns of what :func:`upsample_nearest2d` gives. Raises InputError for other arguments."""
    check_picture(x, factor)
    whole = (x.shape[1] * factor, x.shape[2] * factor)
    if size is None:
        return whole
    if len(size) != 2 or any(not 0 <= w - s < factor for w, s in zip(whole, size, strict=True)):
        raise InputError(
            f"size: found {list(size)}, wanted rows and columns of {list(whole)}, each less by under {factor}"
        )
    return size[0], size[1]
