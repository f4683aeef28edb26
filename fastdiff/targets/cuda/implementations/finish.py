"""What follows a library's convolution or GEMM, in one pass over its result."""

from __future__ import annotations

import torch
from torch import Tensor

from fastdiff.kernels import reference

__all__ = ["finish"]


def finish(
    y: Tensor,
    bias: Tensor | None,
    vector: Tensor | None,
    residual: Tensor | None,
    activation: str,
    scale: float,
) -> Tensor:
    """``scale · (activation(y + bias + vector[:, None, None, :]) + residual)``, in the dtype of ``y``.

    ``y``: (…, C), ``bias``: (C,), ``vector``: (B, C), ``residual``: the shape of the result.
    """
    plain = bias is None and vector is None and residual is None and activation == "none" and scale == 1
    if plain:
        return y
    if y.is_cuda:
        from fastdiff.kernels.triton.epilogue import epilogue

        result: Tensor = epilogue(y, bias, vector, residual, activation, scale)
        return result
    return _in_torch(y, bias, vector, residual, activation, scale)


def _in_torch(
    y: Tensor,
    bias: Tensor | None,
    vector: Tensor | None,
    residual: Tensor | None,
    activation: str,
    scale: float,
) -> Tensor:
    if bias is not None:
        y = y + bias
    if vector is not None:
        y = y + vector[:, None, None, :]
    match activation:
        case "silu":
            y = torch.nn.functional.silu(y)
        case "gelu":
            y = torch.nn.functional.gelu(y)
        case "quick_gelu":
            y = reference.quick_gelu(y)
        case "geglu":
            a, b = y.chunk(2, -1)
            y = a * torch.nn.functional.gelu(b)
    if residual is not None:
        y = y + residual
    return y if scale == 1 else y * scale
