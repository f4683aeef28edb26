"""What every implementation by a Triton kernel shares: when it applies, and its tilings as JSON."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch

from fastdiff.kernels.layout import row_step
from fastdiff.targets.cuda.calls import Call

__all__ = ["config_of", "evenly_spaced", "json_configs", "on_gpu"]

MOST = 6
"""Tilings of a kernel that are measured for a call: the estimates put them in order, and each must be
compiled.
"""

_DTYPES = (torch.float16, torch.bfloat16, torch.float32)


def on_gpu(call: Call) -> bool:
    """Whether a kernel can read the call's tensors: on a GPU, in one floating dtype."""
    tensors = [x for x in (*call.inputs, *call.weights.values()) if x is not None]
    return all(x.is_cuda and x.dtype == call.x.dtype for x in tensors) and call.x.dtype in _DTYPES


def evenly_spaced(call: Call) -> bool:
    """Whether it is :func:`on_gpu` and the rows of every input but a vector lie one distance apart."""
    return on_gpu(call) and all(x is None or x.dim() < 3 or row_step(x) is not None for x in call.inputs)


def json_configs(configs: Callable[[], Iterable[Any]]) -> tuple[Any, ...]:
    """The likeliest tilings as JSON can hold them."""
    return tuple(config.to_json() for config in list(configs())[:MOST])


def config_of(document: Any) -> Any:
    """The tiling of what :func:`json_configs` gave; None stays None."""
    from fastdiff.kernels.triton.launch import Config

    return None if document is None else Config.from_json(document)
