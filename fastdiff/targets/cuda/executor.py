"""Runs the nodes of a graph on tensors, each by its chosen implementation.

Python decides nothing on values here, so that a run can be captured as a CUDA graph: what is launched depends
on sizes alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from fastdiff.errors import NumericError
from fastdiff.targets.cuda.calls import Call
from fastdiff.targets.cuda.implementations import Option, implementation
from fastdiff.targets.graph import Graph, Node, evaluate

__all__ = ["Choose", "Executor", "Watch", "results_of"]

Choose = Callable[[Call], Option]
"""Which implementation runs a call."""
Watch = Callable[[int, Call, Tensor], None]
"""Told the index of a node, its call and its result."""

_STAGES = ("prompt", "schedule", "step")
_VIEWS = ("constant", "expand", "permute", "reshape", "slice")


class Executor:
    """A graph with its weights on a device.

    ``weights`` are in the order of ``graph.weights``, ``dtypes`` in that of ``graph.values``: what each value
    is stored in. A node computes in the dtype of its result; inputs of another floating dtype are cast.
    """

    def __init__(
        self, graph: Graph, weights: Sequence[Tensor], dtypes: Sequence[torch.dtype], choose: Choose
    ) -> None:
        self.graph = graph
        self.weights = list(weights)
        self.dtypes = list(dtypes)
        self._choose = choose
        self._prepared: dict[tuple[int, str, torch.dtype], Tensor] = {}
        self._last_use = _last_uses(graph)
        self._watch: Watch | None = None

    @property
    def device(self) -> torch.device:
        """Where the weights are, and the results."""
        return self.weights[0].device

    def sizes_of(self, values: Mapping[int, Tensor]) -> dict[str, int]:
        """The symbolic sizes that the graph's inputs have, as far as they are given."""
        sizes: dict[str, int] = {}
        for value in self.graph.inputs:
            if value not in values:
                continue
            for dim, size in zip(self.graph.values[value].shape, values[value].shape, strict=True):
                if isinstance(dim, str):
                    sizes.setdefault(dim, size)
                elif isinstance(dim, tuple) and len(dim) == 3 and dim[2] == "*":
                    symbol, factor = sorted(dim[:2], key=lambda part: isinstance(part, int))
                    sizes.setdefault(str(symbol), size // int(factor))
        return sizes

    def watch(self, watch: Watch | None) -> None:
        """Let ``watch`` see every result from now on; None ends it."""
        self._watch = watch

    @contextmanager
    def watched(self, watch: Watch) -> Iterator[None]:
        """Within the block ``watch`` sees every result."""
        self.watch(watch)
        try:
            yield
        finally:
            self.watch(None)

    def run(
        self,
        values: dict[int, Tensor],
        sizes: Mapping[str, int],
        stages: Sequence[str] = _STAGES,
    ) -> None:
        """Run the nodes of some stages, in order.

        ``values`` holds tensors by value id: inputs and results of earlier stages before, and afterwards
        what the stages computed that another stage or the caller wants. What only they use themselves is
        dropped as soon as it has been used. cuDNN measures its algorithms when it first meets a convolution;
        TF32 is off.
        """
        with torch.backends.cudnn.flags(enabled=True, benchmark=True, allow_tf32=False):
            self._run_stages(values, sizes, stages)

    def _run_stages(self, values: dict[int, Tensor], sizes: Mapping[str, int], stages: Sequence[str]) -> None:
        kept = set(self.graph.outputs) | self.crossing(stages) | set(values)
        for index, node in enumerate(self.graph.nodes):
            if node.stage not in stages:
                continue
            self._run(index, node, values, sizes)
            for used in node.inputs:
                if used is not None and self._last_use[used] <= index and used not in kept:
                    del values[used]

    def crossing(self, stages: Sequence[str]) -> set[int]:
        """Values that nodes of these stages compute and nodes of others use."""
        made = {value for node in self.graph.nodes if node.stage in stages for value in results_of(node)}
        return {
            value
            for node in self.graph.nodes
            if node.stage not in stages
            for value in node.inputs
            if value in made
        }

    def call(self, node: Node, values: Mapping[int, Tensor], sizes: Mapping[str, int]) -> Call:
        """The call of a node, without the weights that implementations prepare for themselves."""
        dtype = self.dtypes[node.output]
        inputs = tuple(None if i is None else _cast(values[i], dtype) for i in node.inputs)
        weights = {role: self._weight(weight, dtype) for role, weight in node.weights.items()}
        shape = tuple(evaluate(dim, sizes) for dim in self.graph.values[node.output].shape)
        return Call(node, inputs, weights, shape)

    def perform(self, call: Call, option: Option) -> Any:
        """Run one call by an option; what Implementation.run says."""
        chosen = implementation(call.node.op, option.implementation)
        if chosen.prepare is not None:
            index = call.node.weights["layer"]
            layer = call.weights["layer"]
            key = (index, chosen.name, layer.dtype)
            if key not in self._prepared:
                self._prepared[key] = chosen.prepare(layer)
            call = Call(call.node, call.inputs, {**call.weights, "layer": self._prepared[key]}, call.shape)
        result = chosen.run(call, option.config)
        return result if call.node.op in _VIEWS else _dense(result)

    def replace_weight(self, index: int, value: Tensor) -> None:
        """Other values for a weight and for all that was made of it, where they are: captured graphs have
        their addresses.
        """
        stored = self.weights[index]
        with torch.inference_mode():  # what was prepared in that mode cannot change outside of it
            stored.copy_(value)
            kept = [(key, made) for key, made in self._prepared.items() if key[0] == index]
            for (_, name, dtype), made in sorted(kept, key=lambda item: bool(item[0][1])):  # casts first
                made.copy_(self._prepare(index, name)(self._weight(index, dtype)) if name else stored)

    def _prepare(self, index: int, name: str) -> Callable[[Tensor], Tensor]:
        """What an implementation that was chosen for a layer makes of its weight."""
        op = next(node.op for node in self.graph.nodes if node.weights.get("layer") == index)
        prepare = implementation(op, name).prepare
        assert prepare is not None
        return prepare

    def _run(self, index: int, node: Node, values: dict[int, Tensor], sizes: Mapping[str, int]) -> None:
        call = self.call(node, values, sizes)
        result = self.perform(call, self._choose(call))
        if isinstance(result, tuple):
            values[int(node.attributes["sum"])], result = result  # type: ignore[arg-type]
        result = _cast(result, self.dtypes[node.output])
        if tuple(result.shape) != call.shape:
            raise NumericError(
                f"{node.op} in {node.path} gave shape {tuple(result.shape)}, wanted {call.shape}: report this"
            )
        if self._watch is not None:
            self._watch(index, call, result)
        values[node.output] = result

    def _weight(self, index: int, dtype: torch.dtype) -> Tensor:
        """A weight in the dtype that a node computes in; another than the stored one is made once."""
        stored = self.weights[index]
        if not stored.is_floating_point() or stored.dtype == dtype or not dtype.is_floating_point:
            return stored
        key = (index, "", dtype)
        if key not in self._prepared:
            self._prepared[key] = stored.to(dtype)
        return self._prepared[key]


def _dense(result: Any) -> Any:
    """With contiguous memory: what a library may leave in an order of its own, kernels want as it is."""
    return tuple(map(_dense, result)) if isinstance(result, tuple) else result.contiguous()


def _cast(x: Tensor, dtype: torch.dtype) -> Tensor:
    """``x`` in ``dtype`` where both are floating."""
    return x.to(dtype) if x.is_floating_point() and dtype.is_floating_point and x.dtype != dtype else x


def results_of(node: Node) -> tuple[int, ...]:
    """The values that a node computes: its output, and the sum of a norm that forms one."""
    total = node.attributes.get("sum")
    return (node.output,) if total is None else (node.output, int(total))  # type: ignore[arg-type]


def _last_uses(graph: Graph) -> dict[int, int]:
    """The last node that uses each value."""
    return {
        value: index for index, node in enumerate(graph.nodes) for value in node.inputs if value is not None
    }
