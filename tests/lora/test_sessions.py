"""Updated modules against PyTorch with the update added to its weights, on every target that runs here."""

from __future__ import annotations

import copy
import dataclasses
import shutil
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fastdiff.build import onnx
from fastdiff.build.capture import run_eager
from fastdiff.build.checkpoint import load_checkpoint
from fastdiff.build.modules import module_spec, random_inputs
from fastdiff.engine_dir import open_engine
from fastdiff.errors import EngineDamagedError, InputError, TargetError
from fastdiff.lora import LowRank
from fastdiff.targets import CompileOptions, get_target, onnxruntime
from fastdiff.targets.session import Session
from tests.compare import assert_close, relative_l2
from tests.engines import TEXT_ENCODER
from tests.lora.made_up import add_to, layers_of, random_updates
from tests.published import VOCABULARY, model

TARGETS = ("native", "onnxruntime", "torch")
MODULES = ("unet", "text_encoder")
ERROR = 1e-4
SIZES = (
    {"batch": 1, "tokens": 77, "height": 8, "width": 8},
    {"batch": 2, "tokens": 11, "height": 12, "width": 6},
)
"""The engines' own, and some that they were not built for."""
LAYERS = {
    "merged q, k and v": ("unet", "mid_block.attentions.0.transformer_blocks.0.attn1.to_k"),
    "keys of the prompt": ("unet", "mid_block.attentions.0.transformer_blocks.0.attn2.to_k"),
    "geglu": ("unet", "mid_block.attentions.0.transformer_blocks.0.ff.net.0.proj"),
    "with a residual": ("unet", "mid_block.attentions.0.transformer_blocks.0.ff.net.2"),
    "convolution as a matrix": ("unet", "down_blocks.0.attentions.0.proj_in"),
    "convolution with a vector": ("unet", "down_blocks.1.resnets.0.conv1"),
    "convolution with a residual": ("unet", "mid_block.resnets.0.conv2"),
    "stride 2": ("unet", "down_blocks.0.downsamplers.0.conv"),
    "enlarged input": ("unet", "up_blocks.0.upsamplers.0.conv"),
    "shortcut": ("unet", "up_blocks.0.resnets.0.conv_shortcut"),
    "first": ("unet", "conv_in"),
    "last": ("unet", "conv_out"),
    "of the time, with silu": ("unet", "time_embedding.linear_1"),
    "projection of the time": ("unet", "up_blocks.1.resnets.0.time_emb_proj"),
    "quick_gelu": ("text_encoder", "encoder.layers.0.mlp.fc1"),
    "causal attention": ("text_encoder", "encoder.layers.1.self_attn.v_proj"),
}


@pytest.fixture(scope="module", params=TARGETS)
def sessions(request: pytest.FixtureRequest) -> Iterator[dict[str, Session]]:
    fixture = {"native": "tiny_native_engine", "onnxruntime": "tiny_engine", "torch": "torch_engine"}
    engine = open_engine(request.getfixturevalue(fixture[request.param]))
    opened = {name: engine.open_module(name, 1) for name in MODULES}
    yield opened
    for session in opened.values():
        session.close()


@cache
def part(checkpoint: Path, name: str) -> Any:
    return load_checkpoint(checkpoint).load(name)


def inputs_of(checkpoint: Path, name: str, sizes: dict[str, int]) -> dict[str, Any]:
    spec = module_spec(name, load_checkpoint(checkpoint).spec)
    return random_inputs(spec, {symbol: sizes[symbol] for symbol in spec.shapes}, seed=3, vocab_size=300)


def expected(
    checkpoint: Path, session: Session, updates: list[dict[str, LowRank]], inputs: dict[str, Any]
) -> dict[str, Any]:
    """What PyTorch computes with updates in its weights."""
    module = copy.deepcopy(part(checkpoint, session.name))
    for each in updates:
        add_to(module, each)
    spec = module_spec(session.name, load_checkpoint(checkpoint).spec)
    return run_eager(spec.wrap(module), session.inputs, session.outputs, inputs)


def floats(outputs: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in outputs.items() if value.dtype.kind == "f"}


