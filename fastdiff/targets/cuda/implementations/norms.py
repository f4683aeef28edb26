"""group_norm_silu, layer_norm and geglu, and both norms with the sums before them: one pass over memory each.

``add_group_norm_silu`` and ``add_layer_norm`` are what fusion.py makes of a library's convolution or GEMM
and the norm that follows it. They give the sum and the norm.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from fastdiff.targets.cuda.calls import Call
from fastdiff.targets.cuda.implementations.implementation import Implementation
from fastdiff.targets.cuda.implementations.triton import (
    config_of,
    evenly_spaced,
    json_configs,
    on_gpu,
)

__all__ = ["IMPLEMENTATIONS"]


def _group_norm(x: Tensor, call: Call, weight: str = "weight", bias: str = "bias") -> Tensor:
    """PyTorch's kernel on a picture with channels last in memory, which it knows."""
    groups, eps = call["groups"], call["eps"]
    y = functional.group_norm(x.movedim(-1, 1), groups, call.weight(weight), call.weight(bias), eps)
    y = y.movedim(1, -1)
    return functional.silu(y) if call["silu"] else y


def _group_norm_silu(call: Call, config: Any) -> Tensor:
    return _group_norm(call.x, call)


def _group_norm_silu_triton(call: Call, config: Any) -> Tensor:
    from fastdiff.kernels.triton.group_norm_silu import group_norm_silu

    affine = (call.weight("weight"), call.weight("bias"))
    options = (call["groups"], call["eps"], bool(call["silu"]))
    return group_norm_silu(call.x, *affine, *options, config=config_of(config))


def _group_norm_silu_configs(call: Call, arch: int) -> tuple[Any, ...]:
    from fastdiff.kernels.triton.group_norm_silu import configs

    pixels = math.prod(call.x.shape[1:-1])
    return json_configs(lambda: configs(pixels, call.x.shape[-1], call["groups"]))


def _takes_any_picture(config: Any) -> bool:
    """Whether a tiling does not hold all pixels of a group at once."""
    return config is None or "APPLY_P" in config["blocks"]


