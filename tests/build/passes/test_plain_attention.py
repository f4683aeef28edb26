"""Attention written out: the same values for every kind of mask, and no fused operator left."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from fastdiff.build.passes import plain_attention
from fastdiff.errors import CaptureError
from tests.compare import assert_close

BATCH, HEADS, QUERIES, KEYS, SIZE = 2, 3, 7, 5, 11
"""Queries and keys differ in number, so that a mask along the wrong axis does not fit."""


class Attention(nn.Module):
    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.options = options

    def forward(self, query: Tensor, key: Tensor, value: Tensor, *mask: Tensor) -> Tensor:
        return scaled_dot_product_attention(query, key, value, *mask, **self.options)


def inputs(queries: int = QUERIES) -> list[Tensor]:
    torch.manual_seed(0)
    lengths = (queries, KEYS, KEYS)
    return [torch.randn(BATCH, HEADS, length, SIZE) for length in lengths]


def masks() -> dict[str, Tensor | None]:
    torch.manual_seed(1)
    hidden = torch.rand(BATCH, 1, QUERIES, KEYS) < 0.4
    hidden[..., 0] = False  # a query that sees nothing is NaN
    return {"none": None, "bool": ~hidden, "added": torch.randn(QUERIES, KEYS)}


@pytest.mark.parametrize("mask", masks())
@pytest.mark.parametrize("options", [{}, {"scale": 0.7}])
def test_masks(mask: str, options: dict[str, Any]) -> None:
    given = masks()[mask]
    arguments = (*inputs(), given) if given is not None else tuple(inputs())
    check(Attention(**options), arguments)


@pytest.mark.parametrize("queries", [KEYS, 3, 8])
def test_causal(queries: int) -> None:
    """With fewer queries than keys and with more: the mask starts at the upper left."""
    check(Attention(is_causal=True), tuple(inputs(queries)))


def test_symbolic_lengths() -> None:
    length = torch.export.Dim("length", min=2, max=99)
    axes = {2: length}
    given = inputs(KEYS)
    program = torch.export.export(Attention(is_causal=True), tuple(given), dynamic_shapes=(axes, axes, axes))
    longer = [torch.randn(BATCH, HEADS, 23, SIZE) for _ in range(3)]
    found = plain_attention(program).module()(*longer)
    assert_close(found, scaled_dot_product_attention(*longer, is_causal=True), rel_l2=1e-6)


def test_dropout_is_refused() -> None:
    program = torch.export.export(Attention(dropout_p=0.5), tuple(inputs()))
    with pytest.raises(CaptureError, match="dropout"):
        plain_attention(program)


def check(module: nn.Module, arguments: tuple[Tensor, ...]) -> None:
    program = plain_attention(torch.export.export(module, arguments))
    assert not [node for node in program.graph.nodes if "scaled_dot_product" in str(node.target)]
    assert_close(program.module()(*arguments), module(*arguments), rel_l2=1e-6)
