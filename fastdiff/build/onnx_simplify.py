"""What torch's ONNX exporter does to a graph last, with those of its rewrite rules that these models need.

``torch.onnx.export(optimize=True)`` tries some eighty rules at every node, which is half of an export's time.
Those here are all that ever match in a U-Net, a VAE or a text encoder; the rest of its steps are the same.
"""

from __future__ import annotations

from typing import Any

__all__ = ["simplify"]

_ROUNDS = 2
"""A rule may leave constants behind that can be folded, and folding chains that a rule can shorten."""


def simplify(model: Any) -> None:
    """Fold constants, shorten chains of reshapes and transposes, merge what is equal, drop what is unused.

    In place, of an ``onnx_ir.Model`` that ``torch.onnx.export(optimize=False)`` made.
    """
    from onnx_ir.passes import common
    from onnxscript.optimizer import fold_constants
    from onnxscript.rewriter import RewritePass
    from onnxscript.rewriter.rules.common import (
        add_0_rule,
        fuse_pad_into_conv_rule,
        max_min_rule,
        squeeze_reshape_1d_rule,
        transpose_transpose_rule,
        unsqueeze_unsqueeze_rule,
    )

    rules = (
        add_0_rule,
        squeeze_reshape_1d_rule,
        unsqueeze_unsqueeze_rule,
        transpose_transpose_rule,
        fuse_pad_into_conv_rule,
        max_min_rule,
    )
    common.InlinePass()(model)
    for _ in range(_ROUNDS):
        fold_constants(model, onnx_shape_inference=True)
        RewritePass(rules)(model)
        common.RemoveUnusedNodesPass()(model)
    for last in (
        common.RemoveUnusedFunctionsPass(),  # type: ignore[no-untyped-call]
        common.RemoveUnusedOpsetsPass(),
        common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0),
        common.LiftSubgraphInitializersToMainGraphPass(),
        common.DeduplicateInitializersPass(),
        common.CommonSubexpressionEliminationPass(),
        common.OutputFixPass(),
        common.NameFixPass(),
    ):
        last(model)
