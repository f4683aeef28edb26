"""A module small enough to build and open in milliseconds: sample · 2 + timestep, and its sum per picture."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastdiff.config import Precision, SizeRange, TensorSpec
from fastdiff.manifest import ModuleEntry
from fastdiff.targets.tensorrt.adapters import Adapters, open_adapters
from fastdiff.targets.tensorrt.interface import Engine
from fastdiff.targets.tensorrt.memory import SharedMemory
from fastdiff.targets.tensorrt.profiles import input_shapes, make_profiles
from fastdiff.targets.tensorrt.session import TensorRtSession
from tests.targets.tensorrt.fake import MAGIC, FakeApi

INPUTS = (
    TensorSpec("sample", "float32", ("batch", 3, "height", "width")),
    TensorSpec("timestep", "float32", ("batch",)),
)
OUTPUTS = (
    TensorSpec("sample", "float32", ("batch", 3, "height", "width")),
    TensorSpec("total", "float32", ("batch",)),
)
NAMES = ("out_sample", "total")
USUAL = {"batch": 2, "height": 4, "width": 6}
PROFILES, RANGES = make_profiles({"batch": SizeRange(), "height": SizeRange(2), "width": SizeRange(2)}, USUAL)
ENTRY = ModuleEntry("tensorrt", Precision.FP32, INPUTS, OUTPUTS, RANGES, {"unet.plan": "0" * 64}, 1, {}, 0.0)


def write_plan(path: Path) -> Path:
    from onnx import TensorProto, helper

    def value(spec: TensorSpec, name: str) -> Any:
        return helper.make_tensor_value_info(name, TensorProto.FLOAT, list(spec.shape))

    nodes = [
        helper.make_node("Unsqueeze", ["timestep", "axes"], ["wide"]),
        helper.make_node("Mul", ["sample", "two"], ["doubled"]),
        helper.make_node("Add", ["doubled", "wide"], ["out_sample"]),
        helper.make_node("ReduceSum", ["out_sample", "axes"], ["total"], keepdims=0),
    ]
    constants = [
        helper.make_tensor("axes", TensorProto.INT64, [3], [1, 2, 3]),
        helper.make_tensor("two", TensorProto.FLOAT, [1], [2.0]),
    ]
    inputs = [value(spec, spec.name) for spec in INPUTS]
    outputs = [value(spec, name) for spec, name in zip(OUTPUTS, NAMES, strict=True)]
    graph = helper.make_graph(nodes, "unet", inputs, outputs, constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    header = {
        "refittable": False,
        "profiles": [input_shapes(profile, INPUTS) for profile in PROFILES],
    }
    path.write_bytes(MAGIC + json.dumps(header).encode() + b"\n" + model.SerializeToString())
    return path


def open_session(api: FakeApi, plan: Path, memory: SharedMemory) -> TensorRtSession:
    def adapters(engine: Engine) -> Adapters:
        return open_adapters(plan.parent, "unet", ENTRY, api, engine, memory)

    return TensorRtSession("unet", ENTRY, api.load(plan), memory, PROFILES, NAMES, adapters)


def arrays(seed: int = 0, **sizes: int) -> dict[str, NDArray[Any]]:
    rng = np.random.default_rng(seed)
    batch, height, width = ({**USUAL, **sizes}[symbol] for symbol in ("batch", "height", "width"))
    sample = rng.standard_normal((batch, 3, height, width), np.float32)
    return {"sample": sample, "timestep": rng.integers(0, 1000, batch).astype(np.float32)}


def expected(given: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    sample = given["sample"] * 2 + given["timestep"][:, None, None, None]
    return {"sample": sample, "total": sample.sum(axis=(1, 2, 3))}
