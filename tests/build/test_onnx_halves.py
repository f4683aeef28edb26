"""ONNX in fp16: strongly typed, and in ONNX Runtime no further off than PyTorch in the same type."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto

from fastdiff.build.capture import run_eager
from fastdiff.build.modules import random_inputs
from fastdiff.build.onnx import export_onnx
from fastdiff.build.passes import run_passes
from fastdiff.config import Precision
from tests.compare import assert_close, relative_l2
from tests.published import VOCABULARY, model, sizes_of

FLOATS = {TensorProto.FLOAT, TensorProto.FLOAT16}
EXPORTED = ("clip_pooled", "scenes_unet", "vae_decoder")
"""One of each kind; tests of the pass itself cover the other models."""


@pytest.mark.parametrize("name", EXPORTED)
def test_onnx_in_fp16(name: str, tmp_path: Path) -> None:
    module = model(name)
    assert module.program is not None
    prepared = module.with_program(run_passes(module.program))
    files = export_onnx(prepared, tmp_path / "model.onnx", Precision.FP16)
    assert [file.name for file in files] == ["model.onnx"]
    check_types(onnx.load(files[0]))
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    session = onnxruntime.InferenceSession(str(files[0]), options, providers=["CPUExecutionProvider"])
    half = copy.deepcopy(module.eager).half()
    for step in range(2):
        arrays = random_inputs(module.spec, sizes_of(module, step), step, VOCABULARY)
        rounded = {
            key: x if x.ndim < 2 or x.dtype != np.float32 else x.astype(np.float16)
            for key, x in arrays.items()
        }
        wanted = run_eager(module.eager, module.spec.inputs, module.spec.outputs, arrays)
        yardstick = run_eager(half, module.spec.inputs, module.spec.outputs, rounded)
        feeds = dict(zip((item.name for item in session.get_inputs()), arrays.values(), strict=True))
        for found, (key, w) in zip(session.run(None, feeds), wanted.items(), strict=True):
            assert found.dtype == np.float32
            assert_close(found, w, rel_l2=2 * relative_l2(yardstick[key], w), label=key)


def check_types(model: onnx.ModelProto) -> None:
    """Inputs and outputs float32 or int64; halves inside; no operator of two floating types."""
    inferred = onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True).graph
    types = {item.name: item.data_type for item in inferred.initializer}
    for item in (*inferred.input, *inferred.output, *inferred.value_info):
        types[item.name] = item.type.tensor_type.elem_type
    ends = [types[item.name] for item in (*inferred.input, *inferred.output)]
    assert set(ends) <= {TensorProto.FLOAT, TensorProto.INT64}
    products = [node for node in inferred.node if node.op_type in ("Conv", "MatMul", "Gemm")]
    assert products
    for node in inferred.node:
        found = {types[name] for name in node.input if name} & FLOATS
        if node.op_type in ("Conv", "MatMul", "Gemm"):
            assert found == {TensorProto.FLOAT16}, node.name
        elif node.op_type in ("InstanceNormalization", "LayerNormalization", "Softmax", "Sin", "Cos"):
            assert found == {TensorProto.FLOAT}, node.name
        elif node.op_type == "Resize":  # takes its factors beside the picture
            assert types[node.input[0]] == TensorProto.FLOAT16
        else:
            assert len(found) <= 1, f"{node.name} ({node.op_type}) takes {found}"


def test_torch_rounds_weights_as_the_file_does(tmp_path: Path) -> None:
    module = model("clip_pooled")
    assert module.program is not None
    path = export_onnx(module, tmp_path / "model.onnx", Precision.FP16)[0]
    stored = {
        onnx.numpy_helper.to_array(item).tobytes() for item in onnx.load(path).graph.initializer if item.dims
    }
    weight = module.eager.model.text_model.embeddings.token_embedding.weight
    assert weight.detach().to(torch.float16).numpy().tobytes() in stored
