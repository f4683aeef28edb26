"""The files of a compiled module: ``<module>.cuda.json`` and ``<module>.cuda.safetensors``.

The JSON holds the graph as ``fastdiff.targets.graph`` has it, the dtype of every value, and which
implementation runs what; the safetensors hold the weights, ``w0``, ``w1`` … in the graph's order, and the
compiled kernels as bytes. Both are plain formats: nothing in them runs on the host.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fastdiff.config import SizeRange
from fastdiff.errors import EngineDamagedError, OutputError
from fastdiff.targets.graph import Dim, Graph, Node, Value, Weight

__all__ = ["FORMAT_VERSION", "Module", "placed", "read", "write"]

FORMAT_VERSION = 1
_DTYPES = {
    str(dtype).removeprefix("torch."): dtype
    for dtype in (torch.float32, torch.float16, torch.bfloat16, torch.int64)
}


@dataclass(frozen=True)
class Module:
    """A compiled module.

    graph    without loaders of weights
    dtypes   of the graph's values
    weights  in the order of ``graph.weights``
    choices  what runs which call, as ``choices.Choices.to_json`` gives it
    kernels  compiled kernels, as ``binaries.Binaries.to_json`` describes them, and their code by name
    """

    graph: Graph
    dtypes: list[torch.dtype]
    weights: list[Tensor]
    choices: dict[str, Any]
    kernels: list[dict[str, Any]]
    code: dict[str, Tensor]


def write(folder: Path, name: str, module: Module) -> tuple[str, ...]:
    """Write a module's files into ``folder``; their names. Raises OutputError."""
    from safetensors.torch import save_file

    document = {
        "format_version": FORMAT_VERSION,
        "graph": _graph_json(module.graph),
        "dtypes": [_name(dtype) for dtype in module.dtypes],
        "choices": module.choices,
        "kernels": module.kernels,
    }
    tensors = {f"w{index}": weight.detach().cpu() for index, weight in enumerate(module.weights)}
    # safetensors stores one order of axes; the layouts are made again when the engine is opened
    tensors = {key: tensor.contiguous() for key, tensor in tensors.items()}
    tensors.update({f"kernel.{key}": code for key, code in module.code.items()})
    names = (f"{name}.cuda.json", f"{name}.cuda.safetensors")
    try:
        (folder / names[0]).write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
        save_file(tensors, str(folder / names[1]))
    except OSError as error:
        raise OutputError(f"{folder / names[0]} cannot be written: {error.strerror}") from error
    return names


def read(folder: Path, name: str, device: torch.device) -> Module:
    """Read a module's files, weights straight to ``device``. Raises EngineDamagedError."""
    from safetensors import SafetensorError, safe_open

    path = folder / f"{name}.cuda.json"
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        version = document["format_version"]
        if version != FORMAT_VERSION:
            raise EngineDamagedError(
                f"{path}: found format version {version}, wanted {FORMAT_VERSION}; build the engine again"
            )
        graph = _graph_from(document["graph"])
        dtypes = [_DTYPES[dtype] for dtype in document["dtypes"]]
        with safe_open(str(folder / f"{name}.cuda.safetensors"), "pt", device=str(device)) as file:
            weights = [placed(file.get_tensor(f"w{index}")) for index in range(len(graph.weights))]
        with safe_open(str(folder / f"{name}.cuda.safetensors"), "pt", device="cpu") as file:
            code = {
                key.removeprefix("kernel."): file.get_tensor(key)
                for key in file.keys()  # noqa: SIM118 (no mapping)
                if key.startswith("kernel.")
            }
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise EngineDamagedError(
            f"{path}: cannot be read ({' '.join(str(error).split())[:200]}); build the engine again"
        ) from error
    if len(dtypes) != len(graph.values):
        raise EngineDamagedError(
            f"{path}: found {len(dtypes)} dtypes, wanted {len(graph.values)}; build the engine again"
        )
    return Module(graph, dtypes, weights, document["choices"], document["kernels"], code)


def placed(weight: Tensor) -> Tensor:
    """A weight in the layout that kernels want: (O, I, kh, kw) channels last in memory."""
    if weight.dim() == 4:
        return weight.contiguous(memory_format=torch.channels_last)
    return weight.contiguous()


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _graph_json(graph: Graph) -> dict[str, Any]:
    return {
        "symbols": {
            name: [size.minimum, size.maximum, size.multiple_of] for name, size in graph.symbols.items()
        },
        "values": [[value.name, value.dtype, list(value.shape)] for value in graph.values],
        "weights": [[weight.name, list(weight.shape)] for weight in graph.weights],
        "nodes": [
            {
                "op": node.op,
                "inputs": list(node.inputs),
                "output": node.output,
                "attributes": dict(node.attributes),
                "weights": dict(node.weights),
                "stage": node.stage,
                "path": node.path,
            }
            for node in graph.nodes
        ],
        "inputs": list(graph.inputs),
        "outputs": list(graph.outputs),
    }


def _graph_from(document: dict[str, Any]) -> Graph:
    symbols = {
        name: SizeRange(minimum, maximum, multiple)
        for name, (minimum, maximum, multiple) in document["symbols"].items()
    }
    values = tuple(
        Value(name, dtype, tuple(_dim(dim) for dim in shape)) for name, dtype, shape in document["values"]
    )
    weights = tuple(Weight(name, "packed", tuple(shape), _not_loaded) for name, shape in document["weights"])
    nodes = tuple(
        Node(
            op=node["op"],
            inputs=tuple(node["inputs"]),
            output=node["output"],
            attributes={key: _attribute(value) for key, value in node["attributes"].items()},
            weights=node["weights"],
            stage=node["stage"],
            path=node["path"],
        )
        for node in document["nodes"]
    )
    graph = Graph(symbols, values, nodes, weights, tuple(document["inputs"]), tuple(document["outputs"]))
    _check(graph)
    return graph


def _check(graph: Graph) -> None:
    """Raises ValueError for ids that name nothing, and for a value that is used before it is there."""
    known = set(graph.inputs)
    for position, node in enumerate(graph.nodes):
        missing = {value for value in node.inputs if value is not None} - known
        if missing or not all(0 <= weight < len(graph.weights) for weight in node.weights.values()):
            raise ValueError(f"node {position} ({node.op}) names what is not there")
        known.add(node.output)
        if "sum" in node.attributes:
            known.add(int(node.attributes["sum"]))  # type: ignore[arg-type]
    if not (set(graph.outputs) <= known and all(0 <= value < len(graph.values) for value in known)):
        raise ValueError("an output or a value is not there")


def _dim(dim: Any) -> Dim:
    return tuple(dim) if isinstance(dim, list) else dim


def _attribute(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _not_loaded() -> Any:
    raise RuntimeError("weights of a stored graph are read with its file")
