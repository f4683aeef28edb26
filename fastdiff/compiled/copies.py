"""Copies of modules that share their weights."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["private_copy"]


def private_copy(module: nn.Module, own: bool) -> Any:
    """A copy in float32, on the CPU, in evaluation mode and without gradients, to change as one likes.

    It shares the weights that are float32 on the CPU already, unless it shall ``own`` all of them.
    """

    def plain(tensor: Tensor) -> Tensor:
        kind = torch.float32 if tensor.is_floating_point() else tensor.dtype
        return tensor.detach().to("cpu", kind, copy=own)

    memo: dict[int, Any] = {
        id(weight): nn.Parameter(plain(weight), requires_grad=False) for weight in module.parameters()
    }
    memo.update((id(buffer), plain(buffer)) for buffer in module.buffers())
    return copy.deepcopy(module, memo).eval()
