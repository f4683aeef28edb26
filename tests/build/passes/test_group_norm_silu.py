"""The group_norm_silu pass: with and without the activation, affine or not."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from fastdiff.build.checkpoint import Checkpoint
from fastdiff.build.passes.group_norm_silu import fuse_group_norm_silu
from tests.build.conftest import Captured
from tests.build.passes.conftest import fused_function, fused_module

FUSED = "fastdiff.group_norm_silu.default"
X = torch.randn(2, 12, 7, 9)


def used_twice(m: nn.Module, x: Tensor) -> Tensor:
    y = m.norm(x)
    return functional.silu(y) + y


FORMS = {
    "with silu": (lambda m, x: functional.silu(m.norm(x)), True),
    "alone": (lambda m, x: m.norm(x) + 1, False),
    "silu and more": (used_twice, False),
    "without weights": (lambda m, x: functional.silu(functional.group_norm(x, 4)), True),
}


@pytest.mark.parametrize("name", FORMS)
def test_fused(name: str) -> None:
    function, silu = FORMS[name]
    counts, program = fused_function(function, fuse_group_norm_silu, X)
    assert (counts[FUSED], counts["aten.group_norm.default"]) == (1, 0)
    node = next(n for n in program.graph.nodes if str(n.target) == FUSED)
    assert node.args[5:] == (silu, "NCHW")
    assert counts["aten.silu.default"] == (name == "silu and more")


@pytest.mark.parametrize("name", ["unet", "vae_decoder", "vae_encoder"])
def test_a_checkpoint_s_modules(captured: Captured, checkpoint: Checkpoint, name: str) -> None:
    counts = fused_module(captured(name), fuse_group_norm_silu, checkpoint.vocab_size)
    assert counts[FUSED] > 0
    assert counts["aten.group_norm.default"] == 0
