"""Modules of text encoders against transformers: all hidden states, vectors of textual inversion, pooling."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import CLIPTextModel, CLIPTextModelWithProjection

from fastdiff.build.capture import CapturedModule, capture, run_eager
from fastdiff.build.modules import module_spec
from fastdiff.build.passes import run_passes
from fastdiff.config import Precision
from fastdiff.manifest import ModuleEntry
from fastdiff.targets import CompileOptions, get_target
from tests.published import ENCODER, SPEC, VOCABULARY, _clip_config

TOKENS = 9
ADDED = VOCABULARY
"""The first id of the table's rows of zeros."""


def part(projected: bool, eos: int = VOCABULARY - 1) -> Any:
    config = _clip_config(hidden_act="gelu", projection_dim=20, eos_token_id=eos)
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(5)
        made = CLIPTextModelWithProjection(config) if projected else CLIPTextModel(config)
        for parameter in made.parameters():
            if parameter.dim() == 1:
                parameter.add_(0.1 * torch.randn(parameter.shape))
    return made.eval()


def module(model: Any, penultimate: bool) -> CapturedModule:
    pooled = 20 if isinstance(model, CLIPTextModelWithProjection) else 0
    layers = 2 if penultimate else 3
    encoder = replace(
        ENCODER, layers=layers, pooled_size=pooled, penultimate=penultimate, vocabulary=VOCABULARY
    )
    spec = module_spec("text_encoder", replace(SPEC, text_encoders=(encoder,)))
    return CapturedModule(spec, spec.wrap(model), model)


def inputs(rows: int = 2) -> dict[str, np.ndarray]:
    """Ids with an end token, the last two before it vectors in the first row."""
    rng = np.random.default_rng(0)
    ids = rng.integers(0, VOCABULARY - 2, (rows, TOKENS))
    ids[:, -3:] = VOCABULARY - 1
    ids[0, 3:5] = ADDED, ADDED + 1
    added = np.zeros((rows, TOKENS, 24), np.float32)
    added[0, 3:5] = rng.normal(0, 0.5, (2, 24))
    return {"input_ids": ids, "added_embeds": added}


def wanted(model: Any, arrays: dict[str, np.ndarray]) -> Any:
    """transformers with a table that has the vectors as its last rows, as diffusers makes it."""
    text = getattr(model, "text_model", model)
    table = text.embeddings.token_embedding
    extended = torch.nn.Embedding.from_pretrained(
        torch.cat([table.weight.detach(), torch.from_numpy(arrays["added_embeds"][0, 3:5])])
    )
    try:
        text.embeddings.token_embedding = extended
        with torch.no_grad():
            return model(torch.from_numpy(arrays["input_ids"]), output_hidden_states=True)
    finally:
        text.embeddings.token_embedding = table


def check(found: dict[str, np.ndarray], model: Any, penultimate: bool, limit: float = 1e-5) -> None:
    expected = wanted(model, inputs())
    text = getattr(model, "text_model", model)
    states = list(expected.hidden_states)[::-1]
    with torch.no_grad():
        states = states[1:] if penultimate else [text.final_layer_norm(state) for state in states]
    pairs = [(found["last_hidden_state"], states[0])]
    pairs += [(found["hidden_states"][:, index], state) for index, state in enumerate(states)]
    if "text_embeds" in found:
        pairs.append((found["text_embeds"], expected.text_embeds))
    assert found["hidden_states"].shape[1] == len(states)
    for ours, theirs in pairs:
        reference = theirs.numpy()
        assert ours.shape == reference.shape
        assert np.linalg.norm(ours - reference) <= limit * np.linalg.norm(reference)


@pytest.mark.parametrize("penultimate", [False, True])
@pytest.mark.parametrize("projected", [False, True])
def test_hidden_states(projected: bool, penultimate: bool) -> None:
    model = part(projected)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    made = module(model, penultimate)
    found = run_eager(made.eager, made.spec.inputs, made.spec.outputs, inputs())
    check(found, model, penultimate, limit=1e-6)
    assert ("text_embeds" in found) is projected
    after = model.state_dict()
    assert list(after) == list(before), "the library's part stays as it was"
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())


def test_old_end_token_pools_at_the_largest_id() -> None:
    """Where the last vector that was added stands, as in diffusers with such a configuration."""
    model = part(True, eos=2)
    made = module(model, penultimate=True)
    check(run_eager(made.eager, made.spec.inputs, made.spec.outputs, inputs()), model, penultimate=True)


@cache
def captured(projected: bool) -> CapturedModule:
    """SDXL's second encoder, or its first."""
    made = capture(module(part(projected), penultimate=True))
    assert made.program is not None
    return made.with_program(run_passes(made.program))


@pytest.mark.parametrize(
    ("target", "projected"),
    [("native", False), ("native", True), ("onnxruntime", False), ("onnxruntime", True), ("torch", True)],
)
def test_targets(target: str, projected: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from fastdiff.targets.native import compiler

    monkeypatch.setattr(compiler, "_ROUNDS", 1)
    monkeypatch.setattr(compiler, "_SECONDS", 1e-5)
    made = captured(projected)
    options = CompileOptions(Precision.FP32, {"batch": 2, "tokens": TOKENS}, 2.0)
    compiled = get_target(target).compile(made, tmp_path, options)
    spec = made.spec
    entry = ModuleEntry(
        *(target, Precision.FP32, spec.inputs, spec.outputs, spec.shapes),
        *(dict.fromkeys(compiled.files, ""), 0, {}, 0.0),
        tactics=compiled.tactics,
    )
    with get_target(target).open(tmp_path, spec.name, entry, 1) as session:
        check(session(**inputs()), made.source, penultimate=True)


def test_a_vector_is_nothing_but_itself() -> None:
    """Without vectors the table is the library's, to the last bit."""
    made = captured(True)
    arrays = inputs()
    arrays["input_ids"][0, 3:5] = 1
    arrays["added_embeds"][:] = 0
    found = run_eager(made.eager, made.spec.inputs, made.spec.outputs, arrays)
    with torch.no_grad():
        plain = made.source(torch.from_numpy(arrays["input_ids"]), output_hidden_states=True)
    np.testing.assert_array_equal(found["last_hidden_state"], plain.hidden_states[-2].numpy())
    np.testing.assert_array_equal(found["text_embeds"], plain.text_embeds.numpy())
