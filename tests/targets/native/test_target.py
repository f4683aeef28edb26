"""The native target: modules and engines against PyTorch, threads, instruction sets, damaged files."""

from __future__ import annotations

import dataclasses
import os
import re
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fastdiff import _C, engine_dir
from fastdiff.build.capture import run_eager
from fastdiff.build.modules import random_inputs
from fastdiff.build.verify import verify_engine
from fastdiff.cli import main
from fastdiff.config import MODULES, Precision
from fastdiff.engine_dir import open_engine
from fastdiff.errors import CaptureError, EngineDamagedError, TargetError
from fastdiff.targets import CompileOptions, require_target
from fastdiff.targets.native import availability, compiler, file
from fastdiff.targets.native.pack import algorithms, holds_halves, pack
from tests.builds import build_native
from tests.compare import assert_close
from tests.targets.native.models import MODELS, VOCABULARY, lowered, model, sizes_of

ROOT = Path(__file__).parent.parent.parent.parent
SESSION = """
import sys, numpy as np
from fastdiff import _C
arrays = dict(np.load(sys.argv[2]))
results = _C.NativeSession(_C.NativeModule(sys.argv[1]), 1).run(arrays)
np.savez(sys.argv[3], **results)
"""


@pytest.fixture(scope="session")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A function from the name of a model to its file, without measured tactics."""
    folder = tmp_path_factory.mktemp("compiled")

    @cache
    def get(name: str) -> Path:
        (folder / name).mkdir()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(compiler, "lower_module", lambda module: lowered(name))  # which test_lower.py tests
            result = compiler.compile_module(model(name), folder / name, CompileOptions())
        assert result.tactics["measured"] == {}
        return folder / name / result.files[0]

    return get


@pytest.fixture(scope="session")
def engine(tiny_native_engine: Path) -> Path:
    """The tiny checkpoint as ``auto`` builds it."""
    return tiny_native_engine


@pytest.mark.parametrize("name", MODELS)
def test_models_at_several_sizes(compiled: Any, name: str) -> None:
    module = model(name)
    session = _C.NativeSession(_C.NativeModule(str(compiled(name))), 1)
    for step in (0, 1, 2, 0):
        sizes = sizes_of(module, step)
        arrays = random_inputs(module.spec, sizes, step, VOCABULARY)
        wanted = run_eager(module.eager, module.spec.inputs, module.spec.outputs, arrays)
        found = session.run(arrays)
        assert list(found) == list(wanted)
        for output, value in wanted.items():
            assert_close(found[output], value, rel_l2=1e-5, label=f"{output} at {sizes}")


@pytest.mark.parametrize("name", ["clip_pooled", "clip_pooled_by_largest"])
def test_pooled_where_the_prompt_ends(compiled: Any, name: str) -> None:
    """Prompts that end at different tokens and are padded with the end token, as the tokenizer does it."""
    module = model(name)
    end = module.source.config.eos_token_id if name == "clip_pooled" else VOCABULARY - 1
    ids = np.full((3, 7), end)
    for row, words in enumerate(((8, 9), (7,), (9, 8, 7, 9, 8, 9))):
        ids[row, : len(words)] = words
    arrays = {"input_ids": ids}
    wanted = run_eager(module.eager, module.spec.inputs, module.spec.outputs, arrays)
    found = _C.NativeSession(_C.NativeModule(str(compiled(name))), 1).run(arrays)
    assert_close(found["text_embeds"], wanted["text_embeds"], rel_l2=1e-6)
    states = wanted["last_hidden_state"][np.arange(3), [2, 1, 6]]
    by_hand = states @ module.source.text_projection.weight.detach().numpy().T
    assert_close(found["text_embeds"], by_hand, rel_l2=1e-5)


@pytest.mark.parametrize("name", ["sd15", "vae_decoder", "clip_gelu"])
def test_threads_do_not_change_a_bit(compiled: Any, name: str) -> None:
    module = model(name)
    arrays = random_inputs(module.spec, sizes_of(module, 0), 1, VOCABULARY)
    native = _C.NativeModule(str(compiled(name)))
    results = [_C.NativeSession(native, threads).run(arrays) for threads in (1, 2, 3)]
    for other in results[1:]:
        for output, value in results[0].items():
            assert value.tobytes() == other[output].tobytes()


@pytest.mark.parametrize("isa", _C.available_isas())
def test_instruction_sets_agree(compiled: Any, isa: str, tmp_path: Path) -> None:
    """Each in a process of its own, since the kernels are chosen once; compared with PyTorch."""
    module = model("sd15")
    arrays = random_inputs(module.spec, sizes_of(module, 1), 1)
    np.savez(tmp_path / "in.npz", **arrays)  # type: ignore[arg-type]
    words = [sys.executable, "-c", SESSION, str(compiled("sd15")), "in.npz", "out.npz"]
    environment = {**os.environ, "FASTDIFF_ISA": isa, "PYTHONPATH": str(ROOT)}
    subprocess.run(words, check=True, cwd=tmp_path, env=environment)
    wanted = run_eager(module.eager, module.spec.inputs, module.spec.outputs, arrays)
    with np.load(tmp_path / "out.npz") as found:
        assert_close(found["sample"], wanted["sample"], rel_l2=5e-6)


@pytest.mark.parametrize("algorithm", ["winograd2", "winograd4"])
def test_every_algorithm_gives_the_same(algorithm: str, tmp_path: Path) -> None:
    module = model("sd15")
    graph = lowered("sd15")
    nodes = graph.graph.nodes
    plain = [
        layer.node
        for layer in graph.layers
        if nodes[layer.node].op == "conv2d"
        and (nodes[layer.node].attributes["kernel_h"], nodes[layer.node].attributes["stride"]) == (3, 1)
    ]
    assert len(plain) > 20
    file.write(tmp_path / "x.fdn", pack(graph, dict.fromkeys(plain, (algorithm,)), {}, Precision.FP32))
    sizes = sizes_of(module, 0)
    arrays = random_inputs(module.spec, sizes, 1)
    wanted = run_eager(module.eager, module.spec.inputs, module.spec.outputs, arrays)
    found = _C.NativeSession(_C.NativeModule(str(tmp_path / "x.fdn")), 1).run(arrays)
    assert_close(found["sample"], wanted["sample"], rel_l2=2e-5)


def test_halves_cannot_hold_everything(tmp_path: Path) -> None:
    import torch

    module = model("clip_gelu")
    weight = module.eager.get_parameter("model.encoder.layers.0.mlp.fc1.weight")
    kept = weight.detach().clone()
    try:
        with torch.no_grad():
            weight[1, 2] = -1e5
        with pytest.raises(CaptureError, match=r"fc1.*has the value 1e\+05, over the 65504 of a half"):
            file.write(tmp_path / "x.fdn", pack(lowered("clip_gelu"), {}, {}, Precision.FP16))
    finally:
        with torch.no_grad():
            weight.copy_(kept)


@pytest.mark.parametrize("name", MODULES)
def test_modules_are_recorded(engine: Path, name: str) -> None:
    entry = open_engine(engine).entry(name)
    assert entry.target == "native"
    adaptable = [] if name.startswith("vae") else [f"{name}.parameters.json"]
    assert list(entry.files) == [f"{name}.fdn", *adaptable]
    assert 0 < entry.error["relative_l2"] < 1e-5
    assert entry.requires == {}, "packed weights fit every instruction set"
    tactics = entry.tactics
    assert tactics["weight_bytes"] < entry.bytes
    shapes = {shape for layer in tactics["layers"].values() for shape in layer}
    assert shapes == tactics["measured"].keys()
    for layer in tactics["layers"].values():
        for shape, tactic in layer.items():
            times = tactics["measured"][shape]
            assert times["gflop"] > 0
            assert times[tactic] > 0


def test_inspect_prints_the_tactics(engine: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(engine), "--tactics"]) in (None, 0)
    lines = capsys.readouterr().out.splitlines()
    row = next(line for line in lines if line.startswith("model.conv_in "))
    assert "2x8x8x4 -> " in row or "2x8x8x4 -> " in "".join(lines)
    assert {"layer", "shape", "tactic", "ms", "GFLOP/s"} <= set(" ".join(lines).split())
    assert all(any(line.startswith(f"{name}: target native") for line in lines) for name in MODULES)


def test_half_precision_engine(engine: Path, tiny_checkpoint: Path, tmp_path: Path) -> None:
    half = build_native(tiny_checkpoint, tmp_path / "half.fd", precision="fp16", memory=1.0)
    opened = open_engine(half)
    for name in MODULES:
        entry = opened.entry(name)
        assert entry.precision is Precision.FP16
        assert entry.tactics["weight_bytes"] <= entry.tactics["fp32_bytes"], "what --memory 1 allows"
    tactics = opened.entry("text_encoder").tactics
    assert tactics["weight_bytes"] < 0.75 * tactics["fp32_bytes"], "which has no convolution to spend it on"
    assert max(opened.entry(name).error["relative_l2"] for name in MODULES) > 1e-5, "the weights are rounded"
    assert verify_engine(opened, tiny_checkpoint).keys() == set(MODULES)


def test_damage_to_large_files(engine: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of files that are too large to hash the graph is checked at opening, the rest by fastdiff verify."""
    copy = tmp_path / "tiny.fd"
    copy.mkdir()
    (copy / "tokenizer").mkdir()
    for path in engine.rglob("*"):
        if path.is_file():
            (copy / path.relative_to(engine)).write_bytes(path.read_bytes())
    unet = copy / "unet.fdn"
    good = unet.read_bytes()
    monkeypatch.setattr(engine_dir, "_LARGEST_HASHED", 100)

    unet.write_bytes(good[:80] + bytes([good[80] ^ 1]) + good[81:])
    opened = open_engine(copy)
    with pytest.raises(EngineDamagedError, match="unet"):
        opened.open_module("unet")

    unet.write_bytes(good[:-70] + bytes([good[-70] ^ 1]) + good[-69:])
    open_engine(copy).open_module("unet").close()
    with pytest.raises(EngineDamagedError, match=r"unet\.fdn was changed"):
        open_engine(copy, all_hashes=True)
    monkeypatch.undo()
    with pytest.raises(EngineDamagedError, match=r"unet\.fdn was changed"):
        open_engine(copy)

    unet.write_bytes(good[:-64])
    with pytest.raises(EngineDamagedError):
        open_engine(copy, verify_hashes=False)


