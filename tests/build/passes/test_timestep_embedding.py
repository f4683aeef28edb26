"""The timestep_embedding pass: diffusers' embedding both ways, and forms that must stay."""

from __future__ import annotations

import pytest
import torch
from diffusers.models.embeddings import get_timestep_embedding
from torch import Tensor, nn

from fastdiff.build.passes.normalise import normalise
from fastdiff.build.passes.timestep_embedding import fuse_timestep_embedding
from tests.build.passes.conftest import fused_function, tensor_operators

T = torch.tensor([3.0, 500.0, 998.5])
FREQUENCIES = torch.tensor([1.0, 0.5, 0.25])


def rewrite(program: torch.export.ExportedProgram) -> torch.export.ExportedProgram:
    return fuse_timestep_embedding(normalise(program))


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize(("width", "shift"), [(2, 0), (14, 0), (32, 1)])
def test_diffusers(flip: bool, width: int, shift: int) -> None:
    def function(m: nn.Module, t: Tensor) -> Tensor:
        return get_timestep_embedding(t, width, flip_sin_to_cos=flip, downscale_freq_shift=shift)

    _, program = fused_function(function, rewrite, T)
    assert tensor_operators(program) == {"fastdiff.timestep_embedding": 1}
    (node,) = (n for n in program.graph.nodes if n.op == "call_function")
    assert node.args[2] is not flip


def angles(t: Tensor) -> Tensor:
    return t[:, None] * FREQUENCIES


def test_by_hand() -> None:
    forms = (
        lambda m, t: torch.cat([angles(t).cos(), angles(t).sin()], 1),
        lambda m, t: torch.cat([(a := angles(t)).cos(), a.sin()], 1),
    )
    for form, fused in zip(forms, (0, 1), strict=True):  # equal angles computed twice are not the same node
        _, program = fused_function(form, rewrite, T)
        assert tensor_operators(program).get("fastdiff.timestep_embedding", 0) == fused


def test_an_odd_width_keeps_its_zero() -> None:
    _, program = fused_function(lambda m, t: get_timestep_embedding(t, 7), rewrite, T)
    assert tensor_operators(program) == {"fastdiff.timestep_embedding": 1, "aten.pad": 1}


STAY = {
    "parts used elsewhere": lambda m, t: (lambda e: torch.cat([e[:, 3:], e[:, :3]], 1) + e)(
        (lambda a: torch.cat([a.sin(), a.cos()], 1))(angles(t))
    ),
    "another axis": lambda m, t: (lambda a: torch.cat([a.sin(), a.cos()], 0))(angles(t)),
    "sines twice": lambda m, t: (lambda a: torch.cat([a.sin(), a.sin()], 1))(angles(t)),
    "frequencies that vary": lambda m, t: (lambda a: torch.cat([a.sin(), a.cos()], 1))(t[:, None] * t),
    "a sum": lambda m, t: (lambda a: torch.cat([a.sin(), a.cos()], 1))(t[:, None] + FREQUENCIES),
}


@pytest.mark.parametrize("name", STAY)
def test_other_forms(name: str) -> None:
    _, program = fused_function(STAY[name], rewrite, T)
    fused = tensor_operators(program).get("fastdiff.timestep_embedding", 0)
    assert fused == (name == "parts used elsewhere")  # where the first half before the second is fused alone
