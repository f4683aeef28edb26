"""A module as ONNX with the operators that ONNX Runtime adds for its CUDA provider (domain com.microsoft).

The fusing passes find attention, gated GELU and group norm in the captured graph, and the exporter writes
each as one node. ONNX Runtime's transformer optimiser looks for the forms of another exporter: of ours it
finds the group norms and the approximate GELU alone.

================================  ==================================================================
``fastdiff::attention``           MultiHeadAttention
``fastdiff::geglu``               BiasSplitGelu where its kernel has the width, else Split, Gelu, Mul
``fastdiff::quick_gelu``          QuickGelu
``fastdiff::group_norm_silu``     GroupNorm between transposes to channels-last, which it demands
================================  ==================================================================
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import fx

from fastdiff.build.capture import CapturedModule
from fastdiff.build.onnx import write_onnx
from fastdiff.build.passes import fuse_activations, fuse_attention, fuse_group_norm_silu, run_passes
from fastdiff.build.passes.halves import FULL, halves
from fastdiff.build.passes.plain_attention import plain_attention
from fastdiff.errors import CaptureError
from fastdiff.kernels import library

__all__ = ["DOMAIN", "SPLIT_GELU_WIDTHS", "export_contrib"]

DOMAIN = "com.microsoft"

SPLIT_GELU_WIDTHS = (2560, 5120, 6144, 10240, 12288)
"""Widths before the split that the provider's kernel is compiled for."""

_LARGEST_GROUP = 512
"""Channels of one group that a block of the provider's group norm takes."""

_FULL = FULL - {torch.ops.aten.layer_norm.default}
"""The provider's layer norm takes halves and has statistics in float32, as ONNX's ``stash_type`` says."""


def export_contrib(module: CapturedModule, path: Path) -> tuple[Path, ...]:
    """Write a captured module in fp16 with fused operators; the files written, the model first.

    Raises CaptureError as ``export_onnx`` does.
    """
    if module.program is None:
        raise CaptureError(f"{module.name} has not been captured")
    program = run_passes(
        module.program,
        (
            fuse_attention,
            fuse_activations,
            partial(fuse_group_norm_silu, suits=_norm_suits),
            plain_attention,
            partial(halves, full=_FULL),
        ),
    )
    return write_onnx(module.with_program(program), path, _translations(), DOMAIN)


def _norm_suits(norm: fx.Node) -> bool:
    """Whether the provider's kernel takes a group norm: a picture, and groups of pairs of channels."""
    shape = norm.args[0].meta["val"].shape  # type: ignore[union-attr]
    group = shape[1] // norm.args[1]
    affine = len(norm.args) > 3 and None not in norm.args[2:4]
    return affine and len(shape) == 4 and group % 2 == 0 and group <= _LARGEST_GROUP


def _translations() -> dict[Any, Any]:
    """How the ops of the fused graph are written, as functions of onnxscript."""
    import onnx
    import onnxscript
    from onnxscript import opset20 as op

    domain = onnxscript.values.Opset(DOMAIN, 1)
    kind = onnx.defs.OpSchema.AttrType

    def operator(name: str, inputs: int, attributes: dict[str, Any]) -> Any:
        """An operator of the domain; onnx does not know their schemas."""
        parameter = onnx.defs.OpSchema.FormalParameter
        schema = onnx.defs.OpSchema(
            name,
            DOMAIN,
            1,
            inputs=[parameter(f"input_{i}", f"T{i}") for i in range(inputs)],
            outputs=[parameter("output", "T0")],
            type_constraints=[(f"T{i}", ["tensor(float)", "tensor(float16)"], "") for i in range(inputs)],
            attributes=[onnx.defs.OpSchema.Attribute(key, value, "") for key, value in attributes.items()],
        )
        return onnxscript.values.Op(domain, name, schema)

    attention_op = operator(
        "MultiHeadAttention", 3, {"num_heads": kind.INT, "scale": kind.FLOAT, "unidirectional": kind.INT}
    )
    split_gelu_op = operator("BiasSplitGelu", 2, {})
    quick_gelu_op = operator("QuickGelu", 1, {"alpha": kind.FLOAT})
    group_norm_op = operator(
        "GroupNorm",
        3,
        {"groups": kind.INT, "epsilon": kind.FLOAT, "activation": kind.INT, "channels_last": kind.INT},
    )

    def attention(
        query: Any, key: Any, value: Any, num_heads: int, scale: float, causal: bool = False
    ) -> Any:
        return attention_op(query, key, value, num_heads=num_heads, scale=scale, unidirectional=int(causal))

    def geglu(x: Any) -> Any:
        width = x.shape[-1]
        if width in SPLIT_GELU_WIDTHS:
            zeros = op.CastLike(op.ConstantOfShape(op.Constant(value_ints=[width])), x)
            return split_gelu_op(x, zeros)
        left, right = op.Split(x, num_outputs=2, axis=-1)
        return op.Mul(left, op.Gelu(right))

    def quick_gelu(x: Any) -> Any:
        return quick_gelu_op(x, alpha=1.702)

    def group_norm_silu(
        x: Any,
        weight: Any,
        bias: Any,
        num_groups: int,
        eps: float = 1e-5,
        silu: bool = True,
        layout: str = "NCHW",
    ) -> Any:
        rows = op.Transpose(x, perm=[0, 2, 3, 1])
        y = group_norm_op(
            rows, weight, bias, groups=num_groups, epsilon=eps, activation=int(silu), channels_last=1
        )
        return op.Transpose(y, perm=[0, 3, 1, 2])

    functions = {
        library.attention: attention,
        library.geglu: geglu,
        library.quick_gelu: quick_gelu,
        library.group_norm_silu: group_norm_silu,
    }
    return {kernel._opoverload: function for kernel, function in functions.items()}
