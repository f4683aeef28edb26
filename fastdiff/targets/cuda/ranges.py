"""fp16 safety: values that would leave the range of halves are stored divided by a power of two.

A half ends at 65,504, and the residual stream of a VAE decoder passes that: SDXL's own weights give black
pictures in fp16. Dividing the stream costs nothing: a convolution or linear layer takes the factor into its
weights and bias, exactly, and a norm undoes it, with ε divided by the factor's square. Where a value that
is too large cannot be scaled, it stays in float32, and so does what reads it: an island.

Ranges are measured in float32 on inputs as the module meets them, and larger ones.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fastdiff.build.modules import ModuleSpec, random_inputs
from fastdiff.errors import NumericError
from fastdiff.targets.cuda.calls import Call
from fastdiff.targets.cuda.executor import Executor
from fastdiff.targets.graph import Graph, Node, Weight

__all__ = [
    "LIMIT",
    "Scales",
    "calibration_inputs",
    "exponent_of",
    "measure_ranges",
    "plan_scales",
    "scaled",
]

LIMIT = 2.0**12
"""Largest measured magnitude that is stored as it is: a sixteenth of what a half holds, as a picture may be
larger than any input that was measured, and a library's convolution stores its sums before the bias."""

_AMPLITUDES = (1.0, 8.0)
"""Latents have unit variance in the loop, and the decoder gets them divided by the model's scaling factor,
which is between 1/8 and 1 for all that are published."""

_TIMES = "_times_2_"
_VIEWS = ("reshape", "expand", "slice", "permute", "copy")
_SAME = ("add", "subtract", "avg_pool2d", "concat", "mul_scalar", "relu", "upsample_nearest2d")
_LAYERS = ("conv2d", "linear")
_NORMS = ("group_norm_silu", "layer_norm")


@dataclass(frozen=True)
class Scales:
    """What keeps a graph within range.

    exponents  of each value: stored is the value times 2 to the power of minus this
    islands    values that stay in float32
    """

    exponents: tuple[int, ...]
    islands: frozenset[int]

    @property
    def empty(self) -> bool:
        """Whether everything fits as it is."""
        return not any(self.exponents) and not self.islands


def calibration_inputs(
    spec: ModuleSpec, sizes: Mapping[str, int], vocab_size: int = 1
) -> list[dict[str, NDArray[np.generic]]]:
    """Inputs that ranges are measured on: noise of several amplitudes, and smooth pictures."""
    found = []
    for seed, amplitude in enumerate(_AMPLITUDES):
        arrays = random_inputs(spec, dict(sizes), seed, vocab_size)
        found.append({name: _times(array, amplitude) for name, array in arrays.items()})
    smooth = dict(found[-1])
    for name, array in smooth.items():
        if array.ndim == 4:
            rows = np.linspace(-1, 1, array.shape[2])[:, None] * np.linspace(1, -1, array.shape[3])
            smooth[name] = (_AMPLITUDES[-1] * np.broadcast_to(rows, array.shape)).astype(np.float32)
    return [*found, smooth]


def _times(array: NDArray[np.generic], amplitude: float) -> NDArray[np.generic]:
    """Pictures multiplied; token ids, timesteps and embeddings as they are."""
    return (amplitude * np.asarray(array, np.float32)).astype(np.float32) if array.ndim == 4 else array


def measure_ranges(
    executor: Executor, inputs: Sequence[Mapping[str, NDArray[np.generic]]], names: Sequence[str]
) -> list[float]:
    """The largest magnitude of every value over some inputs, by a graph that runs in float32.

    ``names`` are those of the graph's inputs, in order. Raises NumericError when float32 overflows.
    """
    graph = executor.graph
    largest = [torch.zeros((), device=executor.device) for _ in graph.values]

    def watch(index: int, call: Call, result: Tensor) -> None:
        if result.is_floating_point() and result.numel():
            value = call.node.output
            largest[value] = torch.maximum(largest[value], result.abs().amax().float())

    with executor.watched(watch), torch.inference_mode():
        for arrays in inputs:
            values = {
                value: torch.from_numpy(np.asarray(arrays[name])).to(executor.device)
                for value, name in zip(graph.inputs, names, strict=True)
            }
            for value, tensor in values.items():
                if tensor.is_floating_point():
                    largest[value] = torch.maximum(largest[value], tensor.abs().amax())
            executor.run(values, executor.sizes_of(values))
    found = [float(magnitude) for magnitude in largest]
    for node in graph.nodes:
        if not math.isfinite(found[node.output]):
            raise NumericError(
                f"{node.op} in {node.path} overflows in float32 already: the weights cannot be used in halves"
            )
    return found


