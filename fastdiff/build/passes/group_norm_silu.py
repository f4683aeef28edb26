"""group_norm_silu: ``group_norm``, with the ``silu`` that follows it if any, becomes one op."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import fx
from torch.export import ExportedProgram

from fastdiff.build.passes.rewrite import Rewrite
from fastdiff.kernels import library

__all__ = ["fuse_group_norm_silu"]

aten = torch.ops.aten
_DEFAULTS = (None, None, None, None, 1e-5)
"""Of ``group_norm``'s arguments; the first two are always given."""


def fuse_group_norm_silu(
    program: ExportedProgram, suits: Callable[[fx.Node], bool] | None = None
) -> ExportedProgram:
    """The program with every ``group_norm`` as ``fastdiff::group_norm_silu`` in layout NCHW.

    ``suits`` says of a ``group_norm`` whether the target's kernel takes it; None: it takes all.
    """
    rewrite = Rewrite(program)
    for norm in rewrite.find(aten.group_norm.default):
        if suits is not None and not suits(norm):
            continue
        x, num_groups, weight, bias, eps = (*norm.args, *_DEFAULTS[len(norm.args) :])[:5]
        users = list(norm.users)
        silu = len(users) == 1 and users[0].target is aten.silu.default
        last = users[0] if silu else norm
        op = library.group_norm_silu._opoverload
        fused = rewrite.call(last, op, x, weight, bias, num_groups, eps, silu, "NCHW")
        rewrite.replace(last, fused)
    return rewrite.finish()
