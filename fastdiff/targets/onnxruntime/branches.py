"""``<module>.lora.onnx``: the graph of a module with a low-rank branch beside each layer.

::

    x ── layer ── (bias) ──────────────┬── + ── y
    └─ · <layer>/down ── · <layer>/up ─┘

Both matrices are inputs whose rank is open, so that a LoRA is other inputs to the same session. They have the
type of the layer's weight. The weights stay where they are: this file refers to them by their place in the
module's own. Layers that are columns of one weight, such as the projections of an attention's input, have one
branch together: their ``down`` stand beside each other, and each one's ``up`` gives its columns alone.

A graph for CUDA gets its branches when it has been optimised. What it fuses comes behind a product and takes
its result, so that the sum of layer and branch goes there in its place, and nothing else changes.

=============================  =======================================  ==================================
layer                          ``down``                                 ``up``
=============================  =======================================  ==================================
linear (MatMul, Gemm)          [in, rank], by MatMul                    [rank, out], by MatMul
convolution (Conv)             [rank, in, h, w], by Conv                [out, rank, 1, 1], by Conv
channels-last (NhwcConv)       [rank, in, h, w], by Conv and transposes  [rank, out], by MatMul
=============================  =======================================  ==================================

NhwcConv itself is for weights that are constants: of others the CUDA provider does not know that they lie
channels-last.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fastdiff.build.onnx_weights import CHANNELS_LAST, Located, initializers
from fastdiff.errors import OutputError
from fastdiff.targets.parameters import Layer

if TYPE_CHECKING:
    import onnx

__all__ = ["write_branches"]


def write_branches(folder: Path, model: str, name: str, located: Mapping[str, Located]) -> dict[str, Layer]:
    """Write the file ``name`` into ``folder`` for the layers whose weights are ``located`` in ``model``.

    Returns the layers that have a branch, each with the path that its matrices are named by as its place;
    nothing is written where there are none. A layer that the graph computes by another operator has none.
    Raises OutputError.
    """
    import onnx

    document = onnx.load(str(folder / model), load_external_data=False)
    graph = document.graph
    writer = _Writer(graph)
    together: dict[str, list[str]] = {}
    for path, weight in located.items():
        together.setdefault(weight.initializer, []).append(path)
    layers = {
        path: Layer(located[path].shape, ((paths[0],),))
        for paths in together.values()
        if writer.add(paths[0], located[paths[0]])
        for path in paths
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
        """Give each node that computes a weight a branch; False, and nothing is done, where one cannot."""
        nodes = self._products(weight.initializer)
        if not nodes or not all(_is_product(node, weight) for node in nodes):
            return False
        for node in nodes:
            self._branch(path, node)
        self._declare(path, weight)
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
        if node.op_type == "NhwcConv":
            turned = f"{narrow}/channels_first"
            down = [
                _node("Transpose", [node.input[0]], f"{turned}/input", perm=[0, 3, 1, 2]),
                _node("Conv", [f"{turned}/input", f"{path}/down"], turned),
                _node("Transpose", [turned], narrow, perm=[0, 2, 3, 1]),
            ]
            down[1].attribute.extend(node.attribute)
        elif node.op_type == "Conv":
            down = [_node("Conv", [node.input[0], f"{path}/down"], narrow)]
            down[0].attribute.extend(node.attribute)
        else:
            down = [_node("MatMul", [node.input[0], f"{path}/down"], narrow)]
        up = _node("Conv" if node.op_type == "Conv" else "MatMul", [narrow, f"{path}/up"], added)
        total = _node("Add", [last.output[0], added], output)
        self._behind.setdefault(id(last), []).extend([*down, up, total])

    def _with_bias(self, node: Any) -> Any:
        """The addition of a bias behind a product, which ONNX Runtime may fuse with it, or the product."""
        uses = self._uses.get(node.output[0], [])
        if node.op_type == "MatMul" and len(uses) == 1 and uses[0].op_type == "Add":
            (other,) = [name for name in uses[0].input if name != node.output[0]] or [""]
            if self._constants.get(other) == 1:
                return uses[0]
        return node

    def _declare(self, path: str, weight: Located) -> None:
        from onnx import helper

        out, inner = weight.columns or weight.shape[0], weight.shape[1:]
        rank = f"rank of {path}"
        sizes: tuple[list[Any], list[Any]] = ([inner[0], rank], [rank, out])
        if weight.axes == CHANNELS_LAST:
            sizes = [rank, *inner], [rank, out]
        elif len(inner) > 1:
            sizes = [rank, *inner], [out, rank, *(1 for _ in inner[1:])]
        dtype = helper.np_dtype_to_tensor_dtype(np.dtype(weight.dtype))
        for name, size in zip(("down", "up"), sizes, strict=True):
            self._graph.input.append(helper.make_tensor_value_info(f"{path}/{name}", dtype, size))


def _is_product(node: Any, weight: Located) -> bool:
    attributes = {item.name: item for item in node.attribute}
    if len(weight.shape) > 2:
        wanted = "NhwcConv" if weight.axes == CHANNELS_LAST else "Conv"
        return node.op_type == wanted and ("group" not in attributes or attributes["group"].i == 1)
    if node.op_type == "Gemm":
        whole = "alpha" not in attributes or attributes["alpha"].f == 1
        return whole and ("transA" not in attributes or attributes["transA"].i == 0)
    return str(node.op_type) == "MatMul"


def _node(op: str, inputs: list[str], output: str, **attributes: Any) -> Any:
    from onnx import helper

    return helper.make_node(op, inputs, [output], name=output, **attributes)
