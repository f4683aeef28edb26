"""The stages of a graph: what depends on the prompt or the timestep alone, checked by changing the rest."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, fx

from fastdiff.build.modules import random_inputs
from fastdiff.build.passes import FUSIONS, PASSES, Stage, normalise, run_passes, stages
from fastdiff.errors import InputError
from fastdiff.kernels import library
from tests.build.conftest import Captured
from tests.build.passes.conftest import fused_function, operators, values

PROMPT, SCHEDULE, STEP = Stage.PROMPT, Stage.SCHEDULE, Stage.STEP
CONV2D = library.conv2d._opoverload
X = torch.randn(2, 12)
INPUTS = (X, X.clone(), X.clone())  # which the exporter would take for one

FORMS: dict[str, tuple[Callable[..., Any], dict[str, Stage]]] = {
    "each alone": (
        lambda m, p, s, x: (p.sin(), s.cos(), x.tan()),
        {"sin": PROMPT, "cos": SCHEDULE, "tan": STEP},
    ),
    "prompt with step": (lambda m, p, s, x: (p.sin() + x, s), {"sin": PROMPT, "add": STEP}),
    "prompt with schedule": (
        lambda m, p, s, x: ((p.sin() + s.cos()).tan(), x),
        {"sin": PROMPT, "cos": SCHEDULE, "add": STEP, "tan": STEP},
    ),
    "weights": (
        lambda m, p, s, x: (p @ m.q.weight.sin(), s @ m.k.weight.cos(), x @ m.v.weight.tan()),
        {"sin": PROMPT, "cos": SCHEDULE, "tan": STEP},
    ),
    "weights for two stages": (
        lambda m, p, s, x: (lambda w: (s @ w, p @ w, x))(m.q.weight.sin()),
        {"sin": PROMPT},
    ),
    "weights for no input": (lambda m, p, s, x: (p, s, x, m.q.weight.sin()), {"sin": STEP}),
    "the size of another input": (
        lambda m, p, s, x: (p.sin().reshape(x.shape[0], 3, 4), s, x),
        {"sin": PROMPT, "reshape": PROMPT},
    ),
    "parts": (
        lambda m, p, s, x: (p.chunk(2, 1)[1].sin(), s, x),
        {"chunk": PROMPT, "getitem": PROMPT, "sin": PROMPT},
    ),
}


@pytest.mark.parametrize("name", FORMS)
def test_stages(name: str) -> None:
    function, wanted = FORMS[name]
    _, program = fused_function(function, lambda program: program, *INPUTS)
    prompt, schedule, step = program.graph_signature.user_inputs
    found = stages(program, [str(prompt)], [str(schedule)])
    by_name = {node.name: stage for node, stage in found.items()}
    assert {str(prompt): PROMPT, str(schedule): SCHEDULE, str(step): STEP}.items() <= by_name.items()
    assert wanted.items() <= by_name.items()
    assert set(stages(program).values()) == {STEP}


def test_names_are_checked() -> None:
    _, program = fused_function(lambda m, x: x.sin() @ m.q.weight, lambda program: program, X)
    (name,) = program.graph_signature.user_inputs
    with pytest.raises(InputError, match=f"prompt inputs: found 'text', wanted some of {name}"):
        stages(program, ["text"])
    with pytest.raises(InputError, match="schedule inputs: found 'p_q_weight'"):
        stages(program, (), ["p_q_weight"])
    with pytest.raises(InputError, match=f"'{name}' is among the prompt and the schedule inputs"):
        stages(program, [str(name)], [str(name)])


def test_a_checkpoint_s_unet(captured: Captured) -> None:
    module = captured("unet")
    assert module.program is not None
    program = run_passes(normalise(module.program), PASSES + FUSIONS)
    found = stages(program, ["encoder_hidden_states"], ["timestep"])
    inside = {stage: [n for n, its in found.items() if its is stage] for stage in Stage}

    sizes = {"batch": 3, "tokens": 5, "height": 8, "width": 4}
    same = random_inputs(module.spec, sizes, 0)

    def computed(seed: int, **kept: Any) -> dict[fx.Node, Any]:
        arrays = {**random_inputs(module.spec, sizes, seed), **kept}
        return values(program, *(torch.from_numpy(arrays[tensor.name]) for tensor in module.spec.inputs))

    first = computed(0)
    for stage, name in ((PROMPT, "encoder_hidden_states"), (SCHEDULE, "timestep")):
        other = computed(1, **{name: same[name]})
        assert all(torch.equal(first[node], other[node]) for node in inside[stage])
        # and nothing is left in the step that could have been hoisted
        steps = [n for n in inside[STEP] if n.op == "call_function" and isinstance(first[n], Tensor)]
        assert not any(torch.equal(first[node], other[node]) for node in steps)

    # two projections per cross-attention; the embedding, its MLP and one projection per residual block
    counts = operators(program)
    crossed = counts["fastdiff.attention.default"] // 2
    resnets = sum(n.target is CONV2D and n.args[3] is not None for n in program.graph.nodes)
    assert counts["fastdiff.timestep_embedding.default"] == 1
    assert min(crossed, resnets) > 0
    calls = {stage: [n for n in nodes if n.op == "call_function"] for stage, nodes in inside.items()}
    assert (len(calls[PROMPT]), len(calls[SCHEDULE])) == (2 * crossed, 1 + 2 + resnets)
