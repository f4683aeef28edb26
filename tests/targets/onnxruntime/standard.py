"""The operators that only the CUDA provider has, written in standard ones by their documentation.

So that a model made for CUDA runs on the CPU: what its operators mean is taken from their schemas, not from
what exported them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

from fastdiff.targets.onnxruntime.cuda import OrtDevice

__all__ = ["on_the_cpu", "only_standard"]

ONLY_CUDA = ("BiasAdd", "BiasSplitGelu", "GroupNorm", "NhwcConv", "SkipGroupNorm")
TO_CHANNELS, TO_ROWS = [0, 3, 1, 2], [0, 2, 3, 1]


def on_the_cpu(path: Path) -> OrtDevice:
    """A file made for CUDA, opened on the CPU."""
    standard, _ = only_standard(onnx.load(path))
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # it tells of every initializer that has been written as another
    data = standard.SerializeToString()
    return OrtDevice(
        onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"]), "cpu", 0
    )


class _Writer:
    def __init__(self, model: onnx.ModelProto) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.initializers = {item.name: item for item in model.graph.initializer}
        self.added: list[onnx.TensorProto] = []

    def node(self, op: str, *inputs: str, **attributes: Any) -> str:
        name = f"standard_{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, list(inputs), [name], **attributes))
        return name

    def constant(self, array: Any) -> str:
        name = f"standard_constant_{len(self.added)}"
        self.added.append(numpy_helper.from_array(np.asarray(array), name))
        return name

    def array(self, name: str) -> Any:
        return numpy_helper.to_array(self.initializers[name])

    def give(self, value: str, name: str) -> None:
        self.nodes.append(helper.make_node("Identity", [value], [name]))


def only_standard(model: onnx.ModelProto) -> tuple[onnx.ModelProto, list[str]]:
    """The model without operators that the CPU lacks, and which there were."""
    writer, found = _Writer(model), []
    made_by = {output: node for node in model.graph.node for output in node.output}
    for node in model.graph.node:
        if node.op_type not in ONLY_CUDA:
            writer.nodes.append(node)
            continue
        found.append(node.op_type)
        given = {item.name: helper.get_attribute_value(item) for item in node.attribute}
        match node.op_type:
            case "BiasAdd":
                x, bias, skip = node.input
                writer.give(writer.node("Add", writer.node("Add", x, bias), skip), node.output[0])
            case "BiasSplitGelu":
                biased = writer.node("Add", *node.input)
                left, right = f"{node.output[0]}_left", f"{node.output[0]}_right"
                split = helper.make_node("Split", [biased], [left, right], axis=-1, num_outputs=2)
                writer.nodes.append(split)
                writer.give(writer.node("Mul", left, writer.node("Gelu", right)), node.output[0])
            case "NhwcConv":
                x = writer.node("Transpose", node.input[0], perm=TO_CHANNELS)
                kernel = writer.constant(writer.array(node.input[1]).transpose(TO_CHANNELS))
                y = writer.node("Conv", x, kernel, *node.input[2:], **given)
                writer.give(writer.node("Transpose", y, perm=TO_ROWS), node.output[0])
            case _:
                _group_norm(writer, node, given, made_by)
    changed = onnx.ModelProto()
    changed.CopyFrom(model)
    del changed.graph.node[:]
    changed.graph.node.extend(writer.nodes)
    changed.graph.initializer.extend(writer.added)
    return changed, found


def _is_vector(name: str, made_by: dict[str, onnx.NodeProto]) -> bool:
    """Whether a value is [batch, channels]: what Gemm gives, or a sum that begins with it."""
    while name in made_by and made_by[name].op_type == "Add":
        name = made_by[name].input[0]
    return name in made_by and made_by[name].op_type == "Gemm"


def _group_norm(
    writer: _Writer, node: onnx.NodeProto, given: dict[str, Any], made_by: dict[str, onnx.NodeProto]
) -> None:
    """GroupNorm(X, gamma, beta), or SkipGroupNorm(X, gamma, beta, skip, bias), which also gives the sum."""
    assert given.get("channels_last", 1) == 1
    x = node.input[0]
    if node.op_type == "SkipGroupNorm":
        skip = node.input[3]
        if _is_vector(skip, made_by):
            skip = writer.node("Unsqueeze", skip, writer.constant(np.array([1, 2])))
        x = writer.node("Add", x, skip)
        if len(node.input) > 4 and node.input[4]:
            x = writer.node("Add", x, node.input[4])
        if len(node.output) > 1 and node.output[1]:
            writer.give(x, node.output[1])
    groups, epsilon = given["groups"], given.get("epsilon", 1e-5)
    picture = writer.node("Transpose", writer.node("Cast", x, to=TensorProto.FLOAT), perm=TO_CHANNELS)
    flat = writer.node("Reshape", picture, writer.constant(np.array([0, groups, -1])))
    ones, zeros = (writer.constant(np.full(groups, value, np.float32)) for value in (1, 0))
    normal = writer.node("InstanceNormalization", flat, ones, zeros, epsilon=epsilon)
    y = writer.node("Reshape", normal, writer.node("Shape", picture))
    gamma, beta = (
        writer.constant(writer.array(name).astype(np.float32).reshape(-1, 1, 1)) for name in node.input[1:3]
    )
    y = writer.node("Add", writer.node("Mul", y, gamma), beta)
    if given["activation"]:
        y = writer.node("Mul", y, writer.node("Sigmoid", y))
    rows = writer.node("Transpose", y, perm=TO_ROWS)
    writer.give(writer.node("Cast", rows, to=TensorProto.FLOAT16), node.output[0])
