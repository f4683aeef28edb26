"""Convolutions of NHWC activations: direct, or by Winograd's minimal filtering."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from fastdiff import _C
from fastdiff.errors import InputError
from fastdiff.kernels.resample import cropped

__all__ = ["ALGORITHMS", "Conv2dWeight", "conv2d", "pack_conv2d"]

FloatArray = npt.NDArray[np.float32]

ALGORITHMS = ("direct", "winograd2", "winograd4", "winograd2_plain")
"""An implicit GEMM for any kernel, and F(2×2, 3×3) and F(4×4, 3×3) for 3×3 kernels with stride 1."""


@dataclass(frozen=True)
class Conv2dWeight:
    """Weights packed for one algorithm; ``shape`` is (out, in, kernel_h, kernel_w)."""

    shape: tuple[int, int, int, int]
    algorithm: str
    precision: str
    packed: npt.NDArray[np.uint8]


def pack_conv2d(weight: FloatArray, algorithm: str = "direct", precision: str = "fp32") -> Conv2dWeight:
    """Pack ``weight`` (out, in, kernel_h, kernel_w) for one of ALGORITHMS.

    Winograd's weights are transformed in double precision; they are 1.8 and 4 times as many.
    ``precision`` "fp16" stores halves; the arithmetic stays float32.
    Raises :class:`fastdiff.errors.InputError` for another dtype, shape, algorithm or precision.
    """
    packed = _C.conv2d_pack(weight, algorithm, precision)
    out, inner, height, width = weight.shape
    return Conv2dWeight((out, inner, height, width), algorithm, precision, packed)


def conv2d(
    x: FloatArray,
    weight: Conv2dWeight,
    bias: FloatArray | None = None,
    vector: FloatArray | None = None,
    residual: FloatArray | None = None,
    *,
    stride: int = 1,
    padding: tuple[int, int, int, int] = (0, 0, 0, 0),
    upsample: int = 1,
    size: tuple[int, int] | None = None,
    activation: str = "none",
    scale: float = 1.0,
    out: FloatArray | None = None,
    threads: int = 1,
    isa: str | None = None,
) -> FloatArray:
    """Return ``scale · (activation(conv(upsample(x)) + bias + vector) + residual)``.

    ``x``: (B, H, W, I), ``bias``: (O,), ``vector``: (B, O), ``residual`` and result: (B, H', W', O), all
    float32. ``padding``: zeros at (top, bottom, left, right). ``upsample`` 2 repeats each pixel in both
    directions, without a copy of the larger picture for Winograd; of that the convolution sees ``size``
    (rows, columns), None: all, as in :func:`fastdiff.kernels.upsample_nearest2d`. ``activation``: "none",
    "silu", "gelu" or "quick_gelu". Pixels of ``x``, ``residual`` and ``out`` may be apart in memory, as those
    of a slice of the last axis are. ``out`` is allocated when None, and returned; it may be ``residual``
    itself. The result does not depend on ``threads``. Winograd: Lavin and Gray 2016.

    Raises :class:`fastdiff.errors.InputError` for another dtype, shape or activation, and for an algorithm
    that cannot compute this convolution.
    """
    shape = np.shape(x)
    if len(shape) != 4 or shape[3] != weight.shape[1]:
        raise InputError(f"x: found shape {shape}, wanted (batch, height, width, {weight.shape[1]})")
    top, bottom, left, right = padding
    if min(padding) < 0 or stride < 1:
        raise InputError(
            f"padding {padding} with stride {stride}: wanted no negative padding, stride 1 or more"
        )
    rows, columns = size or (shape[1] * upsample, shape[2] * upsample)
    crop = cropped((shape[1], shape[2]), upsample, size)
    if out is None:
        height = max((rows + top + bottom - weight.shape[2]) // stride + 1, 0)
        width = max((columns + left + right - weight.shape[3]) // stride + 1, 0)
        out = np.empty((shape[0], height, width, weight.shape[0]), np.float32)
    _C.conv2d(
        x,
        weight.packed,
        weight.shape,
        bias,
        vector,
        residual,
        stride,
        padding,
        upsample,
        crop,
        activation,
        scale,
        weight.algorithm,
        weight.precision,
        out,
        threads,
        isa,
    )
    return out
