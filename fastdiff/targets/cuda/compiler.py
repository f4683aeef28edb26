"""Compiling a captured module for the cuda target: lower, keep halves safe, measure, choose, write."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fastdiff.build.capture import CapturedModule
from fastdiff.build.lower import Lowered, lower_module
from fastdiff.build.modules import ModuleSpec, random_inputs
from fastdiff.targets import Compiled, CompileOptions
from fastdiff.targets.cuda import file
from fastdiff.targets.cuda.choices import Choices
from fastdiff.targets.cuda.executor import Executor
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
    """Write the files of ``captured`` into ``folder``. Raises CaptureError and OutputError."""
    machine = machine or Machine.here()
    graph = with_layers(lower_module(captured))
    dtypes = value_dtypes(graph, options.precision)
    weights = load_weights(graph, weight_dtypes(graph, dtypes), machine.device)
    choices = Choices()
    executor = Executor(graph, weights, dtypes, choices)
    if options.sizes:
        tuner = Tuner(executor, choices, machine.arch, machine.timer, lambda what: None)
        with executor.watched(tuner):
            run_random(executor, captured.spec, options.sizes, machine.device)
    module = file.Module(graph, dtypes, weights, choices.to_json(), [], {})
    names = file.write(folder, captured.name, module)
    tactics: dict[str, Any] = {
        "format": "cuda",
        "precision": options.precision.value,
        "sizes": dict(options.sizes),
        "weight_bytes": sum(weight.nbytes for weight in weights),
        "implementations": _counts(executor, choices, captured.spec, options.sizes, machine.device),
    }
    return Compiled(names, tactics, requirements(machine))


def requirements(machine: Machine) -> dict[str, str]:
    """What an engine that was compiled here needs: the same kind of GPU."""
    if machine.device.type != "cuda":
        return {}
    return {
        "compute_capability": f"{machine.arch // 10}.{machine.arch % 10}",
        "gpu": torch.cuda.get_device_name(machine.device),
    }


def run_random(
    executor: Executor, spec: ModuleSpec, sizes: Mapping[str, int], device: torch.device
) -> dict[int, Tensor]:
    """Run the graph once on random inputs; the values that are left."""
    arrays = random_inputs(spec, dict(sizes), seed=0)
    values = {
        value: torch.from_numpy(arrays[tensor.name]).to(device)
        for value, tensor in zip(executor.graph.inputs, spec.inputs, strict=True)
    }
    with torch.inference_mode():
        executor.run(values, sizes)
    return values


def _counts(
    executor: Executor,
    choices: Choices,
    spec: ModuleSpec,
    sizes: Mapping[str, int],
    device: torch.device,
) -> dict[str, int]:
    """How many nodes each implementation runs at the measured sizes: ``{"linear: triton": 96, …}``."""
    counts: dict[str, int] = {}
    if not sizes:
        return counts

    def count(index: int, call: Any, result: Tensor) -> None:
        name = f"{call.node.op}: {choices(call).implementation}"
        counts[name] = counts.get(name, 0) + 1

    with executor.watched(count):
        run_random(executor, spec, sizes, device)
    return dict(sorted(counts.items()))


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
    """What each weight is stored in: the dtype of the node that uses it, of several the one of most digits."""
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
        placed(torch.from_numpy(weight.load()).to(device).to(dtype))
        for weight, dtype in zip(graph.weights, dtypes, strict=True)
    ]


def placed(weight: Tensor) -> Tensor:
    """A weight in the layout that kernels want: (O, I, kh, kw) channels last in memory."""
    if weight.dim() == 4:
        return weight.contiguous(memory_format=torch.channels_last)
    return weight.contiguous()


