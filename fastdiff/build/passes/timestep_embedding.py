"""timestep_embedding: the sines and cosines of a timestep become one op.

::

    angles = t[:, None] * frequencies
    e = cat([sin(angles), cos(angles)], -1)     →  fastdiff::timestep_embedding(t, frequencies, True)
    cat([e[:, half:], e[:, :half]], -1)         →  fastdiff::timestep_embedding(t, frequencies, False)
"""

from __future__ import annotations

from typing import Any

import torch
from torch import fx
from torch.export import ExportedProgram

from fastdiff.build.passes.rewrite import Rewrite, calls
from fastdiff.kernels import library

__all__ = ["fuse_timestep_embedding"]

aten = torch.ops.aten


def fuse_timestep_embedding(program: ExportedProgram) -> ExportedProgram:
    """The program with every embedding of the form above, whose frequencies are constant, as one op."""
    rewrite = Rewrite(program)
    for cat in rewrite.find(aten.cat.default):
        angles, sine_first = _angles(cat)
        parts = None if angles is None else _factors(rewrite, angles)
        if parts is None:
            continue
        timesteps, frequencies = parts
        constant = rewrite.add_constant(f"{cat.name}_frequencies", frequencies, cat)
        last = cat
        swapped = _swapped(cat, frequencies.shape[0])
        if swapped is not None:
            last, sine_first = swapped, not sine_first
        op = library.timestep_embedding._opoverload
        rewrite.replace(last, rewrite.call(last, op, timesteps, constant, sine_first))
    return rewrite.finish()


def _angles(cat: Any) -> tuple[Any, bool]:
    """What ``cat`` takes the sine and the cosine of, and whether the sines come first."""
    parts, axis = cat.args[0], cat.args[1] if len(cat.args) > 1 else 0
    if len(parts) != 2 or cat.meta["val"].dim() != 2 or axis not in (1, -1):
        return None, False
    for sine, cosine in (parts, parts[::-1]):
        if calls(sine, aten.sin.default) and calls(cosine, aten.cos.default) and sine.args == cosine.args:
            return sine.args[0], sine is parts[0]
    return None, False


def _factors(rewrite: Rewrite, angles: Any) -> tuple[fx.Node, torch.Tensor] | None:
    """``t`` (B,) and the values of ``f`` (half,) when ``angles`` is ``t[:, None] * f``."""
    if not calls(angles, aten.mul.Tensor):
        return None
    for column, row in (angles.args, angles.args[::-1]):
        if not calls(column, aten.unsqueeze.default) or not isinstance(row, fx.Node):
            continue
        timesteps, frequencies = column.args[0], rewrite.value(row)
        if frequencies is None or timesteps.meta["val"].dim() != 1 or column.args[1] not in (1, -1):
            continue
        if frequencies.dim() <= 2 and frequencies.shape[-1:].numel() == frequencies.numel():
            return timesteps, frequencies.detach().reshape(-1).clone()
    return None


def _swapped(cat: Any, half: int) -> fx.Node | None:
    """The only use of ``cat``, when that puts its second half before its first."""
    users = list(cat.users)
    if len(users) != 2 or not all(calls(user, aten.slice.Tensor) and len(user.users) == 1 for user in users):
        return None
    last = next(iter(users[0].users))
    if not calls(last, aten.cat.default) or last.args[1:] not in ((1,), (-1,)) or len(last.args[0]) != 2:
        return None
    bounds = []
    for part in last.args[0]:
        if part not in users or part.args[1] not in (1, -1) or len(part.args) > 4:
            return None
        bounds.append(slice(*part.args[2:4]).indices(2 * half)[:2])
    return last if bounds == [(half, 2 * half), (0, half)] else None