def plan_scales(graph: Graph, ranges: Sequence[float], limit: float = LIMIT) -> Scales:
    """The smallest exponents that bring every value that can be scaled under ``limit``; islands for the
    rest.
    """
    groups = _Groups(len(graph.values))
    fixed: set[int] = set(graph.inputs) | set(graph.outputs)
    for node in graph.nodes:
        inputs = [value for value in node.inputs if value is not None]
        if node.op in _VIEWS or node.op in _SAME:
            for value in inputs:
                groups.join(value, node.output)
        elif node.op in _LAYERS:
            for value in inputs[1:]:  # vector and residual, which are added to the sums
                groups.join(value, node.output)
            if node.attributes["activation"] != "none":
                fixed.add(node.output)
        elif node.op in _NORMS:
            fixed.add(node.output)
        else:
            fixed.update((*inputs, node.output))
    largest: dict[int, float] = {}
    for value, magnitude in enumerate(ranges):
        root = groups.root(value)
        largest[root] = max(largest.get(root, 0.0), magnitude)
    pinned = {groups.root(value) for value in fixed}
    exponents = []
    for value in range(len(graph.values)):
        root = groups.root(value)
        over = largest[root] / limit
        exponents.append(0 if root in pinned or over <= 1 else math.ceil(math.log2(over)))
    too_large = {
        value
        for value, magnitude in enumerate(ranges)
        if magnitude * 2.0 ** -exponents[value] > limit and value not in graph.inputs
    }
    # a node computes in the dtype of its result, so what reads such a value is in float32 as well
    readers = {node.output for node in graph.nodes if too_large.intersection(node.inputs)}
    islands = too_large | readers
    return Scales(tuple(exponents), frozenset(islands))


def scaled(graph: Graph, scales: Scales) -> Graph:
    """The graph with the exponents in its weights and in the norms' ε."""
    weights = list(graph.weights)
    made: dict[tuple[int, int], int] = {}

    def times(weight: int, exponent: int) -> int:
        """The id of a weight multiplied by 2 to the power of ``exponent``."""
        if exponent == 0:
            return weight
        if (weight, exponent) not in made:
            made[weight, exponent] = len(weights)
            source = graph.weights[weight]
            weights.append(
                Weight(
                    f"{source.name}{_TIMES}{exponent}".replace("-", "m"),
                    source.kind,
                    source.shape,
                    lambda: np.ldexp(source.load(), exponent),
                )
            )
        return made[weight, exponent]

    nodes = tuple(_scaled_node(node, scales.exponents, times) for node in graph.nodes)
    return _without_unused(dataclasses.replace(graph, nodes=nodes, weights=tuple(weights)))


def exponent_of(weight: str, layer: str) -> int | None:
    """The exponent that ``scaled`` put into a weight, None where it is no weight of ``layer``."""
    if weight == layer:
        return 0
    name, mark, exponent = weight.rpartition(_TIMES)
    return int(exponent.replace("m", "-")) if mark and name == layer else None


def _scaled_node(node: Node, exponents: Sequence[int], times: Callable[[int, int], int]) -> Node:
    first = next((value for value in node.inputs if value is not None), None)
    before = 0 if first is None else exponents[first]
    if node.op in _NORMS and before:
        eps = float(node.attributes["eps"]) * 4.0**-before  # type: ignore[arg-type]
        return dataclasses.replace(node, attributes={**node.attributes, "eps": eps})
    if node.op not in _LAYERS:
        return node
    after = exponents[node.output]
    roles = {
        role: times(weight, before - after if role == "layer" else -after)
        for role, weight in node.weights.items()
    }
    return dataclasses.replace(node, weights=roles)


def _without_unused(graph: Graph) -> Graph:
    """The graph without weights that no node uses any more."""
    used = sorted({weight for node in graph.nodes for weight in node.weights.values()})
    ids = {old: new for new, old in enumerate(used)}
    nodes = tuple(
        dataclasses.replace(node, weights={role: ids[weight] for role, weight in node.weights.items()})
        for node in graph.nodes
    )
    return dataclasses.replace(graph, nodes=nodes, weights=tuple(graph.weights[old] for old in used))


class _Groups:
    """Values that must have one exponent, as disjoint sets."""

    def __init__(self, count: int) -> None:
        self._parents = list(range(count))

    def root(self, value: int) -> int:
        while self._parents[value] != value:
            self._parents[value] = self._parents[self._parents[value]]
            value = self._parents[value]
        return value

    def join(self, a: int, b: int) -> None:
        self._parents[self.root(a)] = self.root(b)
