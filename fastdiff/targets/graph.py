"""The graph that targets with kernels of their own compile: nodes from a closed set of ops, symbolic sizes.

``fastdiff.build.lower`` makes it from the fused ``ExportedProgram``; docs/native.md lists the ops with their
inputs, attributes and weights. Importing this module imports NumPy alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastdiff.config import SizeRange

__all__ = ["Dim", "Graph", "Node", "Packing", "Tuned", "Value", "Weight", "evaluate"]

Dim = int | str | tuple[int | str, ...]
"""A size: a number, a symbol, or a postfix program over both and ``+ - * //``: ``("height", 4, "*")``."""


@dataclass(frozen=True)
class Value:
    """A tensor between nodes, an input or an output. ``dtype`` is "float32" or "int64"."""

    name: str
    dtype: str
    shape: tuple[Dim, ...]


@dataclass(frozen=True)
class Weight:
    """Bytes that come with the module.

    kind   "float32", "int64" or "float16" for an array, "packed" for a kernel's own layout
    shape  of the array; ``(bytes,)`` when packed
    load   returns the array, or the packed bytes as a uint8 array or bytes; called once, when its turn to be
           written has come, so that a large model never is in memory as a whole
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    load: Callable[[], NDArray[Any] | bytes]

    @staticmethod
    def of(name: str, array: NDArray[Any]) -> Weight:
        """An array that is at hand: float32, int64 or float16."""
        return Weight(name, array.dtype.name, array.shape, lambda: array)

    @property
    def nbytes(self) -> int:
        """Size in the file, without padding."""
        width = 1 if self.kind == "packed" else np.dtype(self.kind).itemsize
        return math.prod(self.shape) * width


@dataclass(frozen=True)
class Packing:
    """The weights of a conv2d or linear as one algorithm wants them.

    algorithm  "direct", "winograd2", "winograd4" or "winograd2_plain"; linear has "direct" alone
    type       "fp32" or "fp16"
    weight     id of the packed weight
    """

    algorithm: str
    type: str
    weight: int


@dataclass(frozen=True)
class Tuned:
    """The algorithm measured as fastest for these sizes. Symbols that are left out do not matter."""

    sizes: Mapping[str, int]
    algorithm: str


@dataclass(frozen=True)
class Node:
    """One call of an op.

    inputs      value ids; None for an optional input that is not there
    output      id of the value that it computes
    attributes  numbers, strings and tuples of integers; a bool is an integer
    weights     weight ids by role: "bias", "weight", "table", …
    stage       "prompt", "schedule" or "step"
    path        of the module it comes from, for messages
    """

    op: str
    inputs: tuple[int | None, ...]
    output: int
    attributes: Mapping[str, int | float | str | tuple[int, ...]] = field(default_factory=dict)
    weights: Mapping[str, int] = field(default_factory=dict)
    packings: tuple[Packing, ...] = ()
    tuned: tuple[Tuned, ...] = ()
    stage: str = "step"
    path: str = ""


@dataclass(frozen=True)
class Graph:
    """A module. Nodes are in an order in which they can run; ``inputs`` and ``outputs`` are value ids.

    ``symbols`` gives the sizes that may differ from call to call, and their ranges.
    """

    symbols: Mapping[str, SizeRange]
    values: tuple[Value, ...]
    nodes: tuple[Node, ...]
    weights: tuple[Weight, ...]
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]


def evaluate(dim: Dim, sizes: Mapping[str, int]) -> int:
    """The value of a size for given symbols. Raises KeyError for a symbol that ``sizes`` does not give."""
    stack: list[int] = []
    for token in dim if isinstance(dim, tuple) else (dim,):
        if isinstance(token, str) and token in ("+", "-", "*", "//"):
            right, left = stack.pop(), stack.pop()
            match token:
                case "+":
                    stack.append(left + right)
                case "-":
                    stack.append(left - right)
                case "*":
                    stack.append(left * right)
                case _:
                    stack.append(left // right)
        else:
            stack.append(sizes[token] if isinstance(token, str) else token)
    (result,) = stack
    return result
