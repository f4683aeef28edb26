"""Compiling a captured module for the cuda target: lower, keep halves safe, measure, choose, write."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor

from fastdiff.build.capture import CapturedModule
from fastdiff.build.lower import Lowered, lower_module
from fastdiff.build.modules import ModuleSpec, random_inputs
from fastdiff.build.parameters import source_layers
from fastdiff.config import Precision
from fastdiff.kernels.triton import binaries
from fastdiff.targets import Compiled, CompileOptions, parameters
from fastdiff.targets.cuda import file
from fastdiff.targets.cuda.calls import Call
from fastdiff.targets.cuda.choices import Choices
from fastdiff.targets.cuda.executor import Executor, Watch
from fastdiff.targets.cuda.finite import check_finite
from fastdiff.targets.cuda.fusion import Pair, fuse, pairs, worthwhile
from fastdiff.targets.cuda.plan import Plan
from fastdiff.targets.cuda.ranges import (
    Scales,
    calibration_inputs,
    exponent_of,
    measure_ranges,
    plan_scales,
    scaled,
)
from fastdiff.targets.cuda.stages import Stages, record_steps
from fastdiff.targets.cuda.tune import Timer, Tuner, graph_seconds
from fastdiff.targets.cuda.types import value_dtypes
from fastdiff.targets.graph import Graph, Weight

__all__ = ["Machine", "compile_module", "load_weights", "weight_dtypes", "with_layers"]


@dataclasses.dataclass(frozen=True)
class Machine:
    """What a module is compiled on: its device, compute capability (90 for 9.0, 0 for a CPU) and clock."""

    device: torch.device
    arch: int
    timer: Timer

    @staticmethod
    def here() -> Machine:
        """The current GPU."""
        device = torch.device("cuda", torch.cuda.current_device())
        major, minor = torch.cuda.get_device_capability(device)
        return Machine(device, 10 * major + minor, graph_seconds)


def compile_module(
    captured: CapturedModule, folder: Path, options: CompileOptions, machine: Machine | None = None
) -> Compiled:
    """Write the files of ``captured`` into ``folder``.

    Raises CaptureError for what cannot be lowered or run, NumericError where NaN or infinity comes out, and
    OutputError.
    """
    machine = machine or Machine.here()
    lowered = lower_module(captured)
    graph = with_layers(lowered)
    sizes = options.sizes or smallest_sizes(captured.spec)
    scales = Scales((0,) * len(graph.values), frozenset())
    if options.precision is Precision.FP16:
        scales = _safe_scales(graph, captured.spec, sizes, machine)
        graph = scaled(graph, scales)
    dtypes = value_dtypes(graph, options.precision)
    for value in scales.islands:
        dtypes[value] = torch.float32
    weights = load_weights(graph, weight_dtypes(graph, dtypes), machine.device)
    choices = Choices()
    progress = options.progress or (lambda fraction: None)
    plan = _planned(graph, weights, dtypes, captured.spec, sizes, machine, bool(options.sizes))
    plan.compile(lambda fraction: progress(0.5 * fraction))
    _check(Executor(graph, weights, dtypes, choices), captured, sizes)
    if options.sizes:
        graph, dtypes = _tuned(graph, weights, dtypes, choices, captured.spec, sizes, machine, plan, progress)
    executor = Executor(graph, weights, dtypes, choices)
    counts: dict[str, int] = {}
    with binaries.recording() as kernels:
        with executor.watched(_counter(counts, executor, choices)):
            run(executor, captured.spec, random_inputs(captured.spec, dict(sizes), seed=0))
        record_steps(Stages(executor))
    module = file.Module(
        graph,
        dtypes,
        weights,
        choices.to_json(),
        [{**binary.to_json(), "code": f"{index}"} for index, binary in enumerate(kernels.values())],
        {f"{index}": binary.code for index, binary in enumerate(kernels.values())},
    )
    names = file.write(folder, captured.name, module)
    tactics: dict[str, Any] = {
        "format": "cuda",
        "sizes": dict(options.sizes),
        "weight_bytes": sum(weight.nbytes for weight in weights),
        "implementations": dict(sorted(counts.items())),
        "scaled": {
            "values": sum(exponent > 0 for exponent in scales.exponents),
            "largest": max(scales.exponents, default=0),
            "islands": len(scales.islands),
        },
    }
    places = parameters.write(folder, captured.name, _places(captured, lowered, graph))
    return Compiled((*names, *places), tactics, requirements(machine))


def _places(captured: CapturedModule, lowered: Lowered, graph: Graph) -> dict[str, parameters.Layer]:
    """Of each layer of the checkpoint the weights that hold it, its first row there, and their scale."""
    weights: dict[str, list[tuple[int, int]]] = {}
    for key in {layer.key for layer in lowered.layers}:
        for index, weight in enumerate(graph.weights):
            exponent = exponent_of(weight.name, key)
            if exponent is not None:
                weights.setdefault(key, []).append((index, exponent))
    return {
        path: parameters.Layer(
            shape,
            tuple(
                sorted(
                    {
                        (index, first, exponent)
                        for layer, first in layers
                        for index, exponent in weights.get(layer.key, ())
                    }
                )
            ),
        )
        for path, (shape, layers) in source_layers(captured, lowered).items()
    }


def _planned(
    graph: Graph,
    weights: Sequence[Tensor],
    dtypes: list[torch.dtype],
    spec: ModuleSpec,
    sizes: Mapping[str, int],
    machine: Machine,
    tuned: bool,
) -> Plan:
    """What running the graph will have to compile, and with ``tuned`` what measuring it will."""
    plan = Plan(machine.arch)
    if not machine.arch:
        return plan
    arrays = random_inputs(spec, dict(sizes), seed=0)
    graphs = [(graph, dtypes), _fused(graph, dtypes, _fusible(graph, dtypes))] if tuned else [(graph, dtypes)]
    for tried, tried_dtypes in graphs:
        executor = Executor(tried, weights, tried_dtypes, Choices())
        plan.add(executor, lambda executor: run(executor, spec, arrays), all_candidates=tuned)
    return plan


def _tuned(
    graph: Graph,
    weights: Sequence[Tensor],
    dtypes: list[torch.dtype],
    choices: Choices,
    spec: ModuleSpec,
    sizes: Mapping[str, int],
    machine: Machine,
    plan: Plan,
    progress: Callable[[float], None],
) -> tuple[Graph, list[torch.dtype]]:
    """Measure every call, also those of fused sums; the graph with the fusions that pay, and its dtypes.

    ``progress`` goes from 0.5 to 1 with the calls of ``plan`` that are measured.
    """
    arrays = random_inputs(spec, dict(sizes), seed=0)
    begun = 0

    def report(what: str) -> None:
        nonlocal begun
        if plan.calls:
            progress(0.5 + 0.5 * min(begun / len(plan.calls), 1.0))
        begun += 1

    def seconds(tried: Graph, tried_dtypes: Sequence[torch.dtype]) -> dict[int, float]:
        executor = Executor(tried, weights, tried_dtypes, choices)
        tuner = Tuner(executor, choices, machine.arch, machine.timer, report, plan.failed)
        found: dict[int, float] = {}

        def watch(index: int, call: Call, result: Tensor) -> None:
            tuner(index, call, result)
            found[index] = tuner.seconds(call)

        with executor.watched(watch):
            run(executor, spec, arrays)
        return found

    candidates = _fusible(graph, dtypes)
    apart = seconds(graph, dtypes)
    together = seconds(*_fused(graph, dtypes, candidates))
    return _fused(graph, dtypes, worthwhile(candidates, apart, together))


def _fusible(graph: Graph, dtypes: Sequence[torch.dtype]) -> list[Pair]:
    """The pairs to try, but for those across an island's shore."""
    return [pair for pair in pairs(graph) if len({dtypes[graph.nodes[index].output] for index in pair}) == 1]


