"""group_norm_silu, layer_norm and geglu: one pass over memory each."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.nn import functional

from fastdiff.targets.cuda.calls import Call
from fastdiff.targets.cuda.implementations import Implementation

__all__ = ["IMPLEMENTATIONS"]


def _group_norm_silu(call: Call, config: Any) -> Tensor:
    x = call.x.movedim(-1, 1)  # channels last in memory, which PyTorch's kernel knows
    y = functional.group_norm(x, call["groups"], call.weight("weight"), call.weight("bias"), call["eps"])
    y = y.movedim(1, -1)
    return functional.silu(y) if call["silu"] else y


def _layer_norm(call: Call, config: Any) -> Tensor:
    x = call.x
    return functional.layer_norm(x, x.shape[-1:], call.weight("weight"), call.weight("bias"), call["eps"])


def _geglu(call: Call, config: Any) -> Tensor:
    a, b = call.x.chunk(2, -1)
    return a * functional.gelu(b)


IMPLEMENTATIONS = {
    "geglu": (Implementation("torch", _geglu),),
    "group_norm_silu": (Implementation("torch", _group_norm_silu),),
    "layer_norm": (Implementation("torch", _layer_norm),),
}
