"""``<module>.lora.onnx``: the graph of a module with a low-rank branch beside each layer.

::

    x ── layer ── (bias) ──────────────┬── + ── y
    └─ · <layer>/down ── · <layer>/up ─┘

Both matrices are inputs whose rank is open, so that a LoRA is other inputs to the same session. The weights
stay where they are: this file refers to them by their place in the module's own.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastdiff.errors import OutputError
from fastdiff.targets.onnxruntime.weights import Located, initializers
from fastdiff.targets.parameters import Layer

if TYPE_CHECKING:
    import onnx

__all__ = ["write_branches"]


def write_branches(folder: Path, model: str, name: str, located: Mapping[str, Located]) -> dict[str, Layer]:
    """Write the file ``name`` into ``folder`` for the layers whose weights are ``located`` in ``model``.

    Returns the layers that have a branch, each with its path as the place of its matrices; nothing is
    written where there are none. A layer that the graph computes by another operator has none. Raises
    OutputError.
    """
    import onnx

    document = onnx.load(str(folder / model), load_external_data=False)
    graph = document.graph
    writer = _Writer(graph)
    layers = {
        path: Layer(weight.shape, ((path,),)) for path, weight in located.items() if writer.add(path, weight)
    }
    if not layers:
        return {}
    writer.finish()
    places = {name: (file, offset) for name, file, offset, _ in initializers(folder, model)}
    for tensor in graph.initializer:
        if tensor.name not in places or tensor.external_data:
            continue
        file, offset = places[tensor.name]
        size = len(tensor.raw_data)
        tensor.ClearField("raw_data")
        tensor.data_location = onnx.TensorProto.EXTERNAL
        for key, value in (("location", file), ("offset", offset), ("length", size)):
            tensor.external_data.add(key=key, value=str(value))
    try:
        onnx.save_model(document, str(folder / name))
    except OSError as error:
        raise OutputError(f"{folder / name} cannot be written: {error.strerror}") from error
    return layers


class _Writer:
    """Puts branches behind the nodes of a graph."""

    def __init__(self, graph: onnx.GraphProto) -> None:
        self._graph = graph
        self._constants = {tensor.name: len(tensor.dims) for tensor in graph.initializer}
        self._uses: dict[str, list[Any]] = {}
        self._nodes = list(graph.node)
        for node in self._nodes:
            for name in node.input:
                self._uses.setdefault(name, []).append(node)
        self._behind: dict[int, list[Any]] = {}

    def add(self, path: str, weight: Located) -> bool:
        """Give each node that computes the layer a branch; False, and nothing is done, where one cannot."""
        nodes = self._products(weight.initializer)
        convolution = len(weight.shape) > 2
        if not nodes or not all(_is_product(node, convolution) for node in nodes):
            return False
        for node in nodes:
            self._branch(path, node)
        self._declare(path, weight.shape)
        return True

    def finish(self) -> None:
        """Put all nodes in the order in which they compute."""
        nodes = [each for node in self._nodes for each in (node, *self._behind.get(id(node), ()))]
        copies = [type(node).FromString(node.SerializeToString()) for node in nodes]
        del self._graph.node[:]
        self._graph.node.extend(copies)

    def _products(self, weight: str) -> list[Any]:
        """The nodes that a weight goes into, behind transpositions of it."""
        found: list[Any] = []
        for node in self._uses.get(weight, ()):
            found += self._products(node.output[0]) if node.op_type == "Transpose" else [node]
        return found

    def _branch(self, path: str, node: Any) -> None:
        last = self._with_bias(node)
        output = last.output[0]
        last.output[0] = f"{output}/plain"
        narrow, added = f"{output}/narrow", f"{output}/added"
        op = "Conv" if node.op_type == "Conv" else "MatMul"
        down = _node(op, [node.input[0], f"{path}/down"], narrow)
        if op == "Conv":
            down.attribute.extend(node.attribute)
        up = _node(op, [narrow, f"{path}/up"], added)
        total = _node("Add", [last.output[0], added], output)
        self._behind.setdefault(id(last), []).extend([down, up, total])

    def _with_bias(self, node: Any) -> Any:
        """The addition of a bias behind a product, which ONNX Runtime may fuse with it, or the product."""
        uses = self._uses.get(node.output[0], [])
        if node.op_type == "MatMul" and len(uses) == 1 and uses[0].op_type == "Add":
            (other,) = [name for name in uses[0].input if name != node.output[0]] or [""]
            if self._constants.get(other) == 1:
                return uses[0]
        return node

    def _declare(self, path: str, shape: tuple[int, ...]) -> None:
        from onnx import TensorProto, helper

        out, inner = shape[0], shape[1:]
        rank = f"rank of {path}"
        sizes: tuple[list[Any], list[Any]] = ([inner[0], rank], [rank, out])
        if len(shape) > 2:
            sizes = [rank, *inner], [out, rank, *(1 for _ in inner[1:])]
        for name, size in zip(("down", "up"), sizes, strict=True):
            made = helper.make_tensor_value_info(f"{path}/{name}", TensorProto.FLOAT, size)
            self._graph.input.append(made)


def _is_product(node: Any, convolution: bool) -> bool:
    attributes = {item.name: item for item in node.attribute}
    if convolution:
        return node.op_type == "Conv" and ("group" not in attributes or attributes["group"].i == 1)
    if node.op_type == "Gemm":
        whole = "alpha" not in attributes or attributes["alpha"].f == 1
        return whole and ("transA" not in attributes or attributes["transA"].i == 0)
    return str(node.op_type) == "MatMul"


def _node(op: str, inputs: list[str], output: str) -> Any:
    from onnx import helper

    return helper.make_node(op, inputs, [output], name=output)