def _fused(
    graph: Graph, dtypes: Sequence[torch.dtype], chosen: Sequence[Pair]
) -> tuple[Graph, list[torch.dtype]]:
    """The graph with some pairs fused, and its dtypes."""
    fused = fuse(graph, chosen)
    return fused, _fused_dtypes(fused, dtypes)


def _fused_dtypes(graph: Graph, dtypes: Sequence[torch.dtype]) -> list[torch.dtype]:
    """The dtypes of a fused graph: what a layer gives before the sum has that of the sum."""
    raw = {
        node.inputs[0]: int(node.attributes["sum"])  # type: ignore[arg-type]
        for node in graph.nodes
        if "sum" in node.attributes
    }
    return [dtypes[raw.get(value, value)] for value in range(len(graph.values))]


def smallest_sizes(spec: ModuleSpec) -> dict[str, int]:
    """Sizes to check a module at when none are asked for: the smallest above 1 that it takes."""
    return {
        symbol: max(size.minimum, 2 * size.multiple_of if size.maximum != 1 else 1)
        for symbol, size in spec.shapes.items()
    }


def _safe_scales(graph: Graph, spec: ModuleSpec, sizes: Mapping[str, int], machine: Machine) -> Scales:
    """What keeps the graph within the range of halves, measured in float32."""
    dtypes = value_dtypes(graph, Precision.FP32)
    weights = load_weights(graph, weight_dtypes(graph, dtypes), machine.device)
    _planned(graph, weights, dtypes, spec, sizes, machine, tuned=False).compile()
    exact = Executor(graph, weights, dtypes, Choices())
    ranges = measure_ranges(exact, calibration_inputs(spec, sizes), [tensor.name for tensor in spec.inputs])
    return plan_scales(graph, ranges)