@pytest.mark.parametrize("rank", [1, 3, 32])
@pytest.mark.parametrize("name", MODULES)
def test_every_layer_at_once(
    sessions: dict[str, Session], name: str, rank: int, tiny_checkpoint: Path
) -> None:
    session = sessions[name]
    shapes = session.adaptable()
    assert dict(shapes) == layers_of(part(tiny_checkpoint, name))
    updates = random_updates(shapes, rank, seed=rank, alpha=rank / 2)
    for sizes in SIZES:
        inputs = inputs_of(tiny_checkpoint, name, sizes)
        plain = session(**inputs)
        session.set_adapters({path: [update] for path, update in updates.items()})
        found = session(**inputs)
        session.set_adapters({})
        again = session(**inputs)
        for output, wanted in floats(expected(tiny_checkpoint, session, [updates], inputs)).items():
            assert_close(found[output], wanted, rel_l2=ERROR, label=f"{output} at {sizes}")
            assert relative_l2(found[output], plain[output]) > 0.1  # it has an effect worth the name
            assert np.array_equal(again[output], plain[output])


@pytest.mark.parametrize("layer", LAYERS)
def test_layers_of_each_kind(sessions: dict[str, Session], layer: str, tiny_checkpoint: Path) -> None:
    name, path = LAYERS[layer]
    session = sessions[name]
    shape = session.adaptable()[path]
    updates = random_updates({path: shape}, rank=3, seed=5, size=2.0)
    inputs = inputs_of(tiny_checkpoint, name, SIZES[1])
    plain = session(**inputs)
    session.set_adapters({path: [updates[path]]})
    found = session(**inputs)
    session.set_adapters({})
    for output, wanted in floats(expected(tiny_checkpoint, session, [updates], inputs)).items():
        assert_close(found[output], wanted, rel_l2=ERROR, label=output)
        assert relative_l2(found[output], plain[output]) > 10 * ERROR


def test_several_of_one_layer(sessions: dict[str, Session], tiny_checkpoint: Path) -> None:
    """Ranks and scales of their own, some of parts of merged layers, one with its effect reversed."""
    session = sessions["unet"]
    shapes = session.adaptable()
    some = {path: shape for path, shape in shapes.items() if path.endswith(("to_q", "to_v", "conv1"))}
    first, second = random_updates(shapes, 2, seed=1), random_updates(some, 5, seed=2)
    second = {path: update.times(-0.5) for path, update in second.items()}
    inputs = inputs_of(tiny_checkpoint, "unet", SIZES[1])
    session.set_adapters(
        {path: [first[path], *([second[path]] if path in second else [])] for path in shapes}
    )
    found = session(**inputs)
    session.set_adapters({path: [update] for path, update in second.items()})
    alone = session(**inputs)
    session.set_adapters({})
    both = expected(tiny_checkpoint, session, [first, second], inputs)
    for output, wanted in both.items():
        assert_close(found[output], wanted, rel_l2=ERROR, label="both")
    for output, wanted in expected(tiny_checkpoint, session, [second], inputs).items():
        assert_close(alone[output], wanted, rel_l2=ERROR, label="the second alone")


def test_refusals(sessions: dict[str, Session], tiny_checkpoint: Path) -> None:
    """And the session is as it was."""
    session = sessions["unet"]
    updates = random_updates({"conv_in": session.adaptable()["conv_in"]}, 2, seed=1)
    inputs = inputs_of(tiny_checkpoint, "unet", SIZES[0])
    session.set_adapters({"conv_in": [updates["conv_in"]]})
    wanted = session(**inputs)["sample"]
    with pytest.raises(InputError, match="has no layer conv_inside that takes updates"):
        session.set_adapters({"conv_inside": [updates["conv_in"]]})
    with pytest.raises(InputError, match=r"update of conv_out has shape \[32, 4, 3, 3\]: it must be"):
        session.set_adapters({"conv_out": [updates["conv_in"]]})
    assert np.array_equal(session(**inputs)["sample"], wanted)
    session.set_adapters({})
    assert not np.array_equal(session(**inputs)["sample"], wanted)


