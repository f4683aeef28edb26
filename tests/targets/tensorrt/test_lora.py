"""LoRAs on an open engine: against PyTorch with updated weights, under graphs, and what fails."""

from __future__ import annotations

import copy
import dataclasses
import json
import weakref
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fastdiff
from fastdiff.build.capture import run_eager
from fastdiff.build.checkpoint import load_checkpoint
from fastdiff.build.modules import module_spec, random_inputs
from fastdiff.engine_dir import open_engine
from fastdiff.errors import EngineDamagedError, InputError, NumericError, TargetError
from fastdiff.lora import LowRank
from fastdiff.targets import parameters, tensorrt
from fastdiff.targets.tensorrt.session import TensorRtSession
from tests.checkpoints import copy_checkpoint
from tests.compare import assert_close, relative_l2
from tests.lora.made_up import add_to, layers_of, random_updates, write_lora
from tests.targets.tensorrt.conftest import Built, Machine

MODULES = ("unet", "text_encoder")
SIZES = {"batch": 2, "tokens": 40, "height": 6, "width": 10}
ERROR = 3e-3
"""What halves leave of it."""
QUERY = "mid_block.attentions.0.transformer_blocks.0.attn1.to_q"


@cache
def part(checkpoint: Path, name: str) -> Any:
    return load_checkpoint(checkpoint).load(name)


def inputs_of(checkpoint: Path, name: str) -> dict[str, Any]:
    spec = module_spec(name, load_checkpoint(checkpoint).spec)
    return random_inputs(spec, {symbol: SIZES[symbol] for symbol in spec.shapes}, seed=3, vocab_size=100)


def expected(
    checkpoint: Path, name: str, updates: list[dict[str, LowRank]], inputs: dict[str, Any]
) -> dict[str, Any]:
    """What PyTorch computes with updates in its weights."""
    module = copy.deepcopy(part(checkpoint, name))
    for each in updates:
        add_to(module, each)
    spec = module_spec(name, load_checkpoint(checkpoint).spec)
    return run_eager(spec.wrap(module), spec.inputs, spec.outputs, inputs)


def floats(outputs: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in outputs.items() if value.dtype.kind == "f"}


def single(updates: dict[str, LowRank]) -> dict[str, list[LowRank]]:
    return {path: [update] for path, update in updates.items()}


def only(session: Any, path: str, seed: int = 1, size: float = 2.0) -> dict[str, LowRank]:
    return random_updates({path: session.adaptable()[path]}, 2, seed, size)


@pytest.fixture
def unet(built: Built, machine: Machine) -> Iterator[TensorRtSession]:
    session = open_engine(built.path).open_module("unet")
    assert isinstance(session, TensorRtSession)
    yield session
    session.close()
    assert machine.device.used() == 0


@pytest.mark.parametrize("name", MODULES)
def test_one_then_another_then_none(built: Built, machine: Machine, tiny_checkpoint: Path, name: str) -> None:
    """Of every layer, each through an ordinary run, a captured one and a replayed one."""
    with open_engine(built.path).open_module(name) as session:
        shapes = session.adaptable()
        assert dict(shapes) == layers_of(part(tiny_checkpoint, name))
        inputs = inputs_of(tiny_checkpoint, name)
        plain = [session(**inputs) for _ in range(3)][-1]
        blocks = len(machine.device.blocks)
        for rank, seed in ((3, 1), (1, 2)):
            updates = random_updates(shapes, rank, seed, size=0.3)
            session.set_adapters(single(updates))
            wanted = expected(tiny_checkpoint, name, [updates], inputs)
            for _ in range(3):
                found = session(**inputs)
                for output, value in floats(wanted).items():
                    assert_close(found[output], value, rel_l2=ERROR, label=output)
                    assert relative_l2(found[output], plain[output]) > 0.1
        session.set_adapters({})
        for _ in range(3):
            again = session(**inputs)
            assert all(np.array_equal(again[output], value) for output, value in plain.items())
        assert len(machine.device.blocks) == blocks, "copies of weights are gone"
    kinds = [event[0] for event in machine.device.log if event[:2] != ("run", f"{name}.merge")]
    assert kinds == ["run", "capture", "launch", "launch"] * 4
    assert machine.device.used() == 0


