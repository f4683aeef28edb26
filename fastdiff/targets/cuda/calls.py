"""A call: one node of a graph with the tensors that it works on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from fastdiff.targets.graph import Node

__all__ = ["Call"]


@dataclass(frozen=True)
class Call:
    """One node with its tensors.

    inputs   in the order of ``node.inputs``, None where one is not given
    weights  by role: "layer" for the weight of a conv2d or linear, "bias", "weight", "table" …
    shape    of the result
    """

    node: Node
    inputs: tuple[Tensor | None, ...]
    weights: Mapping[str, Tensor]
    shape: tuple[int, ...]

    @property
    def x(self) -> Tensor:
        """The first input, which every call but a constant's has."""
        (x, *_) = self.inputs
        assert x is not None
        return x

    def __getitem__(self, name: str) -> Any:
        """An attribute of the node."""
        return self.node.attributes[name]

    def weight(self, role: str) -> Tensor | None:
        """The weight of a role, None where the node has none."""
        return self.weights.get(role)

    @property
    def kind(self) -> str:
        """Op, attributes, dtype, weights and which inputs are given: what no size of a picture changes."""
        attributes = ",".join(f"{name}={self.node.attributes[name]}" for name in sorted(self.node.attributes))
        inputs = ",".join("-" if x is None else f"{x.shape[-1]}" for x in self.inputs)
        roles = ",".join(f"{role}{list(self.weights[role].shape)}" for role in sorted(self.weights))
        dtype = str(self.x.dtype).removeprefix("torch.") if self.inputs else ""
        return f"{self.node.op}({attributes}) {dtype} {inputs} {roles}".strip()

    @property
    def extent(self) -> tuple[int, ...]:
        """The sizes that pictures, batches and prompts do change: all but the last axis of every input."""
        return tuple(size for x in self.inputs if x is not None for size in x.shape[:-1])

    @property
    def key(self) -> str:
        """What decides the time of the call: kind, extent and strides. Values decide nothing."""
        strides = ",".join("" if x is None else _strides(x) for x in self.inputs)
        return f"{self.kind} {list(self.extent)} {strides}"


def _strides(x: Tensor) -> str:
    """``""`` for a contiguous tensor, else the strides of the axes that are longer than 1."""
    if x.is_contiguous():
        return ""
    return str([stride for stride, size in zip(x.stride(), x.shape, strict=True) if size > 1])
