"""``fastdiff::linear`` in Triton: a GEMM with bias, activation, residual and scale in its epilogue.

Bytes: x, the weight and the residual once, the result once; 2·M·K·O operations. ``geglu`` multiplies a
program's rows by the weights of values and of gates together, so that neither is written.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastdiff.kernels import reference
from fastdiff.kernels.triton.activation import activate, gelu
from fastdiff.kernels.triton.aot import Build
from fastdiff.kernels.triton.gemm_configs import gemm_configs
from fastdiff.kernels.triton.launch import (
    DTYPES,
    Config,
    architecture,
    check_kernel_tensors,
    launch,
    output,
    row_stride,
    rows_of,
)
from fastdiff.kernels.triton.specialise import specialise

__all__ = ["builds", "configs", "grouped_tile", "linear"]


@triton.jit
def grouped_tile(
    m_tiles: tl.tensor,
    n_tiles: tl.tensor,
    GROUP: tl.constexpr,
) -> tl.tensor:
    """The program's tile (m, n); GROUP rows of tiles are finished column by column, which both operands'
    tiles stay in the L2 cache for.
    """
    program = tl.program_id(0)
    group = program // (GROUP * n_tiles)
    height = tl.minimum(m_tiles - group * GROUP, GROUP)
    within = program % (GROUP * n_tiles)
    return group * GROUP + within % height, within // height


@triton.jit(do_not_specialize=["rows"])
def _linear_kernel(
    x: tl.tensor,
    weight: tl.tensor,
    bias: tl.tensor,
    residual: tl.tensor,
    y: tl.tensor,
    rows: tl.tensor,
    x_stride: tl.tensor,
    residual_stride: tl.tensor,
    y_stride: tl.tensor,
    scale: tl.tensor,
    K: tl.constexpr,
    O: tl.constexpr,  # columns of the result  # noqa: E741
    ACTIVATION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    GROUP: tl.constexpr,
) -> None:
    m, n = grouped_tile(tl.cdiv(rows, BLOCK_M), tl.cdiv(O, BLOCK_N), GROUP)
    first = (m * BLOCK_M).to(tl.int64)
    row = tl.arange(0, BLOCK_M)
    inside = row < rows - m * BLOCK_M
    column = n * BLOCK_N + tl.arange(0, BLOCK_N)
    k = tl.arange(0, BLOCK_K)
    # What lies beyond the last row or column reads row or column 0 again: no mask in the loop.
    source = x + first * x_stride + (tl.where(inside, row, 0)[:, None] * x_stride + k[None, :])
    factor = weight + tl.where(column < O, column, 0)[None, :] * K + k[:, None]
    total = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    if ACTIVATION == "geglu":
        gate_factor = factor + O * K
        gate = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    for start in range(0, K, BLOCK_K):
        if K % BLOCK_K == 0:
            a = tl.load(source + start)
            b = tl.load(factor + start)
        else:
            a = tl.load(source + start, (k < K - start)[None, :], 0.0)
            b = tl.load(factor + start, (k < K - start)[:, None], 0.0)
        total = tl.dot(a, b, total, input_precision="ieee")
        if ACTIVATION == "geglu":
            if K % BLOCK_K == 0:
                c = tl.load(gate_factor + start)
            else:
                c = tl.load(gate_factor + start, (k < K - start)[:, None], 0.0)
            gate = tl.dot(a, c, gate, input_precision="ieee")

    valid = column < O
    mask = inside[:, None] & valid[None, :]
    if bias is not None:
        total += tl.load(bias + column, valid, 0.0).to(tl.float32)[None, :]
    if ACTIVATION == "geglu":
        if bias is not None:
            gate += tl.load(bias + O + column, valid, 0.0).to(tl.float32)[None, :]
        total = total * gelu(gate)
    else:
        total = activate(total, ACTIVATION)
    if residual is not None:
        other = residual + first * residual_stride + (row[:, None] * residual_stride + column[None, :])
        total += tl.load(other, mask, 0.0).to(tl.float32)
    to = y + first * y_stride + (row[:, None] * y_stride + column[None, :])
    tl.store(to, (total * scale).to(y.dtype.element_ty), mask)


def linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    activation: str = "none",
    scale: float = 1.0,
    *,
    out: Tensor | None = None,
    config: Config | None = None,
) -> Tensor:
    """:func:`reference.linear` of fp16, bf16 or fp32 with evenly spaced rows and a contiguous weight.

    ``out`` may be ``residual``. Products of fp32 are not rounded to TF32.
    """
    reference.check_linear(x, weight, bias, residual, activation)
    outputs = weight.shape[0] // 2 if activation == "geglu" else weight.shape[0]
    out = output(out, (*x.shape[:-1], outputs), x)
    check_kernel_tensors(x=x, weight=weight, bias=bias, residual=residual, out=out)
    weight = weight.contiguous()
    rows = rows_of(out)
    if not rows:
        return out
    config = config or configs(rows, x.shape[-1], outputs, activation, architecture(x), x.dtype)[0]
    launch(
        _linear_kernel,
        (triton.cdiv(rows, config["BLOCK_M"]) * triton.cdiv(outputs, config["BLOCK_N"]),),
        *(x, weight, bias, residual, out, rows, row_stride(x, "x")),
        0 if residual is None else row_stride(residual, "residual"),
        *(row_stride(out, "out"), float(scale)),
        config=config,
        K=x.shape[-1],
        O=outputs,
        ACTIVATION=activation,
    )
    return out


def configs(
    rows: int, inputs: int, outputs: int, activation: str, arch: int, dtype: torch.dtype
) -> tuple[Config, ...]:
    """Tilings worth measuring, those that seem fastest first."""
    k_block = 64 if dtype != torch.float32 else 32
    if inputs % k_block:
        k_block = max(16, min(k_block, inputs & -inputs))
    return gemm_configs(rows, outputs, k_block, dtype, arch, 2 if activation == "geglu" else 1)


def builds(dtype: torch.dtype, arch: int) -> Iterator[Build]:
    """Of SD 1.5 the first projections at 512², a feed-forward layer with geglu, and the prompt's keys."""
    kind = f"*{DTYPES[dtype]}"
    for rows, inputs, outputs, activation, optional in (
        (8192, 320, 320, "none", ("bias", "residual")),
        (2048, 640, 2560, "geglu", ("bias",)),
        (154, 768, 640, "none", ()),
    ):
        config = configs(rows, inputs, outputs, activation, arch, dtype)[0]
        yield specialise(
            f"linear {rows}, {inputs}, {outputs} {activation}",
            _linear_kernel,
            dict.fromkeys(("x", "weight", "y", *optional), kind),
            {"K": inputs, "O": outputs, "ACTIVATION": activation},
            config,
            sizes=("rows",),
            numbers=("scale",),
        )