def test_several_of_one_layer(unet: TensorRtSession, tiny_checkpoint: Path) -> None:
    shapes = unet.adaptable()
    some = {path: shape for path, shape in shapes.items() if path.endswith(("to_q", "conv1", "linear_2"))}
    first, second = random_updates(some, 2, 1), random_updates(some, 3, 2)
    second = {path: update.times(-0.5) for path, update in second.items()}
    inputs = inputs_of(tiny_checkpoint, "unet")
    unet.set_adapters({path: [first[path], second[path]] for path in some})
    wanted = expected(tiny_checkpoint, "unet", [first, second], inputs)["sample"]
    assert_close(unet(**inputs)["sample"], wanted, rel_l2=ERROR)


def test_layers_that_are_dropped_are_as_they_were(unet: TensorRtSession, tiny_checkpoint: Path) -> None:
    inputs = inputs_of(tiny_checkpoint, "unet")
    conv, query = only(unet, "conv_in"), only(unet, QUERY)
    unet.set_adapters(single(query))
    wanted = unet(**inputs)["sample"]
    unet.set_adapters(single(conv))
    assert not np.array_equal(unet(**inputs)["sample"], wanted)
    unet.set_adapters({**single(query), "conv_in": []})
    assert np.array_equal(unet(**inputs)["sample"], wanted)
    alone = expected(tiny_checkpoint, "unet", [query], inputs)["sample"]
    assert_close(wanted, alone, rel_l2=ERROR)


def test_a_switch_moves_low_rank_matrices_alone(unet: TensorRtSession, machine: Machine) -> None:
    shapes = unet.adaptable()
    first, second = (single(random_updates(shapes, 1, seed)) for seed in (1, 2))
    unet.set_adapters(first)
    before, generation = machine.device.uploaded, unet.memory_generation
    unet.set_adapters(second)
    moved = sum(part.up.nbytes + part.down.nbytes for parts in second.values() for part in parts)
    assert machine.device.uploaded - before == moved
    assert unet.memory_generation > generation, "graphs of the caller's are of weights that were replaced"


def test_callers_memory_and_stream(unet: TensorRtSession, machine: Machine, tiny_checkpoint: Path) -> None:
    inputs = inputs_of(tiny_checkpoint, "unet")
    sizes = {symbol: SIZES[symbol] for symbol in unet.shapes}
    device, outcome = machine.device, inputs["sample"]
    with device.active():
        stream = device.create_stream()
        given = {name: device.allocate(array.nbytes) for name, array in inputs.items()}
        out = {"sample": device.allocate(outcome.nbytes)}
        for name, array in inputs.items():
            device.upload(given[name], array, stream)
    unet.enqueue(given, out, sizes, stream)
    plain = device.read(out["sample"], outcome.shape, "float32")
    unet.set_adapters(single(only(unet, "conv_in")))
    unet.enqueue(given, out, sizes, stream)
    assert np.array_equal(device.read(out["sample"], outcome.shape, "float32"), unet(**inputs)["sample"])
    unet.set_adapters({})
    unet.enqueue(given, out, sizes, stream)
    assert np.array_equal(device.read(out["sample"], outcome.shape, "float32"), plain)
    for address in (*given.values(), *out.values()):
        device.free(address)


def test_weights_that_the_plan_holds_together(
    unet: TensorRtSession, machine: Machine, tiny_checkpoint: Path
) -> None:
    """Such as q, k and v of one product: the others are given as they are."""
    adapters = unet._adapters
    names = {path: layer.places[0][0] for path, layer in adapters.layers.items()}
    group = [names[QUERY.replace("to_q", each)] for each in ("to_q", "to_k", "to_v")]
    machine.api.together = (tuple(group),)
    inputs, updates = inputs_of(tiny_checkpoint, "unet"), only(unet, QUERY)
    unet.set_adapters(single(updates))
    engine: Any = unet._engine
    assert engine.weights == sorted(group)
    wanted = expected(tiny_checkpoint, "unet", [updates], inputs)["sample"]
    assert_close(unet(**inputs)["sample"], wanted, rel_l2=ERROR)


