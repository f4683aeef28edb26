"""The canonical pass: one spelling per operation, equal nodes once."""

from __future__ import annotations

import pytest
import torch
from torch.export import ExportedProgram
from torch.nn import functional

from fastdiff.build.passes.canonical import canonical
from fastdiff.build.passes.normalise import normalise
from tests.build.passes.conftest import fused_function, operators, tensor_operators

X = torch.randn(2, 12, 6, 8)


def rewrite(program: ExportedProgram) -> ExportedProgram:
    return canonical(normalise(program))


SPELLINGS = {
    "transpose": (lambda m, x: x.transpose(-1, 1), {"aten.permute": 1}),
    "flatten": (lambda m, x: x.flatten(1, 2), {"aten.view": 1}),
    "unflatten": (lambda m, x: x.unflatten(1, (3, 4)), {"aten.view": 1}),
    "unsqueeze twice": (lambda m, x: x[:, None, :, None] + 1, {"aten.view": 1, "aten.add": 1}),
    "squeeze": (lambda m, x: x.mean(1, keepdim=True).squeeze(1), {"aten.mean": 1, "aten.view": 1}),
    "views in a row": (lambda m, x: x.flatten(2).unflatten(1, (3, 4)), {"aten.view": 1}),
    "a reshape that copies": (
        lambda m, x: x.permute(0, 2, 3, 1).flatten(1),
        {"aten.permute": 1, "aten.flatten": 1},
    ),
    "concat": (lambda m, x: torch.concat([x, x], 1), {"aten.cat": 1}),
    "chunk": (lambda m, x: x.chunk(5, 1)[3] + 1, {"aten.slice": 1, "aten.add": 1}),
    "split": (lambda m, x: x.split([3, 4, 5], 1)[1] + 1, {"aten.slice": 1, "aten.add": 1}),
    "part of a symbolic axis": (
        lambda m, x: x.split([x.shape[2] - 2, 2], 2)[1] + 1,
        {"aten.split_with_sizes": 1, "aten.add": 1},
    ),
    "pad": (lambda m, x: functional.pad(x, (1, 2)), {"aten.constant_pad_nd": 1}),
    "pad with a value": (lambda m, x: functional.pad(x, (1, 2), value=3.0), {"aten.constant_pad_nd": 1}),
    "reflecting pad": (lambda m, x: functional.pad(x, (1, 2, 0, 1), mode="reflect"), {"aten.pad": 1}),
    "equal nodes": (lambda m, x: x.sin() * x.sin() + x.sin(), {"aten.sin": 1, "aten.mul": 1, "aten.add": 1}),
    "different numbers": (lambda m, x: (x + 1) * (x + 2), {"aten.add": 2, "aten.mul": 1}),
    "random numbers": (
        lambda m, x: 0 * torch.rand_like(x) - 0 * torch.rand_like(x),
        {"aten.rand_like": 2, "aten.mul": 2, "aten.sub": 1},
    ),
}


@pytest.mark.parametrize("name", SPELLINGS)
def test_spelling(name: str) -> None:
    function, wanted = SPELLINGS[name]
    _, program = fused_function(function, rewrite, X)
    assert tensor_operators(program) == wanted


def test_bounds_of_a_known_axis_are_numbers_within_it() -> None:
    _, program = fused_function(lambda m, x: x[:, -4:] + x[:, 1:5], rewrite, X)
    bounds = {n.args[1:] for n in program.graph.nodes if "slice" in str(n.target)}
    assert bounds == {(1, 8, 12), (1, 1, 5)}


def test_one_size_for_all() -> None:
    counts, _ = fused_function(lambda m, x: x.reshape(x.shape[0], -1) * x.shape[0], rewrite, X)
    assert counts["aten.sym_size.int"] == 1


def test_numbers_of_different_types_differ() -> None:
    _, program = fused_function(lambda m, x: (x > 0).sum() + (x > 0).sum() * 1.0, rewrite, X)
    assert operators(program)["aten.sum.default"] == 1
    _, program = fused_function(lambda m, x: (x.int() * 2) + (x.int() * 2.0), rewrite, X)
    assert operators(program)["aten.mul.Tensor"] == 2
