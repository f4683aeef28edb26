"""Compiling a captured module for the native target: fuse, lower, choose, pack, write."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fastdiff import _C
from fastdiff.build.capture import CapturedModule
from fastdiff.build.lower import Layer, Lowered, lower_module
from fastdiff.build.parameters import source_layers
from fastdiff.config import Precision
from fastdiff.targets import Compiled, CompileOptions, parameters
from fastdiff.targets.graph import Node
from fastdiff.targets.native import file
from fastdiff.targets.native.pack import algorithms, holds_halves, pack, packed_bytes, stored_type
from fastdiff.targets.native.tactics import (
    Choice,
    Convolution,
    Measure,
    Product,
    Tunable,
    Work,
    choose,
    neighbours,
    size_of,
)

__all__ = ["compile_module"]

_ROUNDS, _SECONDS = 3, 0.01
"""How often a layer is measured, and for how long: the best of several rounds outlasts what else runs."""
_LONG = 0.02
"""Seconds of one call that are longer than what disturbs it: one round is enough."""


def compile_module(captured: CapturedModule, folder: Path, options: CompileOptions) -> Compiled:
    """Write ``<module>.fdn`` and what LoRAs need into ``folder``. Raises CaptureError and OutputError."""
    lowered = lower_module(captured)
    halves = frozenset(
        layer.key
        for layer in lowered.layers
        if options.precision is not Precision.FP16 and holds_halves(layer.weight())
    )
    choice = _choose(lowered, captured, options, halves)
    graph = pack(lowered, choice.packings, choice.tuned, options.precision, halves)
    name = f"{captured.name}.fdn"
    file.write(folder / name, graph)
    places = parameters.write(folder, captured.name, _places(captured, lowered))
    tactics: dict[str, Any] = {
        "format": "fdn",
        "memory": options.memory,
        "weight_bytes": sum(weight.nbytes for weight in graph.weights),
        "fp32_bytes": _plain_bytes(lowered),
        "layers": choice.layers,
        "measured": choice.measured,
    }
    return Compiled((name, *places), tactics)


def _places(captured: CapturedModule, lowered: Lowered) -> dict[str, parameters.Layer]:
    """Of each layer of the checkpoint the values that it computes here, and its first row in their layers."""
    return {
        path: parameters.Layer(
            shape, tuple((lowered.graph.nodes[layer.node].output, first) for layer, first in layers)
        )
        for path, (shape, layers) in source_layers(captured, lowered).items()
    }


def _choose(
    lowered: Lowered, captured: CapturedModule, options: CompileOptions, halves: frozenset[str]
) -> Choice:
    """Measure and choose for the sizes that were asked for; without any, weights stay as they are."""
    if not options.sizes:
        return Choice({}, {}, {}, {})
    sizes = neighbours(options.sizes, captured.spec.shapes)
    layers = [
        _tunable(lowered, layer, sizes, options.precision, layer.key in halves) for layer in lowered.layers
    ]
    others = sum(weight.nbytes for weight in lowered.graph.weights)
    budget = int(options.memory * _plain_bytes(lowered)) - others
    return choose(layers, sizes, _measure(options), budget)


def _tunable(
    lowered: Lowered,
    layer: Layer,
    sizes: tuple[Mapping[str, int], ...],
    precision: Precision,
    halves: bool,
) -> Tunable:
    """A layer as the tactics see it: what it computes at each size, and what each algorithm stores."""
    node = lowered.graph.nodes[layer.node]
    assert node.inputs[0] is not None
    shape = lowered.graph.values[node.inputs[0]].shape
    stored = {
        name: packed_bytes(node, layer, name, stored_type(name, precision, halves))
        for name in algorithms(node, precision)
    }
    return Tunable(
        layer.node,
        node.path or layer.key,
        f"{node.op} {layer.key} {' '.join(stored)}",
        tuple(_work(node, layer, [size_of(dim, at) for dim in shape], halves) for at in sizes),
        stored,
    )


def _work(node: Node, layer: Layer, shape: list[int], halves: bool) -> Work:
    """What a layer computes on an input of ``shape``."""
    a: Mapping[str, Any] = node.attributes
    if node.op == "linear":
        return Product(math.prod(shape[:-1]), a["in"], layer.shape[0], a["activation"], halves)
    return Convolution(
        batch=shape[0],
        height=shape[1],
        width=shape[2],
        in_channels=a["in"],
        out_channels=a["out"],
        kernel=(a["kernel_h"], a["kernel_w"]),
        stride=a["stride"],
        padding=(a["pad_top"], a["pad_bottom"], a["pad_left"], a["pad_right"]),
        upsample=a["upsample"],
        halves=halves,
    )


def _measure(options: CompileOptions) -> Measure:
    threads = options.threads or len(os.sched_getaffinity(0))

    def measure_once(work: Work, algorithm: str) -> float:
        stored = stored_type(algorithm, options.precision, work.halves)
        if isinstance(work, Product):
            gated = work.activation == "geglu"  # which halves the outputs
            sizes = (work.rows, work.inputs, work.outputs // (2 if gated else 1))
            return _C.measure_linear(*sizes, work.activation, stored, threads, _SECONDS)
        return _C.measure_conv2d(
            (work.batch, work.height, work.width, work.in_channels),
            (work.out_channels, work.in_channels, *work.kernel),
            work.stride,
            work.padding,
            work.upsample,
            algorithm,
            stored,
            threads,
            _SECONDS,
        )

    def measure(work: Work, algorithm: str) -> float:
        best = measure_once(work, algorithm)
        for _ in range(_ROUNDS - 1):
            if best > _LONG:
                break
            best = min(best, measure_once(work, algorithm))
        return best

    return measure


def _plain_bytes(lowered: Lowered) -> int:
    """Bytes of all weights in float32 as the checkpoint holds them, which the budget is a multiple of."""
    sizes = {layer.key: 4 * math.prod(layer.shape) for layer in lowered.layers}
    return sum(weight.nbytes for weight in lowered.graph.weights) + sum(sizes.values())
