"""linear: cuBLASLt with its bias epilogue through PyTorch, or Triton with all of the epilogue inside."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.nn import functional

from fastdiff.targets.cuda.calls import Call
from fastdiff.targets.cuda.implementations import Implementation
from fastdiff.targets.cuda.implementations.finish import finish

__all__ = ["IMPLEMENTATIONS"]


def _torch(call: Call, config: Any) -> Tensor:
    """CuBLASLt adds the bias; what else follows is one pass over its result."""
    _, residual = call.inputs
    y = functional.linear(call.x, call.weights["layer"], call.weight("bias"))
    return finish(y, None, None, residual, call["activation"], call["scale"])


IMPLEMENTATIONS = {"linear": (Implementation("torch", _torch),)}
