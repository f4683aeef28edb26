"""The activations pass: GEGLU and quick GELU as the libraries write them, and forms that must stay."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from fastdiff.build.checkpoint import Checkpoint
from fastdiff.build.passes.activations import fuse_activations
from tests.build.conftest import Captured
from tests.build.passes.conftest import fused_function, fused_module

X = torch.randn(2, 5, 12)


def halves(x: Tensor, axis: int = -1) -> tuple[Tensor, Tensor]:
    a, b = x.chunk(2, axis)
    return a, b


FUSED = {
    "geglu": ("geglu", lambda m, x: (lambda a, b: a * functional.gelu(b))(*halves(x))),
    "geglu the other way": ("geglu", lambda m, x: (lambda a, b: functional.gelu(b) * a)(*halves(x, 2))),
    "quick_gelu": ("quick_gelu", lambda m, x: x * torch.sigmoid(1.702 * x)),
    "quick_gelu the other way": ("quick_gelu", lambda m, x: torch.sigmoid(x * 1.702) * x),
}
STAY = {
    "gelu of the first half": lambda m, x: (lambda a, b: functional.gelu(a) * b)(*halves(x)),
    "tanh gelu": lambda m, x: (lambda a, b: a * functional.gelu(b, approximate="tanh"))(*halves(x)),
    "another axis": lambda m, x: (lambda a, b: a * functional.gelu(b))(*halves(m.q(x).mT, 1)),
    "three parts": lambda m, x: x.chunk(3, -1)[0] * functional.gelu(x.chunk(3, -1)[1]),
    "silu": lambda m, x: x * torch.sigmoid(x),
    "another factor": lambda m, x: x * torch.sigmoid(1.7 * x),
}


@pytest.mark.parametrize("name", FUSED)
def test_fused(name: str) -> None:
    op, function = FUSED[name]
    counts, _ = fused_function(function, fuse_activations, X)
    assert counts[f"fastdiff.{op}.default"] == 1
    assert counts.total() == 1


@pytest.mark.parametrize("name", STAY)
def test_other_forms_stay(name: str) -> None:
    counts, _ = fused_function(STAY[name], fuse_activations, X)
    assert not [op for op in counts if op.startswith("fastdiff")]


@pytest.mark.parametrize(("name", "op"), [("text_encoder", "quick_gelu"), ("unet", "geglu")])
def test_a_checkpoint_s_modules(captured: Captured, checkpoint: Checkpoint, name: str, op: str) -> None:
    counts = fused_module(captured(name), fuse_activations, checkpoint.vocab_size)
    assert counts[f"fastdiff.{op}.default"] > 0
    assert counts["aten.gelu.default"] == counts["aten.sigmoid.default"] == 0
