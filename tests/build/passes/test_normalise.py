"""The normalise pass: the graph before and after on random inputs, and nothing of what it removes remains."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from fastdiff.build.capture import run_eager
from fastdiff.build.modules import random_inputs
from fastdiff.build.passes import PASSES, normalise, run_passes
from fastdiff.build.passes.functional import functional
from fastdiff.build.passes.normalise import folded_constants, no_op_source
from fastdiff.config import MODULES
from tests.build.conftest import Captured
from tests.compare import assert_close

aten = torch.ops.aten


def export(module: nn.Module, *inputs: Tensor) -> ExportedProgram:
    dynamic = tuple({0: Dim("batch")} for _ in inputs)
    return torch.export.export(module.eval(), inputs, dynamic_shapes=(dynamic,))


class Function(nn.Module):
    def __init__(self, function: Callable[..., object]) -> None:
        super().__init__()
        self.function = function
        self.register_buffer("table", torch.arange(4.0))
        self.weight = nn.Parameter(torch.ones(4))

    def forward(self, *inputs: Tensor) -> object:
        return self.function(self, *inputs)


def run_both(function: Callable[..., object], *inputs: Tensor) -> tuple[ExportedProgram, ExportedProgram]:
    """Export, normalise, compare on the given inputs and on three times their batch."""
    before = export(Function(function), *inputs)
    after = normalise(before)
    for arguments in (inputs, tuple(torch.cat([tensor] * 3) for tensor in inputs)):
        wanted, found = before.module()(*arguments), after.module()(*arguments)
        torch.testing.assert_close(found, wanted, rtol=0, atol=0)
    return before, after


def operators(program: ExportedProgram) -> list[str]:
    return [str(node.target) for node in program.graph.nodes if node.op == "call_function"]


NO_OPS = {
    "dropout": lambda self, x: nn.functional.dropout(x, 0.5, self.training) + 1,
    "cast": lambda self, x: x.to(torch.float32) + 1,
    "type_as": lambda self, x: x.type_as(self.table) + 1,
    "clone": lambda self, x: x.clone() + 1,
    "contiguous": lambda self, x: x.contiguous() + 1,
    "detach": lambda self, x: x.detach() + 1,
    "times ones": lambda self, x: x * torch.ones(x.shape[0], 1) + 1,
    "division": lambda self, x: x / 1.0 + 1,
    "integer division": lambda self, x: x / 1 + 1,
    "product": lambda self, x: x * 1 + 1,
    "sum": lambda self, x: (x + 0) + 1,
    "difference": lambda self, x: (x - 0.0) + 1,
    "view": lambda self, x: x.view(x.shape[0], 4) + 1,
    "inferred view": lambda self, x: x.reshape(-1, 4) + 1,
    "expand": lambda self, x: x.expand(x.shape[0], 4) + 1,
    "slice": lambda self, x: x[:, :] + 1,
    "chain": lambda self, x: (x.clone() / 1).contiguous().to(torch.float32) * 1.0 + 1,
}


@pytest.mark.parametrize("name", NO_OPS)
def test_no_ops_disappear(name: str) -> None:
    _, after = run_both(NO_OPS[name], torch.randn(2, 4))
    assert operators(after) == ["aten.add.Tensor"]


KEPT = {
    "cast to another type": lambda self, x: x.to(torch.float64),
    "division of integers by 1 gives floats": lambda self, x: x.to(torch.int64) / 1,
    "division by 2": lambda self, x: x / 2,
    "sum that broadcasts": lambda self, x: x[:, None] * 1 + self.table[:, None] * 0,
    "view of another shape": lambda self, x: x.view(-1, 2),
    "slice of a part": lambda self, x: x[:, :3],
    "slice with a step": lambda self, x: x[:, ::2],
}


@pytest.mark.parametrize("name", KEPT)
def test_what_computes_something_stays(name: str) -> None:
    _, after = run_both(KEPT[name], torch.randn(2, 4) * 100)
    assert operators(after)


def test_constants_are_folded() -> None:
    """The frequency table of the timestep embedding, as diffusers computes it."""

    def embed(self: nn.Module, timestep: Tensor) -> Tensor:
        frequencies = torch.exp(-9.2 * torch.arange(0, 8, dtype=torch.float32) / 8)
        angles = timestep[:, None].float() * frequencies[None, :]
        return torch.cat([torch.sin(angles), torch.cos(angles)], dim=-1)

    _, after = run_both(embed, torch.tensor([3.0, 700.0]))
    assert "aten.exp.default" not in operators(after)
    assert "aten.arange.default" not in " ".join(operators(after))
    (constant,) = (value for name, value in after.constants.items() if name.startswith("folded"))
    assert constant.shape == (1, 8)


def test_buffers_are_folded_and_parameters_are_not() -> None:
    _, after = run_both(lambda self, x: x + torch.exp(self.table), torch.randn(2, 4))
    assert operators(after) == ["aten.add.Tensor"]
    _, after = run_both(lambda self, x: x + torch.exp(self.weight), torch.randn(2, 4))
    assert operators(after) == ["aten.exp.default", "aten.add.Tensor"]


def test_random_numbers_are_not_folded() -> None:
    program = export(Function(lambda self, x: x + torch.rand(4)), torch.randn(2, 4))
    assert "aten.rand.default" in operators(normalise(program))


def test_constants_that_are_too_large_stay_computed() -> None:
    _, after = run_both(lambda self, x: x + torch.arange(2_000_000.0)[:4] * 2, torch.randn(2, 4))
    assert all(value.numel() <= 1 << 20 for value in after.constants.values())


def test_sizes_that_depend_on_the_input_are_not_folded() -> None:
    run_both(lambda self, x: x + torch.arange(x.shape[0])[:, None], torch.randn(2, 4))


def test_output_that_is_a_no_op() -> None:
    _, after = run_both(lambda self, x: ((x + 1).clone(), (x + 2).to(torch.float32)), torch.randn(2, 4))
    assert operators(after) == ["aten.add.Tensor", "aten.add.Tensor"]


def test_graph_that_writes_in_place_is_left_alone() -> None:
    def write(self: nn.Module, x: Tensor) -> Tensor:
        copy = x.clone()
        copy.add_(1)
        return copy + x

    before, after = run_both(write, torch.randn(2, 4))
    assert after is before


def test_the_given_program_is_not_changed() -> None:
    before, after = run_both(NO_OPS["chain"], torch.randn(2, 4))
    assert len(operators(before)) > len(operators(after))
    assert set(before.state_dict) == {"weight", "table"}
    assert set(after.state_dict) <= set(before.state_dict)


def test_normalise_sees_no_additions_in_place() -> None:
    assert list(PASSES) == [functional, normalise]


@pytest.mark.parametrize("name", MODULES)
def test_modules_are_clean_and_compute_the_same(captured: Captured, name: str) -> None:
    module = captured(name)
    before = module.program
    assert before is not None
    after = run_passes(before)
    assert [node for node in after.graph.nodes if no_op_source(node) is not None] == []
    assert folded_constants(after, after.graph) == {}
    assert len(after.graph.nodes) < len(before.graph.nodes)
    assert any(no_op_source(node) is not None for node in before.graph.nodes)
    wanted_graph, found_graph = before.module(), after.module()
    for seed, sizes in enumerate(
        (
            {"batch": 1, "height": 8, "width": 12, "tokens": 77},
            {"batch": 3, "height": 6, "width": 4, "tokens": 5},
        )
    ):
        arrays = random_inputs(module.spec, sizes, seed, vocab_size=100)
        wanted = run_eager(wanted_graph, module.spec.inputs, module.spec.outputs, arrays)
        found = run_eager(found_graph, module.spec.inputs, module.spec.outputs, arrays)
        for key in wanted:
            assert_close(found[key], wanted[key], rel_l2=1e-6, label=f"{name}.{key}")


def test_timestep_table_of_the_unet_is_folded(captured: Captured) -> None:
    program = captured("unet").program
    assert program is not None
    assert "aten.exp.default" in operators(program)
    after = normalise(program)
    assert "aten.exp.default" not in operators(after)
    tables = [value for name, value in after.constants.items() if name.startswith("folded")]
    frequencies = np.exp(-np.log(10000) * np.arange(16) / 16)
    assert any(np.allclose(table.numpy().ravel(), frequencies) for table in tables if table.numel() == 16)