GENERATE = """
import sys
from pathlib import Path
from fastdiff.cli import main
status = main(["generate", sys.argv[1], "a red circle", "-o", sys.argv[2], "--steps", "2", "--seed", "0"])
lines = Path("/proc/self/maps").read_text().splitlines()
mapped = {line.split(maxsplit=5)[5] for line in lines if "/" in line}
print(status or 0, *{name.partition(".")[0] for name in sys.modules})
print(*mapped, sep=chr(10))
"""
VENDORS = {"accelerate", "diffusers", "huggingface_hub", "onnx", "onnxruntime", "torch", "transformers"}


def test_generating_loads_no_vendor_library(engine: Path, tmp_path: Path) -> None:
    """Neither as a module of Python nor as a shared library that something else has mapped."""
    words = [sys.executable, "-c", GENERATE, str(engine), str(tmp_path / "out.png")]
    run = subprocess.run(words, check=True, cwd=ROOT, capture_output=True, text=True)
    first, *mapped = run.stdout[run.stdout.index("\n0 ") + 1 :].splitlines()
    assert VENDORS & set(first.split()) == set()
    assert any(path.endswith(Path(_C.__file__).name) for path in mapped), "our own library is mapped"
    assert [path for path in mapped if VENDORS & set(Path(path).parts)] == []
    assert [path for path in mapped if re.search(r"lib(torch|onnx|c10)", Path(path).name)] == []
    assert (tmp_path / "out.png").stat().st_size > 0


