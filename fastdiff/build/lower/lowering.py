"""Lowering: a fused graph becomes a graph of nodes, with its conv2d and linear weights still to pack.

ops.py has one function per op. What they share is here: values with symbolic shapes, constants that are
computed when they are written and not before, and errors that name node, module and op.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, fx
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind

from fastdiff.build.lower.selection import find_selections
from fastdiff.build.lower.symbols import Symbols
from fastdiff.build.passes.rewrite import Part, parameters_of
from fastdiff.errors import CaptureError
from fastdiff.targets.graph import Dim, Graph, Node, Value, Weight

if TYPE_CHECKING:
    from fastdiff.build.modules import ModuleSpec

__all__ = ["LOWERINGS", "Layer", "Lowered", "Lowering", "lower", "lowers"]

_DTYPES = {torch.float32: "float32", torch.int64: "int64"}
Attribute = int | float | str | tuple[int, ...]


@dataclass(frozen=True)
class Layer:
    """A conv2d or linear whose weight is still to be packed.

    node    index of its node in the graph
    weight  returns the float32 weight, (out, in, kernel_h, kernel_w) or (out, in), when it is wanted
    shape   of the weight
    key     the same for layers that share a weight
    parts   parameters of the captured module that the weight's rows are, in their order; empty where they are
            none, or changed by more than their axes
    """

    node: int
    weight: Callable[[], NDArray[np.float32]]
    shape: tuple[int, ...]
    key: str
    parts: tuple[Part, ...] = ()


@dataclass(frozen=True)
class Lowered:
    """A graph without packed weights, and the layers that they belong to."""

    graph: Graph
    layers: tuple[Layer, ...]


Function = Callable[["Lowering", fx.Node], None]
LOWERINGS: dict[Any, Function] = {}
"""The function that lowers each op, by the target of its nodes; ops.py fills it when the package opens."""


def lowers(*targets: Any) -> Callable[[Function], Function]:
    """Register a function as the lowering of ``targets``."""

    def register(function: Function) -> Function:
        LOWERINGS.update(dict.fromkeys(targets, function))
        return function

    return register


def lower(program: ExportedProgram, spec: ModuleSpec, stages: Mapping[fx.Node, str] | None = None) -> Lowered:
    """The graph of a fused program.

    ``spec`` names the inputs, outputs and symbolic sizes; ``stages`` gives the stage of each node, "step"
    where it gives none. Raises CaptureError for a node that has no lowering, and for a dtype, an argument or
    a size that no kernel takes; the message names the node, its module and its op.
    """
    lowering = Lowering(program, spec, stages or {})
    for node in program.graph.nodes:
        if node.op == "call_function":
            lowering.visit(node)
        elif node.op not in ("placeholder", "output"):
            raise lowering.error(node, f"a graph holds no {node.op} nodes")
    return lowering.finish()


class Lowering:
    """The graph while it grows. Lowerings of single ops call its methods."""

    def __init__(self, program: ExportedProgram, spec: ModuleSpec, stages: Mapping[fx.Node, str]) -> None:
        self.spec = spec
        self._program = program
        self._stages = stages
        self._values: list[Value] = []
        self._nodes: list[Node] = []
        self._weights: list[Weight] = []
        self._layers: list[Layer] = []
        self._ids: dict[fx.Node, int] = {}
        self._constants: dict[fx.Node, Callable[[], Tensor]] = {}
        self._constant_ids: dict[tuple[fx.Node, str], int] = {}
        self._weight_ids: dict[fx.Node, int] = {}
        self._parameters: dict[fx.Node, str] = {}
        self.selections = find_selections(program.graph)
        self._parts = {part for selection in self.selections.values() for part in selection.parts}
        placeholders = [node for node in program.graph.nodes if node.op == "placeholder"]
        inputs = self._bind_weights(placeholders)
        shapes = [(tensor, node.meta["val"].shape) for tensor, node in zip(spec.inputs, inputs, strict=True)]
        try:
            self._symbols = Symbols(shapes)
        except ValueError as error:
            raise CaptureError(f"{spec.name} has sizes that cannot be stored: {error}") from error
        for tensor, node in zip(spec.inputs, inputs, strict=True):
            self._ids[node] = self._value(node, tensor.name)
        self._inputs = tuple(self._ids[node] for node in inputs)

    def _bind_weights(self, placeholders: list[fx.Node]) -> list[fx.Node]:
        """Make constants of the weights; the placeholders that are left are the module's inputs."""
        program, inputs = self._program, []
        for node, spec in zip(placeholders, program.graph_signature.input_specs, strict=True):
            if spec.kind is InputKind.USER_INPUT:
                inputs.append(node)
                continue
            stored = program.state_dict.get(spec.target, program.constants.get(spec.target))
            if not isinstance(stored, Tensor):
                raise self.error(node, f"its value {spec.target} is no tensor")
            self._constants[node] = stored.detach
            if spec.kind is InputKind.PARAMETER:
                self._parameters[node] = str(spec.target)
        return inputs

    def visit(self, node: fx.Node) -> None:
        """Lower one node, unless it is a size, part of a tuple that is yet to be taken apart, or constant.

        Nodes that serve a selection alone are lowered with it.
        """
        result = node.meta.get("val")
        if not isinstance(result, Tensor) or node in self._parts:
            return
        static = all(isinstance(size, int) for size in result.shape)
        if static and all(source in self._constants for source in node.all_input_nodes):
            self._constants[node] = lambda: self._evaluate(node)
            return
        function = LOWERINGS.get(node.target)
        if function is None:
            raise self.error(node, "there is no kernel for it")
        function(self, node)
        if node not in self._ids:
            raise self.error(node, "its lowering gave no value")

    def _evaluate(self, node: fx.Node) -> Tensor:
        """The value of a node that depends on constants alone."""
        args, kwargs = fx.map_arg((node.args, node.kwargs), lambda source: self._constants[source]())
        with torch.no_grad():
            result: Tensor = node.target(*args, **kwargs)  # type: ignore[operator]
        return result

    def error(self, node: fx.Node, reason: str) -> CaptureError:
        """The error that says why ``node`` cannot be lowered, and where it comes from."""
        path = module_path(node)
        return CaptureError(
            f"{self.spec.name}: {node.target} (node {node.name}{f' in {path}' if path else ''}) cannot be"
            f" lowered: {reason}; report this model, and build with --target onnxruntime meanwhile"
        )

    def value(self, argument: Any, user: fx.Node) -> int:
        """The id of the value that ``argument`` stands for, an input of ``user``."""
        if argument in self._ids:
            return self._ids[argument]
        if argument not in self._constants:
            raise self.error(user, f"its argument {argument} is no tensor of the graph")
        stage = self._stage(user)
        if (argument, stage) not in self._constant_ids:
            self._constant_ids[argument, stage] = output = self._value(argument, argument.name)
            weight = self.array(argument, user)
            self._nodes.append(Node("constant", (), output, weights={"value": weight}, stage=stage))
        return self._constant_ids[argument, stage]

    def optional(self, argument: Any, user: fx.Node) -> int | None:
        """As ``value``; None for an argument that is not given."""
        return None if argument is None else self.value(argument, user)

    def emit(
        self,
        node: fx.Node,
        op: str,
        inputs: tuple[int | None, ...],
        attributes: Mapping[str, Attribute] | None = None,
        weights: Mapping[str, int] | None = None,
        path: str = "",
    ) -> int:
        """Append a node that computes the value of ``node``; the id of that value.

        ``path`` stands for that of the module that the node was captured in.
        """
        output = self._value(node, node.name)
        lowered = Node(
            op,
            inputs,
            output,
            attributes or {},
            weights or {},
            stage=self._stage(node),
            path=path or module_path(node),
        )
        self._nodes.append(lowered)
        self._ids[node] = output
        return output

    def emit_layer(
        self,
        node: fx.Node,
        op: str,
        inputs: tuple[int | None, ...],
        attributes: Mapping[str, Attribute],
        weight: Any,
        bias: Any,
    ) -> None:
        """Append a conv2d or linear, and keep its weight to be packed.

        Its path is that of the weight, since the node may stand where something was fused into it.
        """
        load = self._constant(weight, node)
        weights = {} if bias is None else {"bias": self.array(bias, node)}
        path = self._parameters.get(weight, "").rpartition(".")[0]
        self.emit(node, op, inputs, attributes, weights, path)
        shape = tuple(weight.meta["val"].shape)
        parts = parameters_of(weight, self._program.graph_signature)
        if sum(rows for _, rows in parts) != shape[0]:
            parts = ()
        self._layers.append(Layer(len(self._nodes) - 1, lambda: _float32(load()), shape, weight.name, parts))

    def same(self, node: fx.Node, value: int) -> None:
        """Let ``node`` stand for a value that is there already."""
        self._ids[node] = value

    def array(self, argument: Any, user: fx.Node) -> int:
        """The id of a constant as a weight in plain layout."""
        load = self._constant(argument, user)
        if argument not in self._weight_ids:
            value = argument.meta["val"]
            kind = self._dtype(argument, value)
            convert = _float32 if kind == "float32" else _int64
            weight = Weight(argument.name, kind, tuple(value.shape), lambda: convert(load()))
            self._weight_ids[argument] = len(self._weights)
            self._weights.append(weight)
        return self._weight_ids[argument]

    def optional_array(self, argument: Any, user: fx.Node) -> int | None:
        """As ``array``; None for an argument that is not given."""
        return None if argument is None else self.array(argument, user)

    def scalar(self, argument: Any) -> float | None:
        """The number that an operand is, if it is one: a Python number or a constant without axes."""
        if isinstance(argument, (int, float)):
            return float(argument)
        if argument in self._constants and argument.meta["val"].dim() == 0:
            return float(self._constants[argument]())
        return None

    def integer(self, argument: Any, user: fx.Node) -> int:
        """An argument that must be a whole number, the same for all sizes."""
        if isinstance(argument, fx.Node):
            argument = argument.meta["val"]
            if hasattr(argument, "node"):
                argument = argument.node.expr
        if not isinstance(argument, int) and not getattr(argument, "is_Integer", False):
            raise self.error(user, f"an argument is {argument}, wanted a number that depends on no size")
        return int(argument)

    def finish(self) -> Lowered:
        """The graph, with its inputs and outputs under the names that the spec gives them."""
        output = next(iter(reversed(self._program.graph.nodes)))
        results = [self.value(result, output) for result in output.args[0]]
        taken: set[int] = set(self._inputs)
        for position, (result, tensor) in enumerate(zip(results, self.spec.outputs, strict=True)):
            if result in taken:  # the runtime writes each output once, and no input
                copied = dataclasses.replace(self._values[result], name=tensor.name)
                self._nodes.append(Node("copy", (result,), len(self._values)))
                results[position] = len(self._values)
                self._values.append(copied)
            taken.add(results[position])
            self._values[results[position]] = dataclasses.replace(
                self._values[results[position]], name=tensor.name
            )
        graph = Graph(
            self.spec.shapes,
            tuple(self._values),
            tuple(self._nodes),
            tuple(self._weights),
            self._inputs,
            tuple(results),
        )
        return Lowered(graph, tuple(self._layers))

    def _constant(self, argument: Any, user: fx.Node) -> Callable[[], Tensor]:
        if argument not in self._constants:
            raise self.error(user, f"its argument {argument} is computed, wanted a constant")
        return self._constants[argument]

    def _value(self, node: fx.Node, name: str) -> int:
        value = node.meta["val"]
        try:
            shape: tuple[Dim, ...] = tuple(self._symbols.dim(size) for size in value.shape)
        except ValueError as error:
            raise self.error(node, str(error)) from error
        self._values.append(Value(name, self._dtype(node, value), shape))
        return len(self._values) - 1

    def _dtype(self, node: fx.Node, value: Tensor) -> str:
        if value.dtype not in _DTYPES:
            raise self.error(node, f"it has dtype {value.dtype}, wanted float32 or int64")
        return _DTYPES[value.dtype]

    def _stage(self, node: fx.Node) -> str:
        return str(self._stages.get(node, "step"))


def module_path(node: fx.Node) -> str:
    """The path of the module that a node was captured in: ``model.down_blocks.0.resnets.0.conv1``."""
    stack = node.meta.get("nn_module_stack") or {}
    paths = [str(path) for path, _ in stack.values()]
    return paths[-1].removeprefix("L['self'].").removeprefix("L['self']") if paths else ""


def _float32(tensor: Tensor) -> NDArray[np.float32]:
    return np.ascontiguousarray(tensor.to(torch.float32).numpy())


def _int64(tensor: Tensor) -> NDArray[np.int64]:
    return np.ascontiguousarray(tensor.to(torch.int64).numpy())