def _check(executor: Executor, captured: CapturedModule, sizes: Mapping[str, int]) -> None:
    """Raises NumericError, which names the layer, where NaN or infinity comes out of a calibration input."""
    for arrays in calibration_inputs(captured.spec, sizes):
        with executor.watched(check_finite(captured.name)):
            run(executor, captured.spec, arrays)


def _counter(counts: dict[str, int], executor: Executor, choices: Choices) -> Watch:
    """A watch that counts the nodes that each implementation runs: ``{"linear: triton": 96, …}``.

    It also runs what runs at other sizes, so that its binaries are recorded too.
    """

    def count(index: int, call: Call, result: Tensor) -> None:
        option = choices(call)
        name = f"{call.node.op}: {option.implementation}"
        counts[name] = counts.get(name, 0) + 1
        other = choices.elsewhere(call)
        if other != option:
            executor.perform(call, other)

    return count


def requirements(machine: Machine) -> dict[str, str]:
    """What an engine that was compiled here needs: the same kind of GPU."""
    if machine.device.type != "cuda":
        return {}
    return {
        "compute_capability": f"{machine.arch // 10}.{machine.arch % 10}",
        "gpu": torch.cuda.get_device_name(machine.device),
    }


def run(executor: Executor, spec: ModuleSpec, arrays: Mapping[str, NDArray[Any]]) -> dict[int, Tensor]:
    """Run all of a graph on arrays by the names that the spec gives them; the values that are left."""
    values = {
        value: torch.from_numpy(arrays[tensor.name]).to(executor.device)
        for value, tensor in zip(executor.graph.inputs, spec.inputs, strict=True)
    }
    with torch.inference_mode():
        executor.run(values, executor.sizes_of(values))
    return values


def with_layers(lowered: Lowered) -> Graph:
    """The graph with the weights of conv2d and linear among its weights, by the role "layer".

    Layers that share a weight keep sharing it.
    """
    graph = lowered.graph
    weights, nodes, ids = list(graph.weights), list(graph.nodes), dict[str, int]()
    for layer in lowered.layers:
        if layer.key not in ids:
            ids[layer.key] = len(weights)
            weights.append(Weight(layer.key, "float32", layer.shape, layer.weight))
        node = nodes[layer.node]
        nodes[layer.node] = dataclasses.replace(node, weights={**node.weights, "layer": ids[layer.key]})
    return dataclasses.replace(graph, weights=tuple(weights), nodes=tuple(nodes))


def weight_dtypes(graph: Graph, dtypes: Sequence[torch.dtype]) -> list[torch.dtype]:
    """What each weight is stored in: the dtype of the node that uses it, of several the widest."""
    found: list[torch.dtype | None] = [None] * len(graph.weights)
    for node in graph.nodes:
        dtype = dtypes[node.output]
        for weight in node.weights.values():
            known = found[weight]
            integer = not dtype.is_floating_point
            wider = known is None or (not integer and torch.promote_types(known, dtype) == dtype)
            found[weight] = dtype if wider else known
    return [
        torch.int64 if weight.kind == "int64" else dtype or torch.float32
        for weight, dtype in zip(graph.weights, found, strict=True)
    ]


def load_weights(graph: Graph, dtypes: Sequence[torch.dtype], device: torch.device) -> list[Tensor]:
    """The weights on the device, one at a time in float32; kernels of convolutions channels last."""
    return [
        file.placed(torch.from_numpy(weight.load()).to(device).to(dtype))
        for weight, dtype in zip(graph.weights, dtypes, strict=True)
    ]