def test_sessions_close(engine: Path) -> None:
    with open_engine(engine).open_module("text_encoder", threads=2) as session:
        added = np.zeros((2, 5, session.inputs[1].shape[2]), np.float32)
        result = session(input_ids=np.zeros((2, 5), np.int64), added_embeds=added)
    assert result["last_hidden_state"].shape[:2] == (2, 5)


def test_missing_extension_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "fastdiff._C", None)
    monkeypatch.delattr("fastdiff._C")
    assert not availability().ok
    with pytest.raises(TargetError, match=r"'native' cannot run here.*pip install --force-reinstall"):
        require_target("native")


@pytest.mark.parametrize("precision", [Precision.FP32, Precision.FP16])
def test_half_precision_rounds_no_transformed_weights(precision: Precision) -> None:
    graph = lowered("vae_decoder")
    nodes = [graph.graph.nodes[layer.node] for layer in graph.layers]
    found = {name for node in nodes for name in algorithms(node, precision)}
    transformed = {"winograd2", "winograd4"} if precision is Precision.FP32 else set()
    assert found == {"direct", "winograd2_plain"} | transformed


def test_halves_are_stored_as_halves() -> None:
    """Plain weights that hold halves take half the bytes, and algorithms that read the same share them."""
    graph = lowered("vae_decoder")
    at = next(i for i, layer in enumerate(graph.layers) if len(layer.shape) == 4 and layer.shape[2] == 3)
    layer, others = graph.layers[at], graph.layers[:at] + graph.layers[at + 1 :]
    weight = layer.weight().astype(np.float16).astype(np.float32)
    assert holds_halves(weight)
    assert not holds_halves(weight + np.float32(2**-20))
    assert not holds_halves(np.full((3, 1), 1e5, np.float32)), "over a half's largest"
    rounded = dataclasses.replace(graph, layers=(*others, dataclasses.replace(layer, weight=lambda: weight)))
    chosen = {layer.node: ("direct", "winograd2_plain", "winograd2")}
    packed = pack(rounded, chosen, {}, Precision.FP32, {layer.key})
    direct, plain, transformed = packed.nodes[layer.node].packings
    assert (direct.type, plain.type, transformed.type) == ("fp16", "fp16", "fp32")
    assert direct.weight == plain.weight
    sizes = {one.algorithm: packed.weights[one.weight].nbytes for one in (direct, transformed)}
    assert sizes["winograd2"] * 9 == sizes["direct"] * 32
