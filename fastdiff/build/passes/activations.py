"""activations: gated and approximate GELUs, which the exporter spells out, become one op each.

::

    a, b = chunk(x, 2, -1);  a * gelu(b)     →  fastdiff::geglu(x)
    x * sigmoid(1.702 * x)                   →  fastdiff::quick_gelu(x)
"""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import fx
from torch.export import ExportedProgram

from fastdiff.build.passes.rewrite import Rewrite, calls
from fastdiff.kernels import library

__all__ = ["fuse_activations"]

aten = torch.ops.aten


def fuse_activations(program: ExportedProgram) -> ExportedProgram:
    """The program with each of the two forms above as one op."""
    rewrite = Rewrite(program)
    for product in rewrite.find(aten.mul.Tensor):
        left, right = product.args
        for op, form in ((library.geglu, _gated), (library.quick_gelu, _quick)):
            source = form(left, right) or form(right, left)
            if source is not None:
                rewrite.replace(product, rewrite.call(product, op._opoverload, source))
    return rewrite.finish()


def _gated(a: Any, gate: Any) -> fx.Node | None:
    """``x`` when ``a`` and ``gate`` are the first half of ``x`` and the exact GELU of its second."""
    if not calls(gate, aten.gelu.default) or gate.kwargs.get("approximate", "none") != "none":
        return None
    b = gate.args[0]
    if not calls(a, operator.getitem) or not calls(b, operator.getitem) or a.args[0] is not b.args[0]:
        return None
    chunk = a.args[0]
    if not calls(chunk, aten.chunk.default) or (a.args[1], b.args[1]) != (0, 1) or chunk.args[1] != 2:
        return None
    x = chunk.args[0]
    dims = x.meta["val"].dim()
    along = chunk.args[2] if len(chunk.args) > 2 else 0
    return x if along % dims == dims - 1 and x.meta["val"].shape[-1] % 2 == 0 else None


def _quick(x: Any, gate: Any) -> fx.Node | None:
    """``x`` when ``gate`` is ``sigmoid(1.702 * x)``."""
    if not calls(gate, aten.sigmoid.default):
        return None
    scaled = gate.args[0]
    if not calls(scaled, aten.mul.Tensor, aten.mul.Scalar) or scaled.args[0] is not x:
        return None
    return x if scaled.args[1] == 1.702 else None