@pytest.mark.parametrize("fixture", ["tiny_native_engine", "tiny_engine"])
def test_engines_without_places(fixture: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    """Such as were built before there were LoRAs, or whose file is damaged."""
    engine = open_engine(shutil.copytree(request.getfixturevalue(fixture), tmp_path / "copy.fd"))
    entry = engine.entry("unet")
    name = "unet.parameters.json"
    old = dataclasses.replace(entry, files={k: v for k, v in entry.files.items() if k != name})
    target = get_target(entry.target)
    with target.open(engine.path, "unet", old, 1) as session:
        with pytest.raises(TargetError, match="build it again"):
            session.adaptable()
        session.set_adapters({})
    whole = (engine.path / name).read_text()
    for damaged in ("", "{}", '{"format_version":2,"layers":{}}', whole.replace("[[", '[["x",', 1)):
        (engine.path / name).write_text(damaged)
        with (
            target.open(engine.path, "unet", entry, 1) as session,
            pytest.raises(EngineDamagedError, match=r"unet\.parameters\.json cannot be read"),
        ):
            session.adaptable()


def test_sessions_of_one_file(tiny_engine: Path, tiny_checkpoint: Path) -> None:
    """ONNX Runtime's sessions share the second graph's weights, and each has updates of its own."""
    engine = open_engine(tiny_engine)
    with engine.open_module("unet", 1) as first, engine.open_module("unet", 1) as second:
        inputs = inputs_of(tiny_checkpoint, "unet", SIZES[1])
        plain = first(**inputs)["sample"]
        updates = random_updates(first.adaptable(), 2, seed=1)
        first.set_adapters({path: [update] for path, update in updates.items()})
        wanted = first(**inputs)["sample"]
        assert np.array_equal(second(**inputs)["sample"], plain)
        second.set_adapters({path: [update.times(0.5)] for path, update in updates.items()})
        assert vars(first)["_session"] is vars(second)["_session"]
        assert not np.array_equal(second(**inputs)["sample"], wanted)
        second.set_adapters({})
        assert np.array_equal(second(**inputs)["sample"], plain)
        assert np.array_equal(first(**inputs)["sample"], wanted)


def test_a_second_graph_that_is_damaged(tiny_engine: Path, tiny_checkpoint: Path, tmp_path: Path) -> None:
    """ONNX Runtime opens it with the first LoRA; the session goes on with the first graph."""
    engine = open_engine(shutil.copytree(tiny_engine, tmp_path / "copy.fd"))
    with engine.open_module("text_encoder", 1) as session:
        inputs = inputs_of(tiny_checkpoint, "text_encoder", SIZES[1])
        plain = session(**inputs)
        second = engine.path / "text_encoder.lora.onnx"
        second.write_bytes(second.read_bytes()[:1000])
        updates = random_updates(session.adaptable(), 1, seed=1)
        with pytest.raises(EngineDamagedError, match=r"refuses text_encoder\.lora\.onnx .*build it again"):
            session.set_adapters({path: [update] for path, update in updates.items()})
        for name, wanted in plain.items():
            assert np.array_equal(session(**inputs)[name], wanted)


def test_weights_in_a_file_of_their_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As large ones are. They are mapped with branches as without, or the sums of their products would be
    rounded differently.
    """
    monkeypatch.setattr(onnx, "EXTERNAL_DATA_LIMIT", 1000)
    captured = model("clip")
    compiled = onnxruntime.compile(captured, tmp_path, CompileOptions())
    assert sum("data" in name for name in compiled.files) == 1
    files = dict.fromkeys(compiled.files, "")
    entry = dataclasses.replace(TEXT_ENCODER, files=files, tactics=compiled.tactics)
    entry = dataclasses.replace(entry, inputs=captured.spec.inputs, outputs=captured.spec.outputs)
    inputs = random_inputs(captured.spec, {"batch": 2, "tokens": 7}, 1, VOCABULARY)
    with onnxruntime.open(tmp_path, "text_encoder", entry, 1) as session:
        assert dict(session.adaptable()) == layers_of(captured.source)
        plain = session(**inputs)["last_hidden_state"]
        updates = random_updates(session.adaptable(), 2, seed=1)
        session.set_adapters({path: [update] for path, update in updates.items()})
        source = copy.deepcopy(captured.source)
        add_to(source, updates)
        wanted = run_eager(captured.spec.wrap(source), entry.inputs, entry.outputs, inputs)
        found = session(**inputs)["last_hidden_state"]
        assert_close(found, wanted["last_hidden_state"], rel_l2=ERROR)
        assert relative_l2(found, plain) > 0.1
        session.set_adapters({})
        assert np.array_equal(session(**inputs)["last_hidden_state"], plain)


def test_modules_that_take_none(tiny_native_engine: Path) -> None:
    with open_engine(tiny_native_engine).open_module("vae_decoder", 1) as session:
        with pytest.raises(TargetError, match="vae_decoder"):
            session.adaptable()
        session.set_adapters({})
