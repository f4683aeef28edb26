"""All passes on whole models: the same result at other sizes, only ops of the fused graph, true shapes."""

from __future__ import annotations

import pytest
import sympy
import torch
from torch import Tensor

from fastdiff.build.modules import random_inputs
from fastdiff.build.passes import Stage, stages
from fastdiff.config import MODULES
from tests.build.passes.conftest import compare, operators, tensor_operators, values
from tests.published import VOCABULARY, fused, model, sizes_of

CONV, LINEAR, NORM = "fastdiff.conv2d", "fastdiff.linear", "fastdiff.group_norm_silu"
ATTENTION, TIME, LAYER_NORM = "fastdiff.attention", "fastdiff.timestep_embedding", "aten.layer_norm"
VIEW, PERMUTE, SLICE, CAT = "aten.view", "aten.permute", "aten.slice", "aten.cat"

OPERATORS: dict[str, dict[str, int]] = {
    "sd15": {
        CONV: 52,
        LINEAR: 198,
        NORM: 61,
        ATTENTION: 32,
        TIME: 1,
        LAYER_NORM: 48,
        VIEW: 32,
        PERMUTE: 2,
        SLICE: 48,
        CAT: 12,
    },
    "sdxl": {
        CONV: 40,
        LINEAR: 278,
        NORM: 46,
        ATTENTION: 56,
        TIME: 2,
        LAYER_NORM: 84,
        "aten.silu": 1,
        VIEW: 24,
        PERMUTE: 2,
        SLICE: 84,
        CAT: 10,
    },
    "vae_decoder": {CONV: 33, LINEAR: 5, NORM: 30, ATTENTION: 1, VIEW: 2, PERMUTE: 2, SLICE: 3},
    "vae_encoder": {
        CONV: 25,
        LINEAR: 5,
        NORM: 22,
        ATTENTION: 1,
        "aten.clamp": 1,
        VIEW: 2,
        PERMUTE: 3,
        SLICE: 5,
    },
    "clip": {
        LINEAR: 8,
        ATTENTION: 2,
        LAYER_NORM: 6,
        "aten.embedding": 2,
        "aten.add": 2,
        VIEW: 3,
        SLICE: 7,
        CAT: 1,
    },
    "pixels": {
        CONV: 28,
        LINEAR: 34,
        NORM: 30,
        ATTENTION: 7,
        TIME: 1,
        "aten.embedding": 1,
        "aten.silu": 1,
        VIEW: 14,
        PERMUTE: 2,
        SLICE: 21,
        CAT: 6,
    },
    "pixels_scale_shift": {
        CONV: 31,
        LINEAR: 37,
        NORM: 35,
        ATTENTION: 7,
        TIME: 1,
        "aten.embedding": 1,
        "fastdiff.upsample_nearest2d": 2,
        "fastdiff.avg_pool2d": 2,
        "aten.mul": 14,
        "aten.add": 28,
        "aten.silu": 15,
        VIEW: 28,
        PERMUTE: 2,
        SLICE: 49,
        CAT: 6,
    },
}
"""Of the fused graphs: one permute per picture in or out, every silu, gelu and residual sum inside another op
but for sums of embeddings and, in the last, what scale and shift put between a norm and its silu."""

STAGES: dict[str, dict[Stage, dict[str, int]]] = {
    "sd15": {Stage.PROMPT: {LINEAR: 32}, Stage.SCHEDULE: {LINEAR: 24, TIME: 1}},
    "sdxl": {
        Stage.PROMPT: {LINEAR: 57, VIEW: 2, TIME: 1, CAT: 1},
        Stage.SCHEDULE: {LINEAR: 2, TIME: 1},  # from there on it is a sum with the prompt's
    },
}
"""Operators that leave the step: keys, values and the added conditions; the time embedding, its MLP and its
projections, unless something is added to it."""

STAGE_INPUTS = {
    "sd15": (("encoder_hidden_states",), ("timestep",)),
    "sdxl": (("encoder_hidden_states", "text_embeds", "time_ids"), ("timestep",)),
}
"""Names of the prompt's inputs and of the schedule's."""

SCENES = {
    "text_encoder": {LAYER_NORM, VIEW, SLICE, CAT, "aten.add", "aten.embedding"},
    "unet": {LAYER_NORM, VIEW, PERMUTE, SLICE, CAT},
    "vae_decoder": {PERMUTE},
    "vae_encoder": {PERMUTE, SLICE, "aten.clamp"},
}
"""What is left of ATen."""


def inputs_of(name: str) -> list[Tensor]:
    """Of sizes other than captured."""
    module = model(name)
    arrays = random_inputs(module.spec, sizes_of(module, 0), seed=0, vocab_size=VOCABULARY)
    return [torch.from_numpy(arrays[tensor.name]) for tensor in module.spec.inputs]


@pytest.mark.parametrize("name", OPERATORS)
def test_same_result_at_other_sizes(name: str) -> None:
    before = model(name).program
    assert before is not None
    compare(before, fused(name), *inputs_of(name), rel_l2=5e-6)


@pytest.mark.parametrize("name", OPERATORS)
def test_operators(name: str) -> None:
    assert tensor_operators(fused(name)) == OPERATORS[name]


@pytest.mark.parametrize("name", OPERATORS)
def test_shapes_hold_at_other_sizes(name: str) -> None:
    """Every node's symbolic shape, which lowering reads, is that of its value."""
    program = fused(name)
    found = values(program, *inputs_of(name))
    sizes: dict[sympy.Symbol, sympy.Expr] = {}
    for node, value in found.items():
        if node.op == "placeholder" and isinstance(value, Tensor):
            for symbolic, size in zip(node.meta["val"].shape, value.shape, strict=True):
                if isinstance(symbolic, torch.SymInt) and (free := symbolic.node.expr.free_symbols):
                    (symbol,) = free
                    (sizes[symbol],) = sympy.solve(symbolic.node.expr - size, symbol)
    checked = 0
    for node, value in found.items():
        if isinstance(value, Tensor):
            shape = [
                s if isinstance(s, int) else int(s.node.expr.subs(sizes)) for s in node.meta["val"].shape
            ]
            assert shape == list(value.shape), f"{node.name}: {node.meta['val'].shape}"
            checked += node.op == "call_function"
    assert checked == sum(tensor_operators(program).values())


@pytest.mark.parametrize("name", STAGES)
def test_stages(name: str) -> None:
    found = stages(fused(name), *STAGE_INPUTS[name])
    for stage, wanted in STAGES[name].items():
        nodes = [node for node, its in found.items() if its is stage and node.op == "call_function"]
        counts = {key: sum(key in f"{node.target}" for node in nodes) for key in wanted}
        assert (counts, len(nodes)) == (wanted, sum(wanted.values()))


@pytest.mark.parametrize("name", MODULES)
def test_scenes(name: str) -> None:
    test_same_result_at_other_sizes(f"scenes_{name}")
    counts = operators(fused(f"scenes_{name}"))
    left = {op.rpartition(".")[0] for op in counts if op.startswith("aten.") and "sym_size" not in op}
    assert left == SCENES[name]
