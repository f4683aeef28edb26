"""Runs a native graph with PyTorch: what each op of docs/native.md means, to test lowering without csrc.

Every value's shape is compared with what the graph says of it.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from fastdiff.build.lower.lowering import Lowered
from fastdiff.kernels import reference
from fastdiff.targets.graph import Node, evaluate

_UNARY = {
    "copy": torch.clone,
    "silu": functional.silu,
    "gelu": functional.gelu,
    "quick_gelu": reference.quick_gelu,
    "gelu_tanh": lambda x: functional.gelu(x, approximate="tanh"),
    "relu": torch.relu,
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
    "exp": torch.exp,
    "sin": torch.sin,
    "cos": torch.cos,
    "sqrt": torch.sqrt,
    "negate": torch.neg,
}
_BINARY = {"add": torch.add, "subtract": torch.sub, "multiply": torch.mul, "divide": torch.div}


def interpret(
    lowered: Lowered, arrays: dict[str, NDArray[Any]], sizes: dict[str, int]
) -> dict[str, NDArray[Any]]:
    """The outputs of a graph, by name."""
    graph = lowered.graph
    layers = {layer.node: torch.from_numpy(layer.weight()) for layer in lowered.layers}
    values: dict[int, Tensor] = {i: torch.from_numpy(arrays[graph.values[i].name]) for i in graph.inputs}
    for index, node in enumerate(graph.nodes):
        weights = {role: _weight(lowered, weight) for role, weight in node.weights.items()}
        if index in layers:
            weights["layer"] = layers[index]
        inputs = [None if i is None else values[i] for i in node.inputs]
        declared = tuple(evaluate(dim, sizes) for dim in graph.values[node.output].shape)
        with torch.no_grad():
            result = _call(node, inputs, weights, declared)
        where = f"{node.op} in {node.path}"
        assert tuple(result.shape) == declared, f"{where}: computes {tuple(result.shape)}, wanted {declared}"
        assert str(result.dtype) == f"torch.{graph.values[node.output].dtype}", where
        values[node.output] = result
    return {graph.values[i].name: np.asarray(values[i]) for i in graph.outputs}


def _weight(lowered: Lowered, index: int) -> Tensor:
    weight = lowered.graph.weights[index]
    loaded = weight.load()
    assert isinstance(loaded, np.ndarray)
    assert loaded.shape == weight.shape
    assert loaded.dtype.name == weight.kind
    return torch.from_numpy(loaded)


def _call(node: Node, inputs: list[Any], weights: dict[str, Tensor], shape: tuple[int, ...]) -> Tensor:
    a: dict[str, Any] = dict(node.attributes)
    match node.op:
        case "conv2d":
            x, vector, residual = inputs
            padding = [a[f"pad_{side}"] for side in ("top", "bottom", "left", "right")]
            assert (a["out"], a["in"], a["kernel_h"], a["kernel_w"]) == tuple(weights["layer"].shape)
            finish = (a["upsample"], a["activation"], a["scale"])
            layer, bias = weights["layer"], weights.get("bias")
            return reference.conv2d(x, layer, bias, vector, residual, a["stride"], padding, *finish)
        case "linear":
            x, residual = inputs
            assert weights["layer"].shape == (a["out"] * (1 + (a["activation"] == "geglu")), a["in"])
            finish = (a["activation"], a["scale"])
            return reference.linear(x, weights["layer"], weights.get("bias"), residual, *finish)
        case "group_norm_silu":
            affine = (weights.get("weight"), weights.get("bias"))
            return reference.group_norm_silu(inputs[0], *affine, a["groups"], a["eps"], bool(a["silu"]))
        case "layer_norm":
            affine = (weights.get("weight"), weights.get("bias"))
            return functional.layer_norm(inputs[0], inputs[0].shape[-1:], *affine, a["eps"])
        case "attention":
            return reference.attention(*inputs, a["heads"], a["scale"], bool(a["causal"]))
        case "geglu":
            return reference.geglu(inputs[0])
        case "embedding":
            return weights["table"][inputs[0]]
        case "select_token":
            x, ids = inputs
            same = ids if a["token"] < 0 else (ids == a["token"]).int()
            return x[torch.arange(len(x)), same.argmax(1)]
        case "token_match":
            return reference.token_match(inputs[0], a["numerator"], a["denominator"])
        case "token_merge":
            tokens = inputs[0].shape[1]
            return reference.token_merge(*inputs, tokens - shape[1], tokens)
        case "token_unmerge":
            return reference.token_unmerge(*inputs)
        case "timestep_embedding":
            frequencies = weights["frequencies"]
            return reference.timestep_embedding(inputs[0], frequencies, bool(a["sine_first"]))
        case "upsample_nearest2d" | "avg_pool2d":
            resample: Tensor = getattr(reference, node.op)(inputs[0], a["factor"])
            return resample
        case "clamp":
            return torch.clamp(inputs[0], a["low"], a["high"])
        case "add_scalar":
            return inputs[0] + a["scalar"]
        case "mul_scalar":
            return inputs[0] * a["scalar"]
        case "concat":
            return torch.cat(inputs, a["axis"])
        case "slice":
            return inputs[0].narrow(a["axis"], a["start"], shape[a["axis"]])
        case "reshape":
            return inputs[0].reshape(shape)
        case "expand":
            return inputs[0].expand(shape)
        case "permute":
            return inputs[0].permute(a["axes"])
        case "constant":
            return weights["value"]
    if node.op in _UNARY:
        return _UNARY[node.op](inputs[0])
    return _BINARY[node.op](*inputs)
