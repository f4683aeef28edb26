"""Finding the layer that NaN or infinity comes from."""

from __future__ import annotations

import torch
from torch import Tensor

from fastdiff.errors import NumericError
from fastdiff.targets.cuda.calls import Call
from fastdiff.targets.cuda.executor import Watch

__all__ = ["check_finite"]


def check_finite(name: str) -> Watch:
    """A watch that raises NumericError at the first result with NaN or infinity, and names the layer."""

    def watch(index: int, call: Call, result: Tensor) -> None:
        if not result.is_floating_point() or bool(torch.isfinite(result).all()):
            return
        bad = int((~torch.isfinite(result)).sum())
        largest = max(
            (float(x.abs().amax()) for x in call.inputs if x is not None and x.numel()), default=0.0
        )
        raise NumericError(
            f"{name}: {call.node.op} in {call.node.path or 'the graph'} (node {index}) gave {bad} of"
            f" {result.numel()} values as NaN or infinity in {str(result.dtype).removeprefix('torch.')},"
            f" from inputs of up to {largest:.3g}: build with --precision bf16, or fp32"
        )

    return watch