def test_out_of_range(unet: TensorRtSession, machine: Machine, tiny_checkpoint: Path) -> None:
    """The layer is named, and nothing has changed."""
    inputs = inputs_of(tiny_checkpoint, "unet")
    plain = unet(**inputs)["sample"]
    small = only(unet, "conv_out")
    for before in ({}, single(only(unet, QUERY))):
        unet.set_adapters(before)
        wanted, blocks = unet(**inputs)["sample"], len(machine.device.blocks)
        with pytest.raises(NumericError, match="takes the weight of conv_out out of the range of float16"):
            unet.set_adapters({"conv_out": [small["conv_out"].times(1e9)]})
        assert np.array_equal(unet(**inputs)["sample"], wanted)
        assert before or len(machine.device.blocks) == blocks
    unet.set_adapters({})
    assert np.array_equal(unet(**inputs)["sample"], plain)


def test_full_memory(unet: TensorRtSession, machine: Machine, tiny_checkpoint: Path) -> None:
    inputs = inputs_of(tiny_checkpoint, "unet")
    plain, updates = unet(**inputs)["sample"], single(random_updates(unet.adaptable(), 1, 1))
    for room in (1000, 10**6):
        machine.device.capacity = machine.device.used() + room
        with pytest.raises(
            TargetError, match=r"unet: .*: a LoRA takes twice the memory of the weights"
        ) as error:
            unet.set_adapters(updates)
        assert "\n" not in str(error.value)
        assert np.array_equal(unet(**inputs)["sample"], plain)
    machine.device.capacity = 1 << 40
    unet.set_adapters(updates)
    assert not np.array_equal(unet(**inputs)["sample"], plain)


@pytest.mark.parametrize("first", [False, True], ids=["from a LoRA", "from none"])
def test_refit_that_fails_half_done_is_undone(
    unet: TensorRtSession, machine: Machine, tiny_checkpoint: Path, first: bool
) -> None:
    inputs = inputs_of(tiny_checkpoint, "unet")
    unet.set_adapters({} if first else single(random_updates(unet.adaptable(), 2, 1)))
    wanted = unet(**inputs)["sample"]
    updates = single({**only(unet, "conv_in"), **only(unet, QUERY)})
    machine.api.failing_refits = 1
    with pytest.raises(
        TargetError, match="unet: the weights cannot be replaced: the refitter is out of memory"
    ):
        unet.set_adapters(updates)
    assert np.array_equal(unet(**inputs)["sample"], wanted)
    unet.set_adapters(updates)
    assert not np.array_equal(unet(**inputs)["sample"], wanted)


def test_refit_that_cannot_be_undone(unet: TensorRtSession, machine: Machine, tiny_checkpoint: Path) -> None:
    """The session refuses to compute with who knows what, until a call succeeds."""
    inputs = inputs_of(tiny_checkpoint, "unet")
    plain = unet(**inputs)["sample"]
    machine.api.failing_refits = 2
    with pytest.raises(TargetError, match="the refitter is out of memory"):
        unet.set_adapters(single(random_updates(unet.adaptable(), 2, 1)))
    with pytest.raises(
        TargetError, match="weights that are neither old nor new: open the engine again"
    ) as error:
        unet(**inputs)
    assert "\n" not in str(error.value)
    unet.set_adapters({})
    assert np.array_equal(unet(**inputs)["sample"], plain)