def _holds_the_picture(call: Call, config: Any) -> bool:
    """Whether a tiling that holds all pixels of a group does so for this call, and not mostly in vain."""
    pixels, held = math.prod(call.x.shape[1:-1]), config["blocks"]["P_BLOCK"]
    return bool(held // 4 < pixels <= held)


def _plan_takes_any_picture(config: Any) -> bool:
    return config is None or config["kind"] != "cluster"


def _plan_holds_the_picture(call: Call, config: Any) -> bool:
    """Whether the blocks of a cluster can hold the picture in their shared memory."""
    from fastdiff.kernels.cuda.group_norm_silu import Plan, gpu_of

    x, plan = call.x, Plan(**config)
    pixels = math.prod(x.shape[1:-1])
    shared = plan.shared(pixels, x.shape[-1] // call["groups"], x.element_size())
    return bool(plan.parts <= pixels and shared <= gpu_of(x.device.index).shared)


def _group_norm_silu_cuda(call: Call, config: Any) -> Tensor:
    from fastdiff.kernels.cuda.group_norm_silu import Plan, group_norm_silu

    affine = (call.weight("weight"), call.weight("bias"))
    plan = None if config is None else Plan(**config)
    return group_norm_silu(call.x, *affine, call["groups"], call["eps"], bool(call["silu"]), config=plan)


def _group_norm_silu_cuda_configs(call: Call, arch: int) -> tuple[Any, ...]:
    from fastdiff.kernels.cuda.group_norm_silu import configs, gpu_of

    x = call.x
    pixels = math.prod(x.shape[1:-1])
    packed = x.data_ptr() % 16 == 0 and (x.shape[-1] * x.element_size()) % 16 == 0 and x.is_contiguous()
    plans = configs(
        len(x), pixels, x.shape[-1], call["groups"], x.element_size(), packed, gpu_of(x.device.index)
    )
    return tuple(dataclasses.asdict(plan) for plan in plans[:8])


def _sum_before_norm(call: Call) -> Tensor:
    x, vector, residual = call.inputs
    assert x is not None
    if (bias := call.weight("sum_bias")) is not None:
        x = x + bias
    if vector is not None:
        x = x + vector.view(len(vector), *(1,) * (x.dim() - 2), -1)
    return x if residual is None else x + residual


def _add_group_norm_silu(call: Call, config: Any) -> tuple[Tensor, Tensor]:
    total = _sum_before_norm(call)
    return total, _group_norm(total, call)


def _add_group_norm_silu_triton(call: Call, config: Any) -> tuple[Tensor, Tensor]:
    from fastdiff.kernels.triton.group_norm_silu import add_group_norm_silu

    x, vector, residual = call.inputs
    assert x is not None
    total, normed = add_group_norm_silu(
        x,
        call.weight("sum_bias"),
        vector,
        residual,
        call.weight("weight"),
        call.weight("bias"),
        call["groups"],
        call["eps"],
        bool(call["silu"]),
        config=config_of(config),
    )
    assert total is not None
    return total, normed


def _layer_norm(call: Call, config: Any) -> Tensor:
    x = call.x
    return functional.layer_norm(x, x.shape[-1:], call.weight("weight"), call.weight("bias"), call["eps"])


def _layer_norm_triton(call: Call, config: Any) -> Tensor:
    from fastdiff.kernels.triton.layer_norm import layer_norm

    affine = (call.weight("weight"), call.weight("bias"))
    return layer_norm(call.x, None, *affine, call["eps"], config=config_of(config))[1]


def _layer_norm_configs(call: Call, arch: int) -> tuple[Any, ...]:
    from fastdiff.kernels.triton.layer_norm import configs

    return json_configs(lambda: configs(call.x.shape[-1], arch))


def _add_layer_norm(call: Call, config: Any) -> tuple[Tensor, Tensor]:
    total = _sum_before_norm(call)
    weight, bias = call.weight("weight"), call.weight("bias")
    return total, functional.layer_norm(total, total.shape[-1:], weight, bias, call["eps"])


def _add_layer_norm_triton(call: Call, config: Any) -> tuple[Tensor, Tensor]:
    from fastdiff.kernels.triton.layer_norm import layer_norm

    x, _, residual = call.inputs
    assert x is not None
    affine = (call.weight("weight"), call.weight("bias"))
    return layer_norm(x, residual, *affine, call["eps"], config=config_of(config))


def _adds_a_residual_alone(call: Call) -> bool:
    _, vector, residual = call.inputs
    return evenly_spaced(call) and vector is None and residual is not None and "sum_bias" not in call.weights


def _geglu(call: Call, config: Any) -> Tensor:
    a, b = call.x.chunk(2, -1)
    return a * functional.gelu(b)


def _geglu_triton(call: Call, config: Any) -> Tensor:
    from fastdiff.kernels.triton.geglu import geglu

    return geglu(call.x, config=config_of(config))


def _geglu_configs(call: Call, arch: int) -> tuple[Any, ...]:
    from fastdiff.kernels.triton.geglu import configs

    return json_configs(lambda: configs(call.shape[-1], arch))


def _dense(call: Call) -> bool:
    return on_gpu(call) and call.x.is_contiguous() and call.x.dtype != torch.float64


def _triton(
    run: Callable[[Call, Any], Any],
    configs: Callable[[Call, int], tuple[Any, ...]],
    applies: Callable[[Call], bool] = evenly_spaced,
) -> Implementation:
    return Implementation("triton", run, applies=applies, configs=configs, triton=True)


def _group_norm_triton(run: Callable[[Call, Any], Any]) -> Implementation:
    """A norm whose tilings are for pictures of some sizes."""
    return dataclasses.replace(
        _triton(run, _group_norm_silu_configs), universal=_takes_any_picture, fits=_holds_the_picture
    )


IMPLEMENTATIONS = {
    "add_group_norm_silu": (
        Implementation("torch", _add_group_norm_silu),
        _group_norm_triton(_add_group_norm_silu_triton),
    ),
    "add_layer_norm": (
        Implementation("torch", _add_layer_norm),
        _triton(_add_layer_norm_triton, _layer_norm_configs, _adds_a_residual_alone),
    ),
    "geglu": (Implementation("torch", _geglu), _triton(_geglu_triton, _geglu_configs)),
    "group_norm_silu": (
        Implementation("torch", _group_norm_silu),
        _group_norm_triton(_group_norm_silu_triton),
        Implementation(
            "cuda",
            _group_norm_silu_cuda,
            applies=_dense,
            configs=_group_norm_silu_cuda_configs,
            universal=_plan_takes_any_picture,
            fits=_plan_holds_the_picture,
        ),
    ),
    "layer_norm": (Implementation("torch", _layer_norm), _triton(_layer_norm_triton, _layer_norm_configs)),
}
