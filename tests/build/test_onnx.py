"""ONNX files: standard operators, symbolic sizes, names as the sessions know them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest

from fastdiff.build import onnx as lowering
from fastdiff.build.capture import CapturedModule, run_eager
from fastdiff.build.modules import random_inputs
from fastdiff.build.onnx import EXTERNAL_DATA_LIMIT, OPSET, export_onnx, needs_external_data, weight_bytes
from fastdiff.build.passes import halves
from fastdiff.config import MODULES, Precision
from fastdiff.errors import CaptureError
from fastdiff.targets import CompileOptions
from fastdiff.targets import onnxruntime as target
from tests.build.conftest import Captured
from tests.engines import TEXT_ENCODER

ROOT = Path(__file__).parent.parent.parent


@pytest.mark.parametrize("name", MODULES)
def test_stored_model(tiny_engine: Path, name: str) -> None:
    """What is in the engine: checked, standard operators only, no size fixed that is symbolic."""
    model = onnx.load(tiny_engine / f"{name}.onnx")
    onnx.checker.check_model(model, full_check=True)
    assert {node.domain for node in model.graph.node} <= {"", "ai.onnx"}
    assert {item.version for item in model.opset_import if item.domain in ("", "ai.onnx")} == {OPSET}
    assert not model.functions
    first = model.graph.input[0].type.tensor_type.shape.dim
    assert first[0].dim_param
    assert all(dim.dim_param for dim in first[-(1 if name == "text_encoder" else 2) :])


def test_weights_decide_about_external_data() -> None:
    """SD 1.5's VAE has its weights in the model, its text encoder beside; a protobuf message ends at 2 GB."""
    assert not needs_external_data(198 << 20)
    assert needs_external_data(492 << 20)
    assert not needs_external_data(EXTERNAL_DATA_LIMIT - 1)
    assert needs_external_data(EXTERNAL_DATA_LIMIT)
    assert needs_external_data(3_438_000_000)
    assert EXTERNAL_DATA_LIMIT < 2**31


def test_weight_bytes(captured: Captured) -> None:
    module = captured("text_encoder")
    assert module.program is not None
    parameters = sum(tensor.numel() * tensor.element_size() for tensor in module.eager.parameters())
    assert parameters <= weight_bytes(module.program) < 1.1 * parameters, "buffers are small"
    assert weight_bytes(halves(module.program)) < 0.6 * parameters


def test_external_data_is_written_and_runs(
    captured: Captured, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As for a large module: weights in a second file, both part of the engine."""
    monkeypatch.setattr(lowering, "EXTERNAL_DATA_LIMIT", 1000)
    module = captured("text_encoder")
    compiled = target.compile(module, tmp_path, CompileOptions())
    assert len(compiled.files) == 4
    assert {path.name for path in tmp_path.iterdir()} == set(compiled.files)
    model, weights, *_ = (tmp_path / name for name in compiled.files)
    assert weights.stat().st_size > 100_000 > model.stat().st_size
    assert str(ROOT).encode() not in model.read_bytes(), "no paths of the machine that built it"
    spec = module.spec
    files = dict.fromkeys(compiled.files, "")
    entry = replace(
        TEXT_ENCODER, inputs=spec.inputs, outputs=spec.outputs, files=files, tactics=compiled.tactics
    )
    arrays = random_inputs(spec, {"batch": 2, "tokens": 9}, seed=0, vocab_size=100)
    with target.open(tmp_path, "text_encoder", entry, 1) as session:
        found = session(**arrays)["last_hidden_state"]
    wanted = run_eager(module.eager, spec.inputs, spec.outputs, arrays)["last_hidden_state"]
    np.testing.assert_allclose(found, wanted, atol=1e-5)


def test_module_without_graph(captured: Captured, tmp_path: Path) -> None:
    module = captured("text_encoder")
    with pytest.raises(CaptureError, match="has not been captured"):
        export_onnx(CapturedModule(module.spec, module.eager, module.source), tmp_path / "x.onnx")


def test_precision_without_an_onnx_form(captured: Captured, tmp_path: Path) -> None:
    with pytest.raises(
        CaptureError, match="text_encoder cannot be written as ONNX in bf16: use fp32 or fp16"
    ):
        export_onnx(captured("text_encoder"), tmp_path / "x.onnx", Precision.BF16)
