"""attention: ``scaled_dot_product_attention`` and the views around it become ``fastdiff::attention``.

::

    q [B, N, H·d] ─view─transpose─┐                                  q [B, N, H·d] ─┐
    k [B, M, H·d] ─view─transpose─┼─ sdpa ─transpose─reshape   →     k [B, M, H·d] ─┼─ fastdiff::attention
    v [B, M, H·d] ─view─transpose─┘                                  v [B, M, H·d] ─┘

A mask that says "no later token" becomes the op's ``causal``. Where q, k and v are projections of one tensor,
they become one ``linear`` with the three weights stacked, whose output is split.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import fx
from torch.export import ExportedProgram

from fastdiff.build.passes.rewrite import Rewrite, calls
from fastdiff.kernels import library

__all__ = ["fuse_attention"]

aten = torch.ops.aten
_RESHAPES = (aten.view.default, aten.reshape.default)


def fuse_attention(program: ExportedProgram) -> ExportedProgram:
    """The program with every attention that has the form above as one op; others stay as they are."""
    rewrite = Rewrite(program)
    for sdpa in rewrite.find(aten.scaled_dot_product_attention.default):
        _fuse(rewrite, sdpa)
    return rewrite.finish()


def _fuse(rewrite: Rewrite, sdpa: fx.Node) -> None:
    projections = [_before_heads(node) for node in sdpa.args[:3]]
    merged = _after_heads(sdpa)
    causal = _causal(sdpa)
    if merged is None or causal is None or any(p is None for p in projections):
        return
    heads = sdpa.args[0].meta["val"].shape[1]  # type: ignore[union-attr]
    size = sdpa.args[0].meta["val"].shape[3]  # type: ignore[union-attr]
    scale = sdpa.kwargs.get("scale")
    if not isinstance(heads, int) or not isinstance(size, int):
        return
    query, key, value = _one_projection(rewrite, [p for p in projections if p is not None])
    fused = rewrite.call(
        merged,
        library.attention._opoverload,
        query,
        key,
        value,
        heads,
        size**-0.5 if scale is None else scale,
        causal,
    )
    rewrite.replace(merged, fused)
    transpose = next(iter(sdpa.users))
    for node in (merged, transpose, sdpa):  # which could draw random numbers, so it would not count as dead
        rewrite.graph.erase_node(node)


def _before_heads(node: Any) -> fx.Node | None:
    """``x`` [B, N, H·d] of ``x.view(B, N, H, d).transpose(1, 2)``."""
    if not calls(node, aten.transpose.int) or set(node.args[1:]) != {1, 2}:
        return None
    view = node.args[0]
    if not calls(view, *_RESHAPES):
        return None
    x = view.args[0]
    heads, size = view.meta["val"].shape[2:]
    whole = x.meta["val"].shape
    return x if len(whole) == 3 and whole[2] == heads * size else None


def _after_heads(sdpa: fx.Node) -> fx.Node | None:
    """The node ``sdpa.transpose(1, 2).reshape(B, N, H·d)``, when nothing else uses what is in between."""
    if len(sdpa.users) != 1:
        return None
    transpose = next(iter(sdpa.users))
    if not calls(transpose, aten.transpose.int) or set(transpose.args[1:]) != {1, 2}:
        return None
    if len(transpose.users) != 1:
        return None
    merged = next(iter(transpose.users))
    if not calls(merged, *_RESHAPES):
        return None
    heads, size = transpose.meta["val"].shape[2:]
    whole = merged.meta["val"].shape
    return merged if len(whole) == 3 and whole[2] == heads * size else None


def _causal(sdpa: fx.Node) -> bool | None:
    """Whether a position sees only itself and earlier ones; None for a mask or an option of another kind."""
    named = dict(zip(("attn_mask", "dropout_p", "is_causal"), sdpa.args[3:], strict=False), **sdpa.kwargs)
    mask = named.pop("attn_mask", None)
    causal = bool(named.pop("is_causal", False))
    named.pop("scale", None)
    if any(named.values()):
        return None
    if mask is None:
        return causal
    return True if not causal and _is_lower_triangle(mask) else None


def _is_lower_triangle(mask: Any) -> bool:
    """Whether ``mask`` is ``key position <= query position``, broadcast over batch and heads."""
    while calls(mask, aten.expand.default):
        mask = mask.args[0]
    if not calls(mask, aten.le.Tensor) or mask.meta["val"].dim() != 4:
        return False
    return _positions_along(mask.args[0]) == 3 and _positions_along(mask.args[1]) == 2


def _positions_along(node: Any) -> int | None:
    """The axis of a 4-axis tensor along which it counts 0, 1, 2 …, being 1 long along all others."""
    axis, dims = 0, 1
    chain = []
    while calls(node, aten.unsqueeze.default):
        chain.append(node)
        node = node.args[0]
    if not calls(node, aten.arange.default):
        return None
    for step in reversed(chain):
        at = step.args[1] % (dims + 1)
        axis, dims = axis + (at <= axis), dims + 1
    return axis if dims == 4 else None


def _one_projection(rewrite: Rewrite, projections: list[fx.Node]) -> list[fx.Node]:
    """q, k and v as parts of one ``linear``, if they are ``linear`` of the same tensor and nobody else's."""
    query = projections[0]
    alike = all(calls(p, aten.linear.default) and p.args[0] is query.args[0] for p in projections)
    if not alike or len(set(projections)) < 3 or any(len(p.users) != 1 for p in projections):
        return projections
    weights = [rewrite.value(p.args[1]) for p in projections]  # type: ignore[arg-type]
    biases = [rewrite.value(p.args[2]) if len(p.args) > 2 else None for p in projections]  # type: ignore[arg-type]
    if any(w is None for w in weights) or 0 < sum(b is None for b in biases) < 3:
        return projections
    name = f"{query.name}_qkv"
    weight = torch.cat([w for w in weights if w is not None]).detach()
    parts = tuple(part for p in projections for part in rewrite.parts(p.args[1]))  # type: ignore[arg-type]
    arguments = [query.args[0], rewrite.add_constant(f"{name}_weight", weight, query, parts)]
    if biases[0] is not None:
        bias = torch.cat([b for b in biases if b is not None]).detach()
        arguments.append(rewrite.add_constant(f"{name}_bias", bias, query))
    sizes = [w.shape[0] for w in weights if w is not None]
    first = min(projections, key=list(rewrite.graph.nodes).index)
    linear = rewrite.call(first, aten.linear.default, *arguments)
    starts = [0, sizes[0], sizes[0] + sizes[1]]
    return [
        rewrite.call(first, aten.slice.Tensor, linear, 2, start, start + size)
        for start, size in zip(starts, sizes, strict=True)
    ]
