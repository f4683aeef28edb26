"""What every pass needs to change a captured graph: a working copy, new nodes with shapes, a sound result."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, fx
from torch._dispatch.python import enable_python_dispatcher
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.export import ExportedProgram
from torch.export.graph_signature import ExportGraphSignature, InputKind, InputSpec, TensorArgument
from torch.fx.experimental.symbolic_shapes import statically_known_true

from fastdiff.errors import CaptureError

__all__ = ["Part", "Rewrite", "calls", "parameters_of", "same_size"]

Part = tuple[str, int]
"""Name of a parameter of the captured module, and how many rows of a weight are its own."""

_PARTS = "parameter_parts"
_STORED = (InputKind.PARAMETER, InputKind.BUFFER, InputKind.CONSTANT_TENSOR)


class Rewrite:
    """A copy of ``program``'s graph to edit, and the program that comes of it; weights are shared.

    ``graph`` may be edited freely between the constructor and :meth:`finish`; the methods here keep what
    belongs to it (signature, weights, the shapes in ``node.meta["val"]``) in step.
    """

    def __init__(self, program: ExportedProgram) -> None:
        self._program = program
        self._module = copy.deepcopy(program.graph_module)
        self.graph: fx.Graph = self._module.graph
        self.signature: ExportGraphSignature = copy.deepcopy(program.graph_signature)
        self._state: dict[str, Any] = dict(program.state_dict)
        self._constants: dict[str, Any] = dict(program.constants)
        self._shapes = _input_shapes(self.graph)

    def find(self, target: Any) -> list[fx.Node]:
        """The nodes that call ``target``, in the graph's order."""
        return [node for node in self.graph.nodes if node.op == "call_function" and node.target is target]

    def call(self, before: fx.Node, target: Any, *args: Any, **kwargs: Any) -> fx.Node:
        """A new node in front of ``before`` that calls ``target``, with the module path of ``before``."""
        with self.graph.inserting_before(before):
            node = self.graph.call_function(target, args, kwargs)
        values, named = fx.map_arg((node.args, node.kwargs), lambda source: source.meta["val"])
        node.meta = {k: v for k, v in before.meta.items() if k in ("nn_module_stack", "stack_trace")}
        try:
            with _fake_mode(values), enable_python_dispatcher(), torch.no_grad():
                node.meta["val"] = target(*values, **named)
        except Exception:
            self.graph.erase_node(node)
            raise
        return node

    def size(self, before: fx.Node, node: fx.Node, axis: int) -> int | fx.Node:
        """The length of ``node`` along ``axis``, as a view takes it: a number or a node."""
        length = node.meta["val"].shape[axis]
        if isinstance(length, int):
            return length
        return self.call(before, torch.ops.aten.sym_size.int, node, axis)

    def view(self, before: fx.Node, x: fx.Node, sizes: list[Any]) -> fx.Node:
        """A new node in front of ``before``: ``x`` with other sizes, by a copy where memory demands one."""
        try:
            return self.call(before, torch.ops.aten.view.default, x, sizes)
        except (RuntimeError, ValueError):  # strides do not allow it; symbolic shapes raise the latter
            return self.call(before, torch.ops.aten.reshape.default, x, sizes)

    def replace(self, node: fx.Node, source: fx.Node) -> None:
        """Let ``source`` take the place of ``node``, also among the outputs that the signature names."""
        node.replace_all_uses_with(source)
        for spec in self.signature.output_specs:
            if getattr(spec.arg, "name", None) == node.name:
                spec.arg = TensorArgument(source.name)

    def value(self, node: fx.Node) -> Tensor | None:
        """The weight, buffer or constant that a placeholder stands for; None for any other node."""
        for spec in self.signature.input_specs:
            if spec.kind in _STORED and spec.arg.name == node.name and spec.target is not None:
                stored = self._state.get(spec.target, self._constants.get(spec.target))
                return stored if isinstance(stored, Tensor) else None
        return None

    def parts(self, node: fx.Node) -> tuple[Part, ...]:
        """The parameters that a weight's rows are, in their order; none for a node that is no weight."""
        return parameters_of(node, self.signature)

    def add_constant(self, name: str, value: Tensor, like: fx.Node, parts: tuple[Part, ...] = ()) -> fx.Node:
        """A new input of the graph that carries ``value``; ``like`` is any node whose value is a tensor.

        ``parts`` says which parameters its rows are, where they are that with other axes at most.
        """
        while name in self._constants or name in self._state:
            name += "_"
        kinds = [spec.kind for spec in self.signature.input_specs]
        position = kinds.index(InputKind.USER_INPUT)
        with self.graph.inserting_before(self._placeholders()[position]):
            node = self.graph.placeholder(f"c_{name}")
        mode = like.meta["val"].fake_mode
        node.meta["val"] = mode.from_tensor(value, static_shapes=True)
        node.meta[_PARTS] = parts
        self._constants[name] = value
        spec = InputSpec(InputKind.CONSTANT_TENSOR, TensorArgument(node.name), name, None)
        self.signature.input_specs.insert(position, spec)
        return node

    def finish(self) -> ExportedProgram:
        """The program with the edited graph, without nodes and weights that nothing uses any more.

        Raises CaptureError where working out the shape of a new node has fixed a symbolic size of an input.
        """
        self.graph.eliminate_dead_code()
        self._drop_unused_weights()
        for name, shape in _input_shapes(self.graph).items():
            if shape != self._shapes.get(name, shape):
                found = f"found shape {shape} of input {name} after a pass, wanted {self._shapes[name]}"
                raise CaptureError(f"{found}; this is an error in fastdiff: please report it")
        self.graph.lint()
        self._module.recompile()
        return ExportedProgram(
            root=self._module,
            graph=self.graph,
            graph_signature=self.signature,
            state_dict=self._state,
            range_constraints=self._program.range_constraints,
            module_call_graph=self._program.module_call_graph,
            example_inputs=self._program.example_inputs,
            constants=self._constants,
            verifiers=self._program.verifiers,
        )

    def _placeholders(self) -> list[fx.Node]:
        return [node for node in self.graph.nodes if node.op == "placeholder"]

    def _drop_unused_weights(self) -> None:
        kept = []
        for spec, node in zip(self.signature.input_specs, self._placeholders(), strict=True):
            if spec.kind in _STORED and not node.users:
                self.graph.erase_node(node)
            else:
                kept.append(spec)
        self.signature.input_specs[:] = kept
        used = {spec.target for spec in kept}
        self._state = {name: value for name, value in self._state.items() if name in used}
        self._constants = {name: value for name, value in self._constants.items() if name in used}


