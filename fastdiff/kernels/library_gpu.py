"""What the registered ops run on a GPU: Triton's kernels, for every layout and dtype that an op may meet.

A graph that Inductor or ``torch.export`` runs keeps no promises about strides: what a kernel cannot read as
it lies is made contiguous first. What no kernel is written for (float64, a scale that is not positive) goes
through the reference, on the GPU. The kernels, and Triton, are imported when an op first runs.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fastdiff.kernels import reference
from fastdiff.kernels.layout import row_step

__all__ = [
    "add_group_norm_silu",
    "attention",
    "conv2d",
    "epilogue",
    "geglu",
    "group_norm_silu",
    "layer_norm",
    "like",
    "linear",
    "scheduler_step",
    "table_step",
    "table_step_",
]

_DTYPES = (torch.float16, torch.bfloat16, torch.float32)
_MOST_HISTORY = 4  # that scheduler_step's kernel takes


def _kernel(*tensors: Tensor | None) -> bool:
    """Whether the kernels take the dtypes."""
    return all(x is None or x.dtype in _DTYPES for x in tensors)


def _readable(x: Tensor) -> Tensor:
    """``x`` where its last axis is contiguous and its rows are evenly spaced, else a contiguous copy."""
    return x.contiguous() if row_step(x) is None else x


def _optional(x: Tensor | None) -> Tensor | None:
    return None if x is None else _readable(x)


def like(x: Tensor, model: Tensor) -> Tensor:
    """``x`` with the strides of ``torch.empty_like(model)``, copied where it has others."""
    laid = torch.empty_like(model, dtype=x.dtype)
    return x if x.stride() == laid.stride() else laid.copy_(x)


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
    """:func:`reference.add_group_norm_silu`."""
    given = (x, bias, vector, residual, norm_weight, norm_bias)
    options = (num_groups, eps, silu)
    if not _kernel(*given):
        total, normed = reference.add_group_norm_silu(*given, *options)
        return total.contiguous(), normed
    from fastdiff.kernels.triton.group_norm_silu import add_group_norm_silu as kernel

    added = (_optional(bias), _optional(vector), _optional(residual))
    kept, result = kernel(
        _readable(x), *added, _optional(norm_weight), _optional(norm_bias), num_groups, eps, silu
    )
    assert kept is not None
    return kept, result


def attention(
    query: Tensor, key: Tensor, value: Tensor, num_heads: int, scale: float, causal: bool = False
) -> Tensor:
    """:func:`reference.attention`."""
    given = (query, key, value)
    if not _kernel(*given) or not scale > 0:
        return reference.attention(*given, num_heads, scale, causal).contiguous()
    from fastdiff.kernels.triton.attention import attention as kernel

    parts = [x if x.stride(-1) == 1 else x.contiguous() for x in given]
    return kernel(parts[0], parts[1], parts[2], num_heads, scale, causal)


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
    """:func:`reference.conv2d`. A picture of which not all is seen is enlarged in memory."""
    added = (_optional(bias), _optional(vector), _optional(residual))
    if size is not None:
        x, upsample = reference.upsample_nearest2d(x, upsample, size), 1
    spatial = (stride, padding, upsample)
    if not _kernel(x, weight, *added):
        return reference.conv2d(x, weight, *added, *spatial, activation, scale)
    from fastdiff.kernels.triton.conv2d import conv2d as kernel

    return kernel(_readable(x), weight, *added, *spatial, activation, scale)


def epilogue(
    x: Tensor,
    bias: Tensor | None = None,
    vector: Tensor | None = None,
    residual: Tensor | None = None,
    activation: str = "none",
    scale: float = 1.0,
) -> Tensor:
    """:func:`reference.epilogue`."""
    added = (_optional(bias), _optional(vector), _optional(residual))
    if not _kernel(x, *added):
        return reference.epilogue(x, *added, activation, scale)
    from fastdiff.kernels.triton.epilogue import epilogue as kernel

    return kernel(_readable(x), *added, activation, scale)


def geglu(x: Tensor) -> Tensor:
    """:func:`reference.geglu`."""
    if not _kernel(x):
        return reference.geglu(x).contiguous()
    from fastdiff.kernels.triton.geglu import geglu as kernel

    reference.check_geglu(x)
    return kernel(_readable(x))


def group_norm_silu(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    num_groups: int,
    eps: float = 1e-5,
    silu: bool = True,
    layout: str = "NHWC",
) -> Tensor:
    """:func:`reference.group_norm_silu`; layout "NCHW" is turned before, and its result turned back."""
    reference.check_group_norm_silu(x, weight, bias, num_groups, layout)
    if not _kernel(x, weight, bias):
        return reference.group_norm_silu(x, weight, bias, num_groups, eps, silu, layout)
    from fastdiff.kernels.triton.group_norm_silu import group_norm_silu as kernel

    picture = x if layout == "NHWC" else x.movedim(1, -1)
    y = kernel(_readable(picture), _optional(weight), _optional(bias), num_groups, eps, silu)
    return y if layout == "NHWC" else y.movedim(-1, 1).contiguous()


def layer_norm(
    x: Tensor, residual: Tensor | None, weight: Tensor | None, bias: Tensor | None, eps: float = 1e-5
) -> tuple[Tensor, Tensor]:
    """:func:`reference.layer_norm`."""
    reference.check_layer_norm(x, residual, weight, bias)
    if not _kernel(x, residual, weight, bias):
        return reference.layer_norm(x, residual, weight, bias, eps)
    from fastdiff.kernels.triton.layer_norm import layer_norm as kernel

    total, y = kernel(_readable(x), _optional(residual), _optional(weight), _optional(bias), eps)
    # the kernel gives x itself where nothing is added; an op must not
    return (x.clone(memory_format=torch.contiguous_format) if residual is None else total), y


def linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    activation: str = "none",
    scale: float = 1.0,
) -> Tensor:
    """:func:`reference.linear`."""
    if not _kernel(x, weight, bias, residual):
        return reference.linear(x, weight, bias, residual, activation, scale)
    from fastdiff.kernels.triton.linear import linear as kernel

    layer = (_readable(x), weight.contiguous(), _optional(bias), _optional(residual))
    return kernel(*layer, activation, scale)


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
    """:func:`reference.scheduler_step`, each result laid out as the tensor that it takes the place of."""
    coefs = (guidance, sample_coef, output_coef)
    if not _kernel(sample, cond, uncond, noise, *history) or len(history) > _MOST_HISTORY:
        out, guided = reference.scheduler_step(
            sample, cond, uncond, *coefs, history, history_coefs, noise, noise_coef
        )
        return like(out, sample), like(guided, cond)
    from fastdiff.kernels.triton.scheduler_step import scheduler_step as kernel

    reference.check_scheduler_step(sample, cond, uncond, history, history_coefs, noise)
    dense = like(sample, sample)
    others = [None if x is None else like(x, dense) for x in (cond, uncond, noise)]
    assert others[0] is not None
    kept = [like(x, dense) for x in history]
    out, guided = kernel(dense, others[0], others[1], *coefs, kept, history_coefs, others[2], noise_coef)
    return out, like(guided, cond)


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
    """:func:`reference.table_step`, on copies of the sample and of the slots."""
    reference.check_table_step(sample, output, slots, rows, saves, counter, guided, noise, rescale, threshold)
    following, kept = (x.clone(memory_format=torch.contiguous_format) for x in (sample, slots))
    model_input = table_step_(
        following, output, kept, rows, saves, counter, guided, noise, rescale, threshold
    )
    return following, kept, model_input.contiguous()


def table_step_(
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
) -> Tensor:
    """:func:`reference.table_step` in place; what the model sees next, laid out as ``output``.

    ``sample`` and ``slots`` lie densely in one order. Raises InputError where they do not.
    """
    from fastdiff.kernels.triton.table_step import table_step as kernel

    reference.check_table_step(sample, output, slots, rows, saves, counter, guided, noise, rescale, threshold)
    strides = sample.stride()[1:]
    dense = [x if x is None or x.stride()[-3:] == strides else _ordered(x, sample) for x in (output, noise)]
    assert dense[0] is not None
    vectors = [None if x is None else x.contiguous() for x in (rescale, threshold)]
    tables = (rows.contiguous(), saves.contiguous(), counter)
    _, _, model_input = kernel(sample, dense[0], slots, *tables, guided, dense[1], *vectors)
    return like(model_input, output)


def _ordered(x: Tensor, sample: Tensor) -> Tensor:
    """A copy of (…, C, H, W) whose pictures lie in memory as those of ``sample`` do."""
    order = sorted(range(-3, 0), key=lambda axis: sample.stride(axis), reverse=True)
    moved = x.movedim(order, (-3, -2, -1)).contiguous()
    return moved.movedim((-3, -2, -1), order)
