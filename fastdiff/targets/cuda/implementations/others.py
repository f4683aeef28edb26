"""Ops that are views, copies or a single pass over memory: PyTorch runs them as they are.

A fused U-Net has nothing of these in its steps but views and the concatenations of its skip connections.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from fastdiff.kernels import reference
from fastdiff.targets.cuda.calls import Call
from fastdiff.targets.cuda.implementations.implementation import Implementation

__all__ = ["IMPLEMENTATIONS"]

_UNARY: dict[str, Callable[[Tensor], Tensor]] = {
    "copy": torch.clone,
    "silu": functional.silu,
    "gelu": functional.gelu,
    "quick_gelu": reference.quick_gelu,
    "gelu_tanh": lambda x: functional.gelu(x, approximate="tanh"),
    "relu": torch.relu,
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
    "exp": torch.exp,
    "sin": torch.sin,
    "cos": torch.cos,
    "sqrt": torch.sqrt,
    "negate": torch.neg,
}
_BINARY: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "add": torch.add,
    "subtract": torch.sub,
    "multiply": torch.mul,
    "divide": torch.div,
}


def _select_token(call: Call) -> Tensor:
    x, ids = call.inputs
    assert x is not None
    assert ids is not None
    same = ids if call["token"] < 0 else (ids == call["token"]).int()
    return x[torch.arange(len(x), device=x.device), same.argmax(1)]


def _timestep_embedding(call: Call) -> Tensor:
    return reference.timestep_embedding(call.x, call.weights["frequencies"], bool(call["sine_first"]))


def _token_merge(call: Call) -> Tensor:
    """As the reference, with the number of rows that the graph gives."""
    x, plan = call.inputs
    assert x is not None
    assert plan is not None
    rows = call.shape[1]
    ones = torch.ones(plan.shape, dtype=x.dtype, device=x.device)
    counts = x.new_zeros(len(x), rows).scatter_add(1, plan, ones)
    index = plan.unsqueeze(-1).expand(x.shape)
    return x.new_zeros(call.shape).scatter_add(1, index, x) / counts.clamp_min(1).unsqueeze(-1)


def _token_unmerge(call: Call) -> Tensor:
    x, plan = call.inputs
    assert x is not None
    assert plan is not None
    return reference.token_unmerge(x, plan)


def _binary(call: Call) -> Tensor:
    a, b = call.inputs
    assert a is not None
    assert b is not None
    return _BINARY[call.node.op](a, b)


def _concat(call: Call) -> Tensor:
    return torch.cat([x for x in call.inputs if x is not None], call["axis"])


_FUNCTIONS: dict[str, Callable[[Call], Tensor]] = {
    **{op: lambda call: _UNARY[call.node.op](call.x) for op in _UNARY},
    **dict.fromkeys(_BINARY, _binary),
    "add_scalar": lambda call: call.x + call["scalar"],
    "avg_pool2d": lambda call: reference.avg_pool2d(call.x, call["factor"]),
    "clamp": lambda call: torch.clamp(call.x, call["low"], call["high"]),
    "concat": _concat,
    "constant": lambda call: call.weights["value"],
    "embedding": lambda call: call.weights["table"][call.x],
    "expand": lambda call: call.x.expand(call.shape),
    "mul_scalar": lambda call: call.x * call["scalar"],
    "permute": lambda call: call.x.permute(call["axes"]),
    "reshape": lambda call: call.x.reshape(call.shape),
    "select_token": _select_token,
    "token_match": lambda call: reference.token_match(call.x, call["numerator"], call["denominator"]),
    "token_merge": _token_merge,
    "token_unmerge": _token_unmerge,
    "slice": lambda call: call.x.narrow(call["axis"], call["start"], call.shape[call["axis"]]),
    "timestep_embedding": _timestep_embedding,
    "upsample_nearest2d": lambda call: reference.upsample_nearest2d(call.x, call["factor"], call.shape[1:3]),
}


def _run(call: Call, config: object) -> Tensor:
    return _FUNCTIONS[call.node.op](call)


IMPLEMENTATIONS = {op: (Implementation("torch", _run),) for op in _FUNCTIONS}
