"""functional: additions in place become additions, and readers after them read the sum."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fastdiff.build.passes.functional import functional

aten = torch.ops.aten


class _Kept(nn.Module):
    """What is changed in place has been kept before, and read before."""

    def forward(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        z = x * 2
        before = z.sin()
        kept = (z,)
        z += y
        return before, kept[0].cos(), z * 3


class _View(nn.Module):
    """A view of what is changed is read after."""

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        z = x * 2
        flat = z.view(-1)
        z += y
        return flat + 1


def test_readers_see_what_they_saw() -> None:
    x, y = torch.randn(3, 4), torch.randn(3, 4)
    program = torch.export.export(_Kept(), (x, y))
    targets = [node.target for node in program.graph.nodes]
    assert aten.add_.Tensor in targets
    result = functional(program)
    assert aten.add_.Tensor not in [node.target for node in result.graph.nodes]
    for found, wanted in zip(result.module()(x, y), _Kept()(x, y), strict=True):
        assert torch.equal(found, wanted)


def test_a_view_of_the_tensor_keeps_the_graph() -> None:
    x, y = torch.randn(3, 4), torch.randn(3, 4)
    result = functional(torch.export.export(_View(), (x, y)))
    assert aten.add_.Tensor in [node.target for node in result.graph.nodes]
    assert torch.equal(result.module()(x, y), _View()(x, y))


def test_graphs_without_are_the_same() -> None:
    x = torch.randn(3)
    program = torch.export.export(nn.SiLU(), (x,))
    assert functional(program) is program