def test_engine_that_was_not_built_for_it(built: Built, machine: Machine) -> None:
    engine = open_engine(built.path)
    entry = engine.entry("unet")
    plain = dataclasses.replace(entry, tactics={**entry.tactics, "refittable": False})
    with tensorrt.open(built.path, "unet", plain, None) as session:
        with pytest.raises(TargetError, match="which a LoRA needs: build it again with --refit") as error:
            session.adaptable()
        assert "\n" not in str(error.value)
        session.set_adapters({})
    with engine.open_module("vae_decoder") as session, pytest.raises(TargetError, match="vae_decoder"):
        session.adaptable()
    with pytest.raises(TargetError, match="vae_decoder: the session was closed"):
        session.adaptable()


def test_closing_lets_go_of_the_engine(built: Built, machine: Machine) -> None:
    session: Any = open_engine(built.path).open_module("text_encoder")
    session.set_adapters(single(random_updates(session.adaptable(), 1, 1)))
    engine = weakref.ref(session._engine)
    session.close()
    assert engine() is None
    assert machine.device.used() == 0


def test_damaged_files(built: Built, machine: Machine, tmp_path: Path) -> None:
    folder = copy_checkpoint(built.path, tmp_path / "tiny.fd")
    entry = open_engine(folder).entry("text_encoder")
    weights, merge = (folder / f"text_encoder.{name}" for name in ("weights.safetensors", "merge.plan"))
    whole = weights.read_bytes()
    for damaged in (b"", whole[:100], whole[:-8], whole.replace(b'"F16"', b'"F99"', 1), b"\xff" * 200):
        weights.write_bytes(damaged)
        with (
            tensorrt.open(folder, "text_encoder", entry, None) as session,
            pytest.raises(EngineDamagedError, match=r"text_encoder\.weights\.safetensors cannot be read"),
        ):
            session.adaptable()
    header = len(whole[: 8 + int.from_bytes(whole[:8], "little")])
    named = json.loads(whole[8:header])
    first = next(name for name in named if name.startswith("val_"))
    weights.write_bytes(whole.replace(first.encode(), b"x" * len(first), 1))
    with tensorrt.open(folder, "text_encoder", entry, None) as session:
        with pytest.raises(
            EngineDamagedError, match=r"lacks the weight of encoder\.layers\.\d.*build it again"
        ):
            session.adaptable()
        weights.write_bytes(whole)
        merge.write_bytes(bytes(merge.stat().st_size))
        with pytest.raises(EngineDamagedError, match=r"TensorRT refuses text_encoder\.merge\.plan"):
            session.adaptable()


@pytest.fixture
def file(tiny_checkpoint: Path, tmp_path: Path) -> Path:
    shapes = {name: layers_of(part(tiny_checkpoint, name)) for name in MODULES}
    updates = {name: random_updates(layers, 2, 5, size=0.2) for name, layers in shapes.items()}
    return write_lora(tmp_path / "a.safetensors", updates)


def test_pictures(built: Built, machine: Machine, tiny_engine: Path, file: Path) -> None:
    options: dict[str, Any] = {"steps": 2, "seed": 1, "guidance": 3.0}
    reference = fastdiff.load(tiny_engine)
    reference.load_lora(file)
    wanted = reference("a red circle", **options)
    pipe = fastdiff.load(built.path)
    plain = pipe("a red circle", **options)
    pipe.load_lora(file)
    found = pipe("a red circle", **options)
    assert_close(found.latents, wanted.latents, rel_l2=1e-2)
    assert relative_l2(found.latents, plain.latents) > 0.1
    pipe.unload_loras()
    assert np.array_equal(pipe("a red circle", **options).latents, plain.latents)
    reference.close()
    pipe.close()
    assert machine.device.used() == 0


def test_layer_that_the_plan_does_not_have(
    built: Built, machine: Machine, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A LoRA for it is refused by the name of its key."""
    read = parameters.read

    def without(*args: Any) -> Any:
        return {path: layer for path, layer in read(*args).items() if path != QUERY}

    monkeypatch.setattr(parameters, "read", without)
    pipe = fastdiff.load(built.path)
    with pytest.raises(InputError, match="lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_q"):
        pipe.load_lora(file)
    assert pipe.loras == {}
    pipe.close()
