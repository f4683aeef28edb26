"""What ONNX Runtime does with a graph on the CPU when a module is built, and when it is opened."""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper

from fastdiff.build import onnx as lowering
from fastdiff.build.capture import run_eager
from fastdiff.build.modules import random_inputs
from fastdiff.targets import CompileOptions
from fastdiff.targets import onnxruntime as target
from fastdiff.targets.onnxruntime.adapters import write_adaptable
from fastdiff.targets.onnxruntime.group_norm import translations
from fastdiff.targets.onnxruntime.options import cpu_options, open_on_cpu
from tests.compare import assert_close, relative_l2
from tests.engines import TEXT_ENCODER
from tests.lora.made_up import random_updates
from tests.published import VOCABULARY, model

BRANCHES = 1000


def operators(path: Path) -> Counter[str]:
    graph = onnx.load(path, load_external_data=False).graph
    return Counter(node.op_type for node in graph.node)


def optimised(path: Path, result: Path) -> Counter[str]:
    """The operators after ONNX Runtime's basic optimisations of a file."""
    options = cpu_options(1, "ORT_ENABLE_BASIC", mapped=False)
    options.optimized_model_filepath = str(result)
    open_on_cpu(path, options)
    return operators(result)


@pytest.mark.parametrize("mapped", [False, True])
def test_graphs_are_optimised_when_they_are_built(
    mapped: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With weights in the model as with weights beside it, which stay the only ones."""
    if mapped:
        monkeypatch.setattr(lowering, "EXTERNAL_DATA_LIMIT", 1000)
    module = model("clip")
    compiled = target.compile(module, tmp_path, CompileOptions())
    data = ("text_encoder.onnx.data",) if mapped else ()
    adaptable = ("text_encoder.lora.onnx", "text_encoder.parameters.json")
    assert compiled.files == ("text_encoder.onnx", *data, *adaptable)
    assert {path.name for path in tmp_path.iterdir()} == set(compiled.files)

    exported = lowering.export_onnx(module, tmp_path / "exported.onnx", translations=translations())
    model_file, second = tmp_path / compiled.files[0], tmp_path / adaptable[0]
    assert operators(model_file) != operators(exported[0])
    assert operators(model_file) == optimised(exported[0], tmp_path / "wanted.onnx")
    assert operators(model_file) == optimised(model_file, tmp_path / "again.onnx"), "nothing is left to do"
    if mapped:
        assert (tmp_path / data[0]).read_bytes() == exported[1].read_bytes()
    for path in (second, *([model_file] if mapped else [])):
        tensors = onnx.load(path, load_external_data=False).graph.initializer
        floats = [tensor for tensor in tensors if tensor.data_type == TensorProto.FLOAT]
        matrices = [tensor for tensor in floats if len(tensor.dims) > 1]
        assert matrices
        assert all(tensor.external_data for tensor in matrices)


def test_graphs_of_earlier_versions(tmp_path: Path) -> None:
    """With weights beside the model these were not optimised, and their files had other names."""
    module = model("clip")
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(lowering, "EXTERNAL_DATA_LIMIT", 1000)
        path = tmp_path / "text_encoder.exported.onnx"
        exported = lowering.export_onnx(module, path, translations=translations())
    more = write_adaptable(module, tmp_path, path.name)
    entry = replace(
        TEXT_ENCODER,
        inputs=module.spec.inputs,
        outputs=module.spec.outputs,
        files=dict.fromkeys([*(file.name for file in exported), *more], ""),
        tactics={"optimisation": "basic, when opened"},
    )
    inputs = random_inputs(module.spec, {"batch": 2, "tokens": 7}, 1, VOCABULARY)
    wanted = run_eager(module.eager, entry.inputs, entry.outputs, inputs)["last_hidden_state"]
    with target.open(tmp_path, "text_encoder", entry, 1) as session:
        plain = session(**inputs)["last_hidden_state"]
        assert_close(plain, wanted, rel_l2=1e-4)
        updates = random_updates(session.adaptable(), 2, seed=1)
        session.set_adapters({place: [update] for place, update in updates.items()})
        assert relative_l2(session(**inputs)["last_hidden_state"], plain) > 0.1
        session.set_adapters({})
        assert np.array_equal(session(**inputs)["last_hidden_state"], plain)


@pytest.fixture
def branches(tmp_path: Path) -> Path:
    """A graph of low-rank branches, each of a rank of its own."""
    inputs = [helper.make_tensor_value_info("0", TensorProto.FLOAT, ["batch", 4])]
    nodes = []
    for index in range(BRANCHES):
        down, up, narrow, added = (f"{index}/{name}" for name in ("down", "up", "narrow", "added"))
        rank = f"rank of {index}"
        inputs += [
            helper.make_tensor_value_info(down, TensorProto.FLOAT, [4, rank]),
            helper.make_tensor_value_info(up, TensorProto.FLOAT, [rank, 4]),
        ]
        nodes += [
            helper.make_node("MatMul", [str(index), down], [narrow]),
            helper.make_node("MatMul", [narrow, up], [added]),
            helper.make_node("Add", [str(index), added], [str(index + 1)]),
        ]
    outputs = [helper.make_tensor_value_info(str(BRANCHES), TensorProto.FLOAT, ["batch", 4])]
    graph = helper.make_graph(nodes, "branches", inputs, outputs)
    document = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.save(document, tmp_path / "branches.onnx")
    return tmp_path / "branches.onnx"


def test_time_to_open(branches: Path) -> None:
    """Without a plan of memory, whose time grows with the square of the branches: 0.2 s in place of 0.8 s."""

    def seconds(options: onnxruntime.SessionOptions) -> float:
        before = time.process_time()
        open_on_cpu(branches, options)
        return time.process_time() - before

    planned = cpu_options(1, "ORT_DISABLE_ALL", mapped=False)
    planned.enable_mem_reuse = True
    options = cpu_options(1, "ORT_DISABLE_ALL", mapped=False)
    found = [(seconds(planned), seconds(options)) for _ in range(2)]
    assert min(own for _, own in found) < min(other for other, _ in found) / 2
