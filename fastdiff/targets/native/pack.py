"""Packing: the weights of conv2d and linear in the layouts that the kernels read, one at a time.

``csrc`` lays the weights out, so that file and kernels cannot disagree.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastdiff import _C
from fastdiff.config import Precision
from fastdiff.errors import CaptureError
from fastdiff.targets.native.file import Graph, Node, Packing, Tuned, Weight
from fastdiff.targets.native.lower import Layer, Lowered

__all__ = ["ALGORITHMS", "algorithms", "pack", "packed_bytes", "stored_type"]

ALGORITHMS = ("direct", "winograd2", "winograd4")
"""Of conv2d; linear has the first alone."""

_LARGEST_HALF = float(np.finfo(np.float16).max)


def algorithms(node: Node, precision: Precision) -> tuple[str, ...]:
    """The algorithms that can compute a conv2d or linear: Winograd takes 3×3 kernels with stride 1.

    Half precision leaves F(4×4) out: rounding its transformed weights gives four times the error of rounding
    the weights themselves, where F(2×2) gives 1.4 times and twice is allowed (a U-Net of SD 1.5's structure).
    """
    a = node.attributes
    if node.op == "conv2d" and (a["kernel_h"], a["kernel_w"], a["stride"]) == (3, 3, 1):
        return ALGORITHMS[:2] if precision is Precision.FP16 else ALGORITHMS
    return ALGORITHMS[:1]


def packed_bytes(node: Node, layer: Layer, algorithm: str, precision: Precision) -> int:
    """Bytes of a layer's weights as one algorithm wants them."""
    stored = stored_type(precision)
    if node.op == "linear":
        return _C.linear_packed_bytes(layer.shape[1], layer.shape[0], stored)
    out, inputs, height, width = layer.shape
    return _C.conv2d_packed_bytes((out, inputs, height, width), algorithm, stored)


def pack(
    lowered: Lowered,
    chosen: Mapping[int, tuple[str, ...]],
    tuned: Mapping[int, tuple[Tuned, ...]],
    precision: Precision,
) -> Graph:
    """The graph with packed weights, which are computed when the file is written.

    ``chosen`` gives the algorithms that each layer keeps its weights for, ``tuned`` what was measured, both
    by index of the node; a layer that they leave out is "direct". Layers that share a weight share its
    packings. In ``fp16`` embedding tables are halved as well. Raises CaptureError, when the file is written,
    for a weight that a half cannot hold.
    """
    graph = lowered.graph
    weights = list(graph.weights)
    nodes = list(graph.nodes)
    if precision is Precision.FP16:
        for table in {node.weights["table"] for node in nodes if "table" in node.weights}:
            weights[table] = _halved(weights[table])
    known: dict[tuple[str, str, str], Packing] = {}
    for layer in lowered.layers:
        node = nodes[layer.node]
        packings = []
        for algorithm in chosen.get(layer.node, ALGORITHMS[:1]):
            key = (node.op, layer.key, algorithm)
            if key not in known:
                known[key] = Packing(algorithm, stored_type(precision), len(weights))
                weights.append(_packed(node, layer, algorithm, precision))
            packings.append(known[key])
        nodes[layer.node] = dataclasses.replace(
            node, packings=tuple(packings), tuned=tuned.get(layer.node, ())
        )
    return dataclasses.replace(graph, nodes=tuple(nodes), weights=tuple(weights))


def stored_type(precision: Precision) -> str:
    """What ``csrc`` calls the type of the packed weights."""
    return "fp16" if precision is Precision.FP16 else "fp32"


def _packed(node: Node, layer: Layer, algorithm: str, precision: Precision) -> Weight:
    name = f"{layer.key}.{algorithm}"
    size = packed_bytes(node, layer, algorithm, precision)

    def load() -> NDArray[Any]:
        weight = _checked(name, layer.weight(), precision)
        if node.op == "linear":
            return _C.linear_pack(weight, stored_type(precision))
        return _C.conv2d_pack(weight, algorithm, stored_type(precision))

    return Weight(name, "packed", (size,), load)


def _halved(weight: Weight) -> Weight:
    load: Callable[[], Any] = weight.load
    if weight.kind != "float32":
        return weight
    return dataclasses.replace(
        weight,
        kind="float16",
        load=lambda: _checked(weight.name, load(), Precision.FP16).astype(np.float16),
    )


def _checked(name: str, weight: NDArray[np.float32], precision: Precision) -> NDArray[np.float32]:
    """``weight``, which a half can hold if it must. Raises CaptureError."""
    if precision is Precision.FP16 and weight.size:
        largest = float(np.abs(weight).max())
        if largest > _LARGEST_HALF:
            raise CaptureError(
                f"weight {name} has the value {largest:.4g}, over the {_LARGEST_HALF:.0f} of a half:"
                " build with --precision fp32"
            )
    return weight
