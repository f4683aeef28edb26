"""halves: a graph in float32 becomes one that computes in half precision, with every type written down.

Products (``linear``, ``conv2d``, ``matmul``, embeddings) take halves, with weights stored as halves. Norms,
softmax, and functions whose result says little once their argument has been rounded (sine, cosine,
exponential, logarithm, powers) take and give float32 and keep their weights in it; their result is rounded to
half if their input was. Everything else follows its inputs: half as soon as one of them is. So what is
computed from a timestep stays float32 until the first product, as in diffusers.

``fastdiff::`` ops stand for a runtime's kernels, which sum in float32 whatever they take: a norm among them
takes halves beside weights in float32.

Inputs and outputs of the graph keep their types. But for those norms no
operator meets two floating types: the casts are nodes.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx
from torch.export import ExportedProgram
from torch.export.graph_signature import TensorArgument

from fastdiff.build.passes.rewrite import Rewrite
from fastdiff.errors import CaptureError
from fastdiff.kernels import library

__all__ = ["FULL", "PRODUCTS", "halves"]

aten = torch.ops.aten

PRODUCTS = frozenset(
    {
        aten.addmm.default,
        aten.baddbmm.default,
        aten.bmm.default,
        aten.conv2d.default,
        aten.conv2d.padding,
        aten.embedding.default,
        aten.linear.default,
        aten.matmul.default,
        aten.mm.default,
        aten.scaled_dot_product_attention.default,
        library.attention._opoverload,
    }
)
"""Operators that take halves, whatever their inputs are."""

FULL = frozenset(
    {
        aten.cos.default,
        aten.exp.default,
        aten.group_norm.default,
        aten.layer_norm.default,
        aten.log.default,
        aten.mean.dim,
        aten.pow.Tensor_Scalar,
        aten.pow.Tensor_Tensor,
        aten.rsqrt.default,
        aten.sin.default,
        aten.softmax.int,
        aten.sqrt.default,
        aten.sum.dim_IntList,
        aten.var.correction,
    }
)
"""Operators that compute in float32."""


_KERNEL_NORMS = frozenset({library.group_norm_silu._opoverload})
"""Norms that take halves beside weights in float32."""


def halves(
    program: ExportedProgram, dtype: torch.dtype = torch.float16, full: frozenset[Any] = FULL
) -> ExportedProgram:
    """The program computing in ``dtype`` (float16 or bfloat16). The given program stays as it is.

    ``full`` are the operators that compute in float32: fewer than FULL for a runtime whose own kernel for
    one of them takes halves and sums in float32.

    Raises CaptureError for a weight that has finite values out of the range of ``dtype``.
    """
    return _Halves(program, dtype, full).run()


class _Halves:
    def __init__(self, program: ExportedProgram, dtype: torch.dtype, full: frozenset[Any]) -> None:
        self.rewrite = Rewrite(program)
        self.full = full
        self.half = dtype
        self.casts: dict[tuple[fx.Node, torch.dtype], fx.Node] = {}

    def run(self) -> ExportedProgram:
        nodes = list(self.rewrite.graph.nodes)
        self.first = next(node for node in nodes if node.op != "placeholder")
        for node in nodes:
            if node.op == "call_function":
                self._convert(node)
            elif node.op == "output":
                self._keep_outputs(node)
        return self.rewrite.finish()

    def _convert(self, node: fx.Node) -> None:
        """Give ``node`` inputs of one floating type, and its result that type."""
        inputs = [source for source in node.all_input_nodes if _type(source) is not None]
        found = {_type(source) for source in inputs}
        if not inputs or not found <= {torch.float32, self.half}:
            return
        if node.target in _KERNEL_NORMS:
            self._cast_inputs(node, inputs[:1], self.half)
            _retype(node, self.half)
            return
        if node.target in self.full:
            self._cast_inputs(node, inputs, torch.float32)
            if self.half in found:
                self._round_result(node)
            return
        if node.target in PRODUCTS or self.half in found:
            self._cast_inputs(node, inputs, self.half)
            _retype(node, self.half)

    def _cast_inputs(self, node: fx.Node, inputs: list[fx.Node], dtype: torch.dtype) -> None:
        for source in inputs:
            if _type(source) != dtype:
                node.replace_input_with(source, self._cast(source, dtype))

    def _cast(self, source: fx.Node, dtype: torch.dtype) -> fx.Node:
        """``source`` in another type: a weight is stored in it, anything else is cast where it is made."""
        if (source, dtype) not in self.casts:
            value = self.rewrite.value(source)
            if value is not None and dtype == self.half:
                name = f"{source.name}_half"
                made = self.rewrite.add_constant(name, self._rounded(source.name, value), source)
            else:
                before = self.first if source.op == "placeholder" else source.next
                made = self.rewrite.call(before, aten._to_copy.default, source, dtype=dtype)
            self.casts[source, dtype] = made
        return self.casts[source, dtype]

    def _rounded(self, name: str, value: Tensor) -> Tensor:
        value = value.detach()
        rounded = value.to(self.half)
        if not bool((rounded.isfinite() | ~value.isfinite()).all()):
            largest = float(value.abs().max())
            raise CaptureError(
                f"weight {name} reaches {largest:.3g}, the largest {str(self.half).removeprefix('torch.')} is"
                f" {torch.finfo(self.half).max:.3g}: build it with --precision fp32"
            )
        return rounded

    def _round_result(self, node: fx.Node) -> None:
        """Let the users of ``node`` take its result as a half."""
        users = list(node.users)
        rounded = self._cast(node, self.half)
        for user in users:
            user.replace_input_with(node, rounded)
        self.casts[rounded, torch.float32] = node  # a norm after a norm sees what was not rounded

    def _keep_outputs(self, output: fx.Node) -> None:
        """Return float32 where the graph returned float32."""
        returned = list(output.args[0])  # type: ignore[arg-type]
        for place, (spec, source) in enumerate(
            zip(self.rewrite.signature.output_specs, returned, strict=True)
        ):
            if isinstance(source, fx.Node) and _type(source) == self.half:
                returned[place] = self.rewrite.call(
                    output, aten._to_copy.default, source, dtype=torch.float32
                )
                spec.arg = TensorArgument(returned[place].name)
        output.args = (tuple(returned),)


def _type(node: fx.Node) -> torch.dtype | None:
    """The floating type of a node's value, which may be a list of tensors; None for any other value."""
    value = node.meta.get("val")
    if isinstance(value, (list, tuple)) and value:
        value = value[0]
    return value.dtype if isinstance(value, Tensor) and value.is_floating_point() else None


def _retype(node: fx.Node, dtype: torch.dtype) -> None:
    """Note that the floating results of ``node`` have another type than before."""
    if _type(node) is None:
        return  # a comparison, or a size
    value = node.meta["val"]
    if isinstance(value, Tensor):
        node.meta["val"] = value.to(dtype)
    else:
        node.meta["val"] = type(value)(part.to(dtype) for part in value)
