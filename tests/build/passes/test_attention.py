"""The attention pass: every form that the libraries write, and forms that must stay."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from fastdiff.build.checkpoint import Checkpoint
from fastdiff.build.passes.attention import fuse_attention
from tests.build.conftest import Captured
from tests.build.passes.conftest import fused_function, fused_module

FUSED, LEFT = "fastdiff.attention.default", "aten.scaled_dot_product_attention.default"


def heads(x: Tensor) -> Tensor:
    return x.view(x.shape[0], -1, 3, 4).transpose(1, 2)


def together(x: Tensor) -> Tensor:
    return x.transpose(1, 2).reshape(x.shape[0], -1, 12)


def attend(q: Tensor, k: Tensor, v: Tensor, **options: object) -> Tensor:
    return together(functional.scaled_dot_product_attention(heads(q), heads(k), heads(v), **options))


def later(x: Tensor) -> Tensor:
    """The mask as transformers builds it: whether the key position is at most the query position."""
    position = torch.arange(x.shape[1])
    return (position[None, None, None, :] <= position[None, None, :, None]).expand(x.shape[0], -1, -1, -1)


X, CONTEXT = torch.randn(2, 5, 12), torch.randn(2, 7, 12)


def test_self_attention_is_one_projection() -> None:
    counts, program = fused_function(lambda m, x: attend(m.q(x), m.k(x), m.v(x)), fuse_attention, X)
    assert (counts[FUSED], counts[LEFT], counts["aten.linear.default"]) == (1, 0, 1)
    assert not any(name.startswith(("q.", "k.", "v.")) for name in program.state_dict)  # not kept twice


def test_cross_attention_keeps_its_projections() -> None:
    counts, _ = fused_function(lambda m, x, y: attend(m.q(x), m.k(y), m.v(y)), fuse_attention, X, CONTEXT)
    assert (counts[FUSED], counts[LEFT], counts["aten.linear.default"]) == (1, 0, 3)


def test_a_projection_that_is_used_elsewhere_stays() -> None:
    def function(m: nn.Module, x: Tensor) -> Tensor:
        q = m.q(x)
        return attend(q, m.k(x), m.v(x)) + q

    counts, _ = fused_function(function, fuse_attention, X)
    assert (counts[FUSED], counts["aten.linear.default"]) == (1, 3)


@pytest.mark.parametrize("form", ["mask", "flag"])
def test_causal(form: str) -> None:
    def function(m: nn.Module, x: Tensor) -> Tensor:
        options = {"attn_mask": later(x)} if form == "mask" else {"is_causal": True}
        return attend(m.q(x), m.k(x), m.v(x), scale=0.7, **options)

    counts, program = fused_function(function, fuse_attention, X)
    assert (counts[FUSED], counts[LEFT], counts["aten.le.Tensor"]) == (1, 0, 0)
    node = next(n for n in program.graph.nodes if str(n.target) == FUSED)
    assert node.args[3:] == (3, 0.7, True)


STAY = {
    "mask the other way": lambda m, x: attend(m.q(x), m.k(x), m.v(x), attn_mask=later(x).transpose(2, 3)),
    "additive mask": lambda m, x: attend(m.q(x), m.k(x), m.v(x), attn_mask=x.new_ones(5, 5)),
    "heads not put together": lambda m, x: functional.scaled_dot_product_attention(
        heads(m.q(x)), heads(m.k(x)), heads(m.v(x))
    ),
    "no heads": lambda m, x: functional.scaled_dot_product_attention(m.q(x), m.k(x), m.v(x)),
}


@pytest.mark.parametrize("name", STAY)
def test_other_forms_stay(name: str) -> None:
    counts, _ = fused_function(STAY[name], fuse_attention, X)
    assert (counts[FUSED], counts[LEFT]) == (0, 1)


@pytest.mark.parametrize("name", ["text_encoder", "unet", "vae_decoder", "vae_encoder"])
def test_a_checkpoint_s_modules(captured: Captured, checkpoint: Checkpoint, name: str) -> None:
    module = captured(name)
    assert module.program is not None
    had = sum(str(node.target) == LEFT for node in module.program.graph.nodes)
    counts = fused_module(module, fuse_attention, checkpoint.vocab_size)
    assert (counts[FUSED], counts[LEFT]) == (had, 0)
    assert had > 0 or name.startswith("vae")
