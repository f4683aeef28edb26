"""Small native graphs, written by hand, and the same computation in PyTorch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastdiff import _C
from fastdiff.config import SizeRange
from fastdiff.targets.graph import Dim, Graph, Node, Packing, Tuned, Value, Weight
from fastdiff.targets.native.file import write


class GraphBuilder:
    """Collects values, weights and nodes by name."""

    def __init__(self, **symbols: SizeRange) -> None:
        self.symbols = symbols
        self.values: list[Value] = []
        self.weights: list[Weight] = []
        self.nodes: list[Node] = []
        self.inputs: list[int] = []

    def value(self, name: str, shape: Sequence[Dim], dtype: str = "float32") -> int:
        self.values.append(Value(name, dtype, tuple(shape)))
        return len(self.values) - 1

    def input(self, name: str, shape: Sequence[Dim], dtype: str = "float32") -> int:
        self.inputs.append(self.value(name, shape, dtype))
        return self.inputs[-1]

    def weight(self, array: NDArray[Any]) -> int:
        self.weights.append(Weight.of(f"w{len(self.weights)}", array))
        return len(self.weights) - 1

    def packed(self, blob: bytes) -> int:
        self.weights.append(Weight(f"w{len(self.weights)}", "packed", (len(blob),), lambda: blob))
        return len(self.weights) - 1

    def node(
        self,
        op: str,
        inputs: Sequence[int | None],
        shape: Sequence[Dim],
        attributes: Mapping[str, Any] | None = None,
        weights: Mapping[str, NDArray[Any]] | None = None,
        *,
        packings: Sequence[Packing] = (),
        tuned: Sequence[Tuned] = (),
        stage: str = "step",
        dtype: str = "float32",
    ) -> int:
        output = self.value(f"{op}_{len(self.nodes)}", shape, dtype)
        roles = {role: self.weight(array) for role, array in (weights or {}).items()}
        path = f"block.{len(self.nodes)}"
        self.nodes.append(
            Node(
                op,
                tuple(inputs),
                output,
                attributes or {},
                roles,
                tuple(packings),
                tuple(tuned),
                stage,
                path,
            )
        )
        return output

    def linear(
        self,
        x: int,
        weight: NDArray[np.float32],
        bias: NDArray[np.float32] | None = None,
        *,
        residual: int | None = None,
        activation: str = "none",
        scale: float = 1.0,
        stage: str = "step",
    ) -> int:
        """The shape of the result is that of x with another last axis."""
        outputs, width = weight.shape
        out = outputs // 2 if activation == "geglu" else outputs
        return self.node(
            "linear",
            (x, residual),
            (*self.values[x].shape[:-1], out),
            {"in": width, "out": out, "activation": activation, "scale": scale},
            {} if bias is None else {"bias": bias},
            packings=[Packing("direct", "fp32", self.packed(_C.linear_pack(weight).tobytes()))],
            stage=stage,
        )

    def conv2d(
        self,
        x: int,
        weight: NDArray[np.float32],
        bias: NDArray[np.float32] | None,
        shape: Sequence[Dim],
        *,
        vector: int | None = None,
        residual: int | None = None,
        stride: int = 1,
        padding: tuple[int, int, int, int] = (1, 1, 1, 1),
        upsample: int = 1,
        activation: str = "none",
        scale: float = 1.0,
        algorithms: Sequence[str] = ("direct",),
        tuned: Sequence[Tuned] = (),
    ) -> int:
        out, channels, height, width = weight.shape
        packings = [
            Packing(name, "fp32", self.packed(_C.conv2d_pack(weight, name).tobytes())) for name in algorithms
        ]
        sides = dict(zip(("pad_top", "pad_bottom", "pad_left", "pad_right"), padding, strict=True))
        attributes = {"in": channels, "out": out, "kernel_h": height, "kernel_w": width, "stride": stride}
        attributes |= sides | {"upsample": upsample, "activation": activation, "scale": scale}
        weights = {} if bias is None else {"bias": bias}
        inputs = (x, vector, residual)
        return self.node("conv2d", inputs, shape, attributes, weights, packings=packings, tuned=tuned)

    def graph(self, *outputs: int) -> Graph:
        return Graph(
            self.symbols,
            tuple(self.values),
            tuple(self.nodes),
            tuple(self.weights),
            tuple(self.inputs),
            outputs,
        )

    def session(self, folder: Path, *outputs: int, threads: int = 1) -> _C.NativeSession:
        write(folder / "m.fdn", self.graph(*outputs))
        return _C.NativeSession(_C.NativeModule(str(folder / "m.fdn")), threads)
