"""At build: which weights of a plan LoRAs can update, and their values, which only the ONNX file has.

TensorRT's parser gives weights the names that they have in the file. A weight that the plan holds under
another name, in another type or folded into others is left out, so that a LoRA for its layer is refused by
the layer's name. Some weights can only be replaced along with others, biases for example; those are kept too.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from numpy.typing import NDArray

from fastdiff.build.onnx_weights import find_weights, initializers
from fastdiff.targets.parameters import Layer
from fastdiff.targets.tensorrt.interface import Engine, Values

if TYPE_CHECKING:
    from fastdiff.build.capture import CapturedModule

__all__ = ["find_adaptable"]

Arrays = dict[str, NDArray[Any]]


def find_adaptable(
    captured: CapturedModule, network: Path, engine: Engine, dtype: str
) -> tuple[dict[str, Layer], Arrays]:
    """The layers that ``engine``, built of the ONNX file ``network``, takes updates of, by their path.

    Of each the name of its weight and whether that is stored transposed; besides, the values of these weights
    and of all that must be replaced with any of them, by name. ``dtype`` is that of the module's products.
    """
    folder, model = network.parent, network.name
    located = find_weights(captured, folder, model)
    if not located:
        return {}, {}
    known = _Known(network, engine)
    products = _products(network)
    paths = {
        layer.initializer: path
        for path, layer in located.items()
        if layer.initializer in products
        and known.has(layer.initializer, dtype)
        and known.arrays[layer.initializer].shape == _stored(layer.shape, products[layer.initializer])
    }
    names = _complete(paths, known, engine)
    layers = {
        paths[name]: Layer(located[paths[name]].shape, ((name, products[name]),))
        for name in paths
        if name in names
    }
    return layers, {name: known.arrays[name] for name in names} if layers else {}


def _stored(shape: tuple[int, ...], transposed: bool) -> tuple[int, ...]:
    return shape[::-1] if transposed else shape


class _Known:
    """Values of the file's weights, of those that the engine lets replace as they are in the file."""

    def __init__(self, network: Path, engine: Engine) -> None:
        import onnx

        self._replaceable = engine.replaceable()
        self.arrays: Arrays = {
            name: array for name, _, _, array in initializers(network.parent, network.name)
        }
        self._rest = {
            tensor.name: tensor
            for tensor in onnx.load(str(network), load_external_data=False).graph.initializer
            if tensor.name not in self.arrays
            and tensor.data_type in (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16)
        }
        self._folder = str(network.parent)

    def has(self, name: str, dtype: str | None = None) -> bool:
        """Whether a weight is in the plan under its name, with its type and size."""
        from onnx import numpy_helper

        if name not in self._replaceable:
            return False
        if name in self._rest:
            self.arrays[name] = numpy_helper.to_array(self._rest.pop(name), self._folder)
        array = self.arrays.get(name)
        if array is None or dtype not in (None, array.dtype.name):
            return False
        return self._replaceable[name] == (array.dtype.name, array.size)


def _complete(names: Iterable[str], known: _Known, engine: Engine) -> set[str]:
    """Of these weights those that can be replaced with what is known, and what they need besides."""

    def needed(some: Iterable[str]) -> set[str]:
        return set(engine.also_needed({name: Values.of(known.arrays[name]) for name in some}))

    chosen = set(names)
    others = needed(chosen) if chosen else set()
    if not all(map(known.has, others)):
        chosen = {name for name in chosen if all(map(known.has, needed([name])))}
        others = needed(chosen) if chosen else set()
    return chosen | others


def _products(network: Path) -> Mapping[str, bool]:
    """The weights that go into products and nowhere else, and whether they are stored transposed: [in, out].

    In a Gemm or a convolution they are as PyTorch has them, in a MatMul the other way round.
    """
    import onnx

    graph = onnx.load(str(network), load_external_data=False).graph
    stored = {tensor.name for tensor in graph.initializer}
    found: dict[str, set[bool | None]] = {}
    for node in graph.node:
        for index, name in enumerate(node.input):
            if name in stored:
                found.setdefault(name, set()).add(_transposed(node) if index == 1 else None)
    return {name: bool(ways.pop()) for name, ways in found.items() if len(ways) == 1 and None not in ways}


def _transposed(node: Any) -> bool | None:
    """Of the second input of a node; None where that is no weight of a product."""
    attributes = {item.name: item for item in node.attribute}
    if node.op_type == "Conv":
        return False
    if node.op_type == "MatMul":
        return True
    if node.op_type == "Gemm" and ("alpha" not in attributes or attributes["alpha"].f == 1):
        return not ("transB" in attributes and attributes["transB"].i)
    return None