def parameters_of(node: fx.Node, signature: ExportGraphSignature) -> tuple[Part, ...]:
    """The parameters of the captured module that the rows of a weight are, in their order.

    None for a node that is no weight, and for one whose rows are not those of parameters.
    """
    if _PARTS in node.meta:
        return tuple(node.meta[_PARTS])
    name = signature.inputs_to_parameters.get(node.name)
    value = node.meta.get("val")
    return ((name, int(value.shape[0])),) if name and isinstance(value, Tensor) and value.dim() else ()


def _input_shapes(graph: fx.Graph) -> dict[str, str]:
    """The shapes of the inputs and weights of ``graph``, by name."""
    inputs = [node for node in graph.nodes if node.op == "placeholder"]
    return {x.name: str(tuple(x.meta["val"].shape)) for x in inputs if isinstance(x.meta.get("val"), Tensor)}


def _fake_mode(values: Any) -> FakeTensorMode:
    found = [v for v in torch.utils._pytree.tree_leaves(values) if isinstance(v, FakeTensor)]
    return found[0].fake_mode


def calls(node: Any, *targets: Any) -> bool:
    """Whether ``node`` is a node that calls one of ``targets``."""
    return isinstance(node, fx.Node) and node.op == "call_function" and node.target in targets


def same_size(a: Any, b: Any) -> bool:
    """Whether two sizes, numbers or symbolic, are provably equal."""
    return statically_known_true(a == b)
