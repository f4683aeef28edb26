"""conv2d: cuDNN through PyTorch, with what follows it in one pass, or Triton with all of it inside."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from fastdiff.kernels import reference
from fastdiff.targets.cuda.calls import Call
from fastdiff.targets.cuda.implementations.finish import finish
from fastdiff.targets.cuda.implementations.implementation import Implementation
from fastdiff.targets.cuda.implementations.triton import config_of, evenly_spaced, json_configs

__all__ = ["IMPLEMENTATIONS", "convolve"]


def convolve(call: Call) -> Tensor:
    """The convolution alone, (B, H', W', O), of the upsampled and padded input."""
    x, stride = call.x, call["stride"]
    if call["upsample"] > 1:
        x = reference.upsample_nearest2d(x, call["upsample"], _seen(call))
    top, bottom, left, right = (call[f"pad_{side}"] for side in ("top", "bottom", "left", "right"))
    picture = x.permute(0, 3, 1, 2)  # channels last in memory
    if top == bottom and left == right:
        padding = (top, left)
    else:
        picture, padding = functional.pad(picture, (left, right, top, bottom)), (0, 0)
    y = functional.conv2d(picture, call.weights["layer"], None, stride, padding)
    return y.permute(0, 2, 3, 1)


def _seen(call: Call) -> tuple[int, int]:
    """Rows and columns that the kernel sees of the enlarged picture: all, or one less where it once was odd.

    Steps larger than a pixel leave open whether the last one is seen; then all are.
    """
    up, (height, width) = call["upsample"], call.x.shape[1:3]
    if call["stride"] > 1:
        return up * height, up * width
    rows = call.shape[1] + call["kernel_h"] - 1 - call["pad_top"] - call["pad_bottom"]
    columns = call.shape[2] + call["kernel_w"] - 1 - call["pad_left"] - call["pad_right"]
    return rows, columns


def _torch(call: Call, config: Any) -> Tensor:
    _, vector, residual = call.inputs
    return finish(
        convolve(call), call.weight("bias"), vector, residual, call["activation"], call["scale"]
    ).contiguous()


def _phases(call: Call, config: Any) -> Tensor:
    """A 3×3 convolution of an upsampled picture without the upsampling, in 4/9 of the multiplications.

    In a picture of doubled size three neighbours in a row come from two pixels: which two depends on whether
    the row is even or odd. So each of the four phases of the result is a 2×2 convolution of the small picture
    with sums of the weights. One convolution computes all four at every position; taking them apart is the
    pass that adds the bias.
    """
    _, vector, residual = call.inputs
    x = call.x.permute(0, 3, 1, 2)
    y = functional.conv2d(x, call.weights["layer"], None, 1, (1, 1))  # (B, 4·O, H + 1, W + 1)
    batch, height, width, channels = call.shape
    y = y.permute(0, 2, 3, 1)
    y = y.view(*y.shape[:3], 2, 2, channels)  # (B, H + 1, W + 1, py, px, O)
    image, down, right, py, px, _ = y.stride()
    # row 2·i + py of the result is phase py at position i + py
    phases = (batch, height // 2, 2, width // 2, 2, channels)
    view = y.as_strided(phases, (image, down, down + py, right, right + px, 1))
    result = view.reshape(batch, height, width, channels)
    return finish(result, call.weight("bias"), vector, residual, call["activation"], call["scale"])


def _triton(call: Call, config: Any) -> Tensor:
    """An implicit GEMM: neither the upsampled nor the padded picture is written, and nothing follows it."""
    from fastdiff.kernels.triton.conv2d import conv2d

    _, vector, residual = call.inputs
    pads = [call[f"pad_{side}"] for side in ("top", "bottom", "left", "right")]
    added = (call.weight("bias"), vector, residual)
    finish = {"activation": call["activation"], "scale": call["scale"], "size": _seen(call)}
    spatial = (call["stride"], pads, call["upsample"])
    return conv2d(call.x, call.weights["layer"], *added, *spatial, **finish, config=config_of(config))


def _triton_configs(call: Call, arch: int) -> tuple[Any, ...]:
    from fastdiff.kernels.triton.conv2d import configs

    rows = math.prod(call.shape[:-1])
    terms = call["kernel_h"] * call["kernel_w"] * call["in"]
    return json_configs(lambda: configs(rows, call["in"], call["out"], terms, arch, call.x.dtype))


def phase_weights(weight: Tensor) -> Tensor:
    """The 2×2 kernels of the four phases, (4·O, I, 2, 2), of a 3×3 kernel (O, I, 3, 3), summed in float32.

    At an even row the taps above fall on one pixel and the two others on the next; at an odd row the first
    two share one.
    """
    pairs = torch.tensor([[[1, 0, 0], [0, 1, 1]], [[1, 1, 0], [0, 0, 1]]], dtype=torch.float32)
    pairs = pairs.to(weight.device)  # (phase, tap of 2, tap of 3)
    summed = torch.einsum("pak,qbl,oikl->pqoiab", pairs, pairs, weight.float())
    kernel = summed.flatten(0, 2).to(weight.dtype)  # (4·O, I, 2, 2)
    return kernel.contiguous(memory_format=torch.channels_last)


def _upsamples(call: Call) -> bool:
    """Whether it is a 3×3 convolution of a doubled picture that keeps the size.

    Where the last row or column of that picture is cut off, a phase would see its pixel in place of padding.
    """
    pads = [call[f"pad_{side}"] for side in ("top", "bottom", "left", "right")]
    plain = call["kernel_h"] == call["kernel_w"] == 3 and call["stride"] == 1 and pads == [1, 1, 1, 1]
    whole = [2 * side for side in call.x.shape[1:3]] == list(call.shape[1:3])
    return bool(plain and call["upsample"] == 2 and whole)


IMPLEMENTATIONS = {
    "conv2d": (
        Implementation("torch", _torch),
        Implementation("triton", _triton, applies=evenly_spaced, configs=_triton_configs, triton=True),
        Implementation("phases", _phases, applies=_upsamples, prepare=phase_weights),
    )
}
