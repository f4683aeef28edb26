"""Registers the ops as ``torch.ops.fastdiff.*``, so that a captured graph can hold them.

Importing this module is the registration. On the CPU an op is its reference, whose signature is the op's; on
a GPU it is a Triton kernel (library_gpu.py), or the reference where there is none. Targets replace the node
with kernels of their own. The fake implementations give ``torch.export`` and Inductor shapes without
computing: results are contiguous, but those of a step, which lie as the tensors that they take the place of.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from fastdiff.kernels import library_gpu, reference
from fastdiff.kernels.library_gpu import like
from fastdiff.kernels.reference_tokens import merged_rows

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
    "table_step",
    "table_step_",
    "timestep_embedding",
    "token_match",
    "token_merge",
    "token_unmerge",
    "upsample_nearest2d",
]


def _contiguous(function: Callable[..., Any]) -> Callable[..., Any]:
    """A reference whose results have the strides that its fake implementation announces."""

    @functools.wraps(function)
    def run(*arguments: Any, **keywords: Any) -> Any:
        results = function(*arguments, **keywords)
        if isinstance(results, tuple):
            return tuple(result.contiguous() for result in results)
        return results.contiguous()

    return run


def _register(op: str, function: Callable[..., Any] | None = None, mutates_args: tuple[str, ...] = ()) -> Any:
    """The custom op of the reference of that name, or of another function on CPU tensors."""
    function = function or _contiguous(getattr(reference, op))
    kernel = getattr(library_gpu, op, None)
    devices = "cpu" if kernel is not None else ("cpu", "cuda")
    registered = torch.library.custom_op(
        f"fastdiff::{op}", function, mutates_args=mutates_args, device_types=devices
    )
    if kernel is not None:
        registered.register_kernel("cuda", kernel)
    return registered


def _scheduler_step(
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
    """:func:`reference.scheduler_step` without an estimate, which the kernels on GPUs leave to table_step."""
    numbers = (guidance, sample_coef, output_coef)
    out, guided = reference.scheduler_step(
        sample, cond, uncond, *numbers, history, history_coefs, noise, noise_coef
    )
    return like(out, sample), like(guided, cond)


def _table_step_(
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
    """:func:`reference.table_step` that updates ``sample`` and ``slots``; what the model sees next."""
    out, kept, model_input = reference.table_step(
        sample, output, slots, rows, saves, counter, guided, noise, rescale, threshold
    )
    sample.copy_(out)
    slots.copy_(kept)
    return like(model_input, output)


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
scheduler_step = _register("scheduler_step", _scheduler_step)
table_step = _register("table_step")
table_step_ = _register("table_step_", _table_step_, ("sample", "slots"))
timestep_embedding = _register("timestep_embedding")
token_match = _register("token_match")
token_merge = _register("token_merge")
token_unmerge = _register("token_unmerge")
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
    given = (x, bias, vector, residual, norm_weight, norm_bias)
    reference.check_add_group_norm_silu(*given, num_groups)
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
    scale: float = 1.0,
    size: Sequence[int] | None = None,
) -> Tensor:
    reference.check_conv2d(x, weight, bias, vector, residual, stride, padding, upsample, activation, size)
    top, bottom, left, right = padding
    rows, columns = reference.upsampled_size(x, upsample, size)
    height = (rows + top + bottom - weight.shape[2]) // stride + 1
    width = (columns + left + right - weight.shape[3]) // stride + 1
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
    reference.check_geglu(x)
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


@table_step.register_fake  # type: ignore[untyped-decorator]
def _(sample: Tensor, output: Tensor, slots: Tensor, *rest: Any) -> tuple[Tensor, Tensor, Tensor]:
    reference.check_table_step(sample, output, slots, *rest)
    return sample.new_empty(sample.shape), slots.new_empty(slots.shape), output.new_empty(output.shape)


@table_step_.register_fake  # type: ignore[untyped-decorator]
def _(sample: Tensor, output: Tensor, slots: Tensor, *rest: Any) -> Tensor:
    reference.check_table_step(sample, output, slots, *rest)
    return torch.empty_like(output)


@timestep_embedding.register_fake  # type: ignore[untyped-decorator]
def _(timesteps: Tensor, frequencies: Tensor, sine_first: bool) -> Tensor:
    reference.check_timestep_embedding(timesteps, frequencies)
    dtype = torch.promote_types(timesteps.dtype, frequencies.dtype)
    return timesteps.new_empty(timesteps.shape[0], 2 * frequencies.shape[0], dtype=dtype)


@upsample_nearest2d.register_fake  # type: ignore[untyped-decorator]
def _(x: Tensor, factor: int, size: Sequence[int] | None = None) -> Tensor:
    rows, columns = reference.upsampled_size(x, factor, size)
    return x.new_empty(x.shape[0], rows, columns, x.shape[3])


@token_match.register_fake  # type: ignore[untyped-decorator]
def _(x: Tensor, numerator: int, denominator: int) -> Tensor:
    reference.check_token_match(x, numerator, denominator)
    return x.new_empty(x.shape[0], x.shape[1] * x.shape[2], dtype=torch.int64)


@token_merge.register_fake  # type: ignore[untyped-decorator]
def _(x: Tensor, plan: Tensor, numerator: int, denominator: int) -> Tensor:
    reference.check_token_plan(x, plan)
    return x.new_empty(x.shape[0], merged_rows(x.shape[1], numerator, denominator), x.shape[2])


@token_unmerge.register_fake  # type: ignore[untyped-decorator]
def _(x: Tensor, plan: Tensor) -> Tensor:
    reference.check_token_plan(x, plan)
    return x.new_empty(x.shape[0], plan.shape[1], x.shape[2])
