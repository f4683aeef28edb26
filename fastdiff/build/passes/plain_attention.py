"""plain_attention: ``scaled_dot_product_attention`` as two products and a softmax.

::

    sdpa(q, k, v, mask)   →   softmax(where(mask, (scale · q) kᵀ, -∞)) v

For formats without an attention of their own: written out, the softmax can be given another type than the
products around it. ``q`` is scaled before the product, so that scores in half precision stay in range.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import fx
from torch.export import ExportedProgram

from fastdiff.build.passes.rewrite import Rewrite
from fastdiff.errors import CaptureError

__all__ = ["plain_attention"]

aten = torch.ops.aten


def plain_attention(program: ExportedProgram) -> ExportedProgram:
    """The program without ``scaled_dot_product_attention``.

    Raises CaptureError for dropout and for groups of heads that share keys, which no diffusion model has.
    """
    rewrite = Rewrite(program)
    for sdpa in rewrite.find(aten.scaled_dot_product_attention.default):
        rewrite.replace(sdpa, _written_out(rewrite, sdpa))
        rewrite.graph.erase_node(sdpa)  # it could draw random numbers, so it would not count as dead
    return rewrite.finish()


def _written_out(rewrite: Rewrite, sdpa: fx.Node) -> fx.Node:
    query, key, value = sdpa.args[:3]
    options: dict[str, Any] = dict(
        zip(("attn_mask", "dropout_p", "is_causal"), sdpa.args[3:], strict=False), **sdpa.kwargs
    )
    if options.get("dropout_p") or options.get("enable_gqa"):
        raise CaptureError(
            f"{sdpa.name} has dropout or grouped heads: found {options}, wanted plain attention of an"
            " evaluation graph; report this model"
        )
    scale = options.get("scale")
    if scale is None:
        scale = query.meta["val"].shape[-1] ** -0.5  # type: ignore[union-attr]
    scaled = rewrite.call(sdpa, aten.mul.Tensor, query, scale)
    transposed = rewrite.call(sdpa, aten.transpose.int, key, -2, -1)
    scores = rewrite.call(sdpa, aten.matmul.default, scaled, transposed)
    mask = options.get("attn_mask")
    hidden = None
    if options.get("is_causal"):
        everything = rewrite.call(sdpa, aten.ones_like.default, scores, dtype=torch.bool)
        hidden = rewrite.call(sdpa, aten.triu.default, everything, 1)
    elif mask is not None and mask.meta["val"].dtype == torch.bool:
        hidden = rewrite.call(sdpa, aten.logical_not.default, mask)
    elif mask is not None:
        scores = rewrite.call(sdpa, aten.add.Tensor, scores, mask)
    if hidden is not None:
        scores = rewrite.call(sdpa, aten.masked_fill.Scalar, scores, hidden, -math.inf)
    weights = rewrite.call(sdpa, aten.softmax.int, scores, -1)
    return rewrite.call(sdpa, aten.matmul.default, weights, value)
