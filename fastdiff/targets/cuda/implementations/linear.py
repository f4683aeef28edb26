"""linear: cuBLASLt with its bias epilogue through PyTorch, or Triton with all of the epilogue inside."""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor
from torch.nn import functional

from fastdiff.targets.cuda.calls import Call
from fastdiff.targets.cuda.implementations.finish import finish
from fastdiff.targets.cuda.implementations.implementation import Implementation
from fastdiff.targets.cuda.implementations.triton import config_of, evenly_spaced, json_configs

__all__ = ["IMPLEMENTATIONS"]


def _torch(call: Call, config: Any) -> Tensor:
    """CuBLASLt adds the bias; what else follows is one pass over its result."""
    _, residual = call.inputs
    y = functional.linear(call.x, call.weights["layer"], call.weight("bias"))
    return finish(y, None, None, residual, call["activation"], call["scale"])


def _triton(call: Call, config: Any) -> Tensor:
    from fastdiff.kernels.triton.linear import linear

    _, residual = call.inputs
    layer = (call.x, call.weights["layer"], call.weight("bias"), residual)
    return linear(*layer, call["activation"], call["scale"], config=config_of(config))


def _configs(call: Call, arch: int) -> tuple[Any, ...]:
    from fastdiff.kernels.triton.linear import configs

    rows = math.prod(call.shape[:-1])
    sizes = (rows, call.x.shape[-1], call.shape[-1], call["activation"])
    return json_configs(lambda: configs(*sizes, arch, call.x.dtype))


IMPLEMENTATIONS = {
    "linear": (
        Implementation("torch", _torch),
        Implementation("triton", _triton, applies=evenly_spaced, configs=_configs, triton=True),
    )
}
