"""Packing: the weights of conv2d and linear in the layouts that the kernels read, one at a time.

``csrc`` lays the weights out, so that file and kernels cannot disagree. Weights that all are half-precision
numbers, as those of many published checkpoints, are stored as such in every engine: nothing is lost, and half
the bytes are read.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from fastdiff import _C
from fastdiff.config import Precision
from fastdiff.errors import CaptureError
from fastdiff.targets.graph import Graph, Node, Packing, Tuned, Weight

if TYPE_CHECKING:
    from fastdiff.build.lower import Layer, Lowered

__all__ = ["ALGORITHMS", "algorithms", "holds_halves", "layout", "pack", "packed_bytes", "stored_type"]

ALGORITHMS = ("direct", "winograd2_plain", "winograd2", "winograd4")
"""Of conv2d; linear has the first alone."""

_PLAIN = ALGORITHMS[:2]
"""Those that take weights as they are, in one layout."""

_LARGEST_HALF = float(np.finfo(np.float16).max)


def algorithms(node: Node, precision: Precision) -> tuple[str, ...]:
    """The algorithms that can compute a conv2d or linear: Winograd takes 3×3 kernels with stride 1.

    With half precision weights are rounded as they are, not transformed: rounding transformed weights gives
    four times the error for F(4×4) and 1.4 times for F(2×2) (a U-Net of SD 1.5's structure).
    """
    a = node.attributes
    if node.op == "conv2d" and (a["kernel_h"], a["kernel_w"], a["stride"]) == (3, 3, 1):
        return _PLAIN if precision is Precision.FP16 else ALGORITHMS
    return ALGORITHMS[:1]


def layout(algorithm: str) -> str:
    """What algorithms that can share packed weights have in common."""
    return "plain" if algorithm in _PLAIN else algorithm


def holds_halves(weight: NDArray[np.float32]) -> bool:
    """Whether rounding to half precision would change nothing."""
    flat = weight.reshape(-1)
    step = 1 << 20  # most weights that do not are known after one
    for start in range(0, flat.size, step):
        part = flat[start : start + step]
        with np.errstate(over="ignore"):
            if not np.array_equal(part.astype(np.float16).astype(np.float32), part):
                return False
    return True


def packed_bytes(node: Node, layer: Layer, algorithm: str, stored: str) -> int:
    """Bytes of a layer's weights as one algorithm wants them, of a type that ``stored_type`` gives."""
    if node.op == "linear":
        return _C.linear_packed_bytes(layer.shape[1], layer.shape[0], stored)
    out, inputs, height, width = layer.shape
    return _C.conv2d_packed_bytes((out, inputs, height, width), algorithm, stored)


def pack(
    lowered: Lowered,
    chosen: Mapping[int, tuple[str, ...]],
    tuned: Mapping[int, tuple[Tuned, ...]],
    precision: Precision,
    halves: Collection[str] = (),
) -> Graph:
    """The graph with packed weights, which are computed when the file is written.

    ``chosen`` gives the algorithms that each layer keeps its weights for, ``tuned`` what was measured, both
    by index of the node; a layer that they leave out has its weights as they are. Layers that share a weight
    share its packings. ``halves`` are the keys of layers whose weights hold halves. In ``fp16`` embedding
    tables are halved as well. Raises CaptureError, when the file is written, for a weight that a half cannot
    hold.
    """
    graph = lowered.graph
    weights = list(graph.weights)
    nodes = list(graph.nodes)
    if precision is Precision.FP16:
        for table in {node.weights["table"] for node in nodes if "table" in node.weights}:
            weights[table] = _halved(weights[table])
    known: dict[tuple[str, str, str], tuple[str, int]] = {}
    for layer in lowered.layers:
        node = nodes[layer.node]
        packings = []
        for algorithm in chosen.get(layer.node) or _untuned(node):
            key = (node.op, layer.key, layout(algorithm))
            if key not in known:
                stored = stored_type(algorithm, precision, layer.key in halves)
                known[key] = stored, len(weights)
                weights.append(_packed(node, layer, algorithm, stored))
            packings.append(Packing(algorithm, *known[key]))
        nodes[layer.node] = dataclasses.replace(
            node, packings=tuple(packings), tuned=tuned.get(layer.node, ())
        )
    return dataclasses.replace(graph, nodes=tuple(nodes), weights=tuple(weights))


def stored_type(algorithm: str, precision: Precision, halves: bool) -> str:
    """What ``csrc`` calls the type of a layer's packed weights, which hold halves or do not."""
    return "fp16" if precision is Precision.FP16 or (halves and layout(algorithm) == "plain") else "fp32"


def _untuned(node: Node) -> tuple[str, ...]:
    return tuple(name for name in algorithms(node, Precision.FP32) if layout(name) == "plain")


def _packed(node: Node, layer: Layer, algorithm: str, stored: str) -> Weight:
    name = f"{layer.key}.{layout(algorithm)}"
    size = packed_bytes(node, layer, algorithm, stored)

    def load() -> NDArray[Any]:
        weight = layer.weight()
        if stored == "fp16":
            weight = _checked(name, weight)
        if node.op == "linear":
            return _C.linear_pack(weight, stored)
        return _C.conv2d_pack(weight, algorithm, stored)

    return Weight(name, "packed", (size,), load)


def _halved(weight: Weight) -> Weight:
    load: Callable[[], Any] = weight.load
    if weight.kind != "float32":
        return weight
    return dataclasses.replace(
        weight,
        kind="float16",
        load=lambda: _checked(weight.name, load()).astype(np.float16),
    )


def _checked(name: str, weight: NDArray[np.float32]) -> NDArray[np.float32]:
    """``weight``, whose values halves can hold. Raises CaptureError."""
    if weight.size:
        largest = float(np.abs(weight).max())
        if largest > _LARGEST_HALF:
            raise CaptureError(
                f"weight {name} has the value {largest:.4g}, over the {_LARGEST_HALF:.0f} of a half:"
                " build with --precision fp32"
            )
    return weight
