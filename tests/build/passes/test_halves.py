"""Graphs in half precision: errors no larger than PyTorch's own, types where they must be."""

from __future__ import annotations

import copy
import operator
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn
from torch.export import Dim, ExportedProgram

from fastdiff.build.modules import random_inputs
from fastdiff.build.passes import halves, normalise, plain_attention
from fastdiff.build.passes.halves import FULL, PRODUCTS
from fastdiff.errors import CaptureError
from tests.compare import assert_close, relative_l2
from tests.published import MODELS, VOCABULARY, model, sizes_of

CHECKED = [
    name
    for name in MODELS
    if name not in ("sd15", "clip_gelu", "pixels", "pixels_scale_shift", "scenes_unet", "scenes_vae_encoder")
]
"""Those left out differ from others here by widths and by what activations and time embeddings do."""


@pytest.mark.parametrize("name", CHECKED)
def test_error_is_at_most_pytorchs(name: str) -> None:
    """Against float32, twice what the eager module's error is in the same type."""
    module = model(name)
    assert module.program is not None
    program = halves(plain_attention(normalise(module.program)))
    check_types(program, torch.float16)
    arrays = random_inputs(module.spec, sizes_of(module, 0), seed=1, vocab_size=VOCABULARY)
    inputs = [torch.from_numpy(arrays[tensor.name]) for tensor in module.spec.inputs]
    rounded = [x if x.dim() < 2 or x.dtype == torch.int64 else x.half() for x in inputs]  # not the timestep
    with torch.inference_mode():
        wanted = outputs(module.eager(*inputs))
        yardstick = outputs(copy.deepcopy(module.eager).half()(*rounded))
        found = outputs(program.module()(*inputs))
    for f, w, y in zip(found, wanted, yardstick, strict=True):
        assert f.dtype == torch.float32
        assert_close(f, w, rel_l2=2 * relative_l2(y.float(), w))


def outputs(result: Any) -> list[Tensor]:
    return [result] if isinstance(result, Tensor) else list(result)


def floats(node: fx.Node) -> set[torch.dtype]:
    values = torch.utils._pytree.tree_leaves(node.meta.get("val"))
    return {x.dtype for x in values if isinstance(x, Tensor) and x.is_floating_point()}


def check_types(program: ExportedProgram, half: torch.dtype) -> None:
    """Products take halves, sensitive operators float32, and no operator two floating types."""
    for node in program.graph.nodes:
        if node.op != "call_function" or node.target is torch.ops.aten._to_copy.default:
            continue
        found = set().union(*(floats(source) for source in node.all_input_nodes))
        assert len(found) <= 1, f"{node.name} takes {found}"
        if node.target in PRODUCTS:
            assert found == {half}, node.name
        if node.target in FULL:
            assert found == {torch.float32}, node.name
        if found and node.target is not operator.getitem:
            assert floats(node) <= found, f"{node.name} is noted as {floats(node)}"


def test_recorded_types_are_those_computed() -> None:
    """What the pass notes for every node is what running it gives."""
    module = model("vae_encoder")
    assert module.program is not None
    program = halves(normalise(module.program))
    arrays = random_inputs(module.spec, sizes_of(module, 0), seed=1)

    class Checker(fx.Interpreter):
        def run_node(self, n: fx.Node) -> Any:
            result = super().run_node(n)
            noted, made = (torch.utils._pytree.tree_leaves(x) for x in (n.meta.get("val"), result))
            if n.op == "call_function":
                assert [x.dtype for x in noted if isinstance(x, Tensor)] == [
                    x.dtype for x in made if isinstance(x, Tensor)
                ], n.name
            return result

    stored = {**program.state_dict, **program.constants}
    given = iter([torch.from_numpy(arrays[tensor.name]) for tensor in module.spec.inputs])
    specs = program.graph_signature.input_specs
    with torch.inference_mode():
        Checker(program.graph_module).run(*(stored[s.target] if s.target else next(given) for s in specs))


class Timestep(nn.Module):
    """What must not be rounded before the sine: 0.9 radians at a timestep of 999."""

    def __init__(self) -> None:
        super().__init__()
        self.frequencies = nn.Buffer(torch.tensor([1.0, 0.37, 0.01]))
        self.linear = nn.Linear(3, 5)
        self.norm = nn.LayerNorm(5)

    def forward(self, timestep: Tensor) -> Tensor:
        return self.norm(self.linear(torch.sin(timestep[:, None] * self.frequencies))).chunk(2, 1)[0]


def test_timesteps_stay_exact_and_norms_keep_their_weights() -> None:
    torch.manual_seed(0)
    module = Timestep()
    steps = torch.tensor([999.0, 998.6, 3.0])
    before = torch.export.export(module, (steps,), dynamic_shapes=({0: Dim("batch")},))
    after = halves(before)
    kinds = {name: value.dtype for name, value in (*after.state_dict.items(), *after.constants.items())}
    assert sorted(map(str, kinds.values())) == ["torch.float16"] * 2 + ["torch.float32"] * 3
    assert kinds["norm.weight"] == kinds["norm.bias"] == torch.float32
    assert_close(after.module()(steps), module(steps), rel_l2=1e-3)
    assert before.graph_module.code != after.graph_module.code, "the given program stays as it is"


def test_bfloat16() -> None:
    module = Timestep()
    steps = torch.tensor([999.0, 3.0])
    after = halves(torch.export.export(module, (steps,)), torch.bfloat16)
    check_types(after, torch.bfloat16)
    assert_close(after.module()(steps), module(steps), rel_l2=2e-2)


def test_infinities_are_weights_but_overflow_is_not() -> None:
    class Masked(nn.Module):
        def __init__(self, largest: float) -> None:
            super().__init__()
            self.mask = nn.Buffer(torch.tensor([0.0, -torch.inf, 0.0]))
            self.weight = nn.Parameter(torch.full((3, 3), largest))

        def forward(self, x: Tensor) -> Tensor:
            return torch.softmax(x @ self.weight + self.mask, -1)

    x = torch.ones(2, 3)
    found = halves(torch.export.export(Masked(2.0), (x,))).module()(x)
    assert_close(found, torch.tensor([[0.5, 0.0, 0.5]] * 2), max_abs=1e-6)
    with pytest.raises(
        CaptureError, match=r"weight p_weight reaches 7e\+04, the largest float16 is 6.55e\+04"
    ):
        halves(torch.export.export(Masked(7e4), (x,)))
