"""``<module>.merge.plan``: adds low-rank updates to a weight on the GPU, as a small network for TensorRT.

::

    merged = round(weight + firstᵀ · second)
    peak, total = max |·|, sum |·| of it before it is rounded

    weight, merged   [rows, columns], in the module's precision
    first, second    [rank, rows] and [rank, columns], float32
    peak, total      [1, 1], float32

All is computed in float32. On the host it would take seconds for billions of weights, and move all of them
over the bus; on the GPU nothing but TensorRT is there for sure that can multiply. ``peak`` and ``total`` say
whether the result is in range: NaN shows in the second alone.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from fastdiff.targets.tensorrt.interface import Shape

__all__ = ["INPUTS", "OUTPUTS", "SUFFIX", "matrix_of", "merge_shapes", "write_merge"]

SUFFIX = ".merge.plan"
INPUTS = ("weight", "first", "second")
OUTPUTS = ("merged", "peak", "total")

_OPSET = 20
_RANK = 32
"""What kernels are chosen for."""


def matrix_of(shape: Shape) -> tuple[int, int]:
    """A weight's rows and columns as it is stored, a convolution's being all but its first axis."""
    return shape[0], math.prod(shape[1:])


def merge_shapes(matrices: Iterable[tuple[int, int]]) -> dict[str, tuple[Shape, Shape, Shape]]:
    """Least, usual and largest shape of each input, for weights of these rows and columns.

    The rank goes up to the full one of any of them: what has a higher one can be written with that.
    """
    counted = Counter(matrices)
    (usual, _), *_ = counted.most_common(1)
    most = max(rows for rows, _ in counted), max(columns for _, columns in counted)
    full = max(map(min, counted))
    low, middle, high = (1, 1, 1), (min(_RANK, full), *usual), (full, *most)

    def shapes(first: int, second: int) -> tuple[Shape, Shape, Shape]:
        return (low[first], low[second]), (middle[first], middle[second]), (high[first], high[second])

    return {"weight": shapes(1, 2), "first": shapes(0, 1), "second": shapes(0, 2)}


def write_merge(path: Path, halves: bool) -> None:
    """Write the network as ONNX, for weights in fp16 or fp32."""
    import onnx
    from onnx import TensorProto, helper

    stored = TensorProto.FLOAT16 if halves else TensorProto.FLOAT
    exact, rounded = ("exact", "sum") if halves else ("weight", "merged")
    nodes = [
        helper.make_node("Gemm", ["first", "second", exact], [rounded], transA=1),
        helper.make_node("Abs", [rounded], ["absolute"]),
        helper.make_node("ReduceMax", ["absolute"], ["peak"], keepdims=1),
        helper.make_node("ReduceSum", ["absolute"], ["total"], keepdims=1),
    ]
    if halves:
        nodes.insert(0, helper.make_node("Cast", ["weight"], [exact], to=TensorProto.FLOAT))
        nodes.append(helper.make_node("Cast", [rounded], ["merged"], to=stored))
    sizes = {
        "weight": ["rows", "columns"],
        "first": ["rank", "rows"],
        "second": ["rank", "columns"],
        "merged": ["rows", "columns"],
        "peak": [1, 1],
        "total": [1, 1],
    }
    values = {
        name: helper.make_tensor_value_info(
            name, stored if name in ("weight", "merged") else TensorProto.FLOAT, size
        )
        for name, size in sizes.items()
    }
    graph = helper.make_graph(
        nodes, "merge", [values[name] for name in INPUTS], [values[name] for name in OUTPUTS]
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", _OPSET)], ir_version=10)
    onnx.checker.check_model(model)
    onnx.save_model(model, str(path))
