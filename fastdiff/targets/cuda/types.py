"""The dtype of every value of a graph: the engine's precision, but for what needs more digits or is no
number.
"""

from __future__ import annotations

import torch

from fastdiff.config import Precision
from fastdiff.targets.graph import Graph

__all__ = ["DTYPES", "value_dtypes"]

DTYPES = {Precision.FP32: torch.float32, Precision.FP16: torch.float16, Precision.BF16: torch.bfloat16}
_VIEWS = ("reshape", "expand", "slice", "permute", "copy")


def value_dtypes(graph: Graph, precision: Precision) -> list[torch.dtype]:
    """The dtype of each value, in the order of ``graph.values``.

    Token ids stay int64. Timesteps, and sizes of pictures, stay float32 until their embedding has been
    computed: a half knows whole numbers up to 2048 only, and the embedding takes sines of products with them.
    """
    dtype = DTYPES[precision]
    found = [torch.int64 if value.dtype == "int64" else dtype for value in graph.values]
    exact: set[int] = set()
    for node in reversed(graph.nodes):
        if node.op == "timestep_embedding" or (node.op in _VIEWS and node.output in exact):
            exact.update(value for value in node.inputs if value is not None)
    for node in graph.nodes:
        if node.op == "timestep_embedding":
            exact.add(node.output)
    for value in exact:
        if found[value].is_floating_point:
            found[value] = torch.float32
    return found
