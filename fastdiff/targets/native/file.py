"""The file of a native module, ``<module>.fdn``: its layout and its writer.

``csrc/runtime/engine_file.cpp`` reads it, and checks everything it reads. All numbers are little-endian::

    header   64 bytes: magic, u32 version, u32 zero, u64 file size, u64 graph size, u64 data offset,
             zeros, u32 CRC-32 of the header before it followed by the graph section
    graph    at 64: symbols, values, weights, nodes, inputs, outputs, as ``_graph_section`` writes them
    data     page-aligned; each weight aligned to 64 bytes, so that kernels use them where they are mapped

A count is u32, an integer i64, a float f64, a string a count and UTF-8 bytes. docs/native.md lists the ops
with their inputs, attributes and weights.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import BinaryIO

import numpy as np

from fastdiff.errors import OutputError
from fastdiff.targets.graph import Dim, Graph, Node, Weight

__all__ = ["FORMAT_VERSION", "write"]

FORMAT_VERSION = 1
MAGIC = b"\x89FDN\r\n\x1a\n"
"""As in PNG: a transfer that changes line ends or clears the eighth bit shows at once."""

HEADER_SIZE = 64
PAGE = 4096
ALIGNMENT = 64

_OPERATORS = {"+": 2, "-": 3, "*": 4, "//": 5}
_DTYPES = {"float32": 0, "int64": 1, "float16": 2, "packed": 3}
_STAGES = {"prompt": 0, "schedule": 1, "step": 2}
_ALGORITHMS = {"direct": 0, "winograd2": 1, "winograd4": 2, "winograd2_plain": 3}
_TYPES = {"fp32": 0, "fp16": 1}


def write(path: Path, graph: Graph) -> None:
    """Write ``graph`` to ``path``, one weight in memory at a time.

    Raises OutputError when the file cannot be written, and ValueError for what the format cannot hold: an
    unknown dtype, stage or algorithm, a dim with an unknown symbol, a weight that differs from its shape.
    """
    offsets, data_size = _offsets(graph.weights)
    section = _graph_section(graph, offsets)
    data = _align(HEADER_SIZE + len(section), PAGE)
    header = struct.pack("<8sIIQQQ", MAGIC, FORMAT_VERSION, 0, data + data_size, len(section), data)
    header = header.ljust(HEADER_SIZE - 4, b"\0")
    header += struct.pack("<I", zlib.crc32(section, zlib.crc32(header)))
    try:
        with path.open("wb") as file:
            file.write(header + section)
            for weight, offset in zip(graph.weights, offsets, strict=True):
                _pad(file, data + offset)
                file.write(_bytes(weight))
            _pad(file, data + data_size)
    except OSError as error:
        raise OutputError(f"{path} cannot be written: {error.strerror}") from error


def _align(offset: int, to: int) -> int:
    return -(-offset // to) * to


def _offsets(weights: Iterable[Weight]) -> tuple[list[int], int]:
    """Where each weight begins in the data section, and the section's size."""
    offsets, end = [], 0
    for weight in weights:
        offsets.append(_align(end, ALIGNMENT))
        end = offsets[-1] + weight.nbytes
    # Kernels may read packed weights by whole vectors; the end stays aligned for them.
    return offsets, _align(end, ALIGNMENT)


def _pad(file: BinaryIO, offset: int) -> None:
    file.write(b"\0" * (offset - file.tell()))


def _bytes(weight: Weight) -> bytes | memoryview:
    loaded = weight.load()
    if isinstance(loaded, bytes):
        loaded = np.frombuffer(loaded, np.uint8)
    wanted = np.dtype(np.uint8 if weight.kind == "packed" else weight.kind)
    if loaded.dtype != wanted or loaded.shape != weight.shape:
        raise ValueError(
            f"weight {weight.name}: found {loaded.dtype} of shape {loaded.shape}, "
            f"wanted {wanted} of shape {weight.shape}"
        )
    array = np.ascontiguousarray(loaded, wanted.newbyteorder("<"))
    return array.reshape(-1).view(np.uint8).data


def _graph_section(graph: Graph, offsets: list[int]) -> bytes:
    out = _Encoder({name: index for index, name in enumerate(graph.symbols)})
    out.count(len(graph.symbols))
    for name, sizes in graph.symbols.items():
        out.string(name)
        out.integers(sizes.minimum, sizes.maximum or 0, sizes.multiple_of)  # 0: without limit
    out.count(len(graph.values))
    for value in graph.values:
        out.string(value.name)
        out.code(_DTYPES, value.dtype)
        out.count(len(value.shape))
        for dim in value.shape:
            out.dim(dim)
    out.count(len(graph.weights))
    for weight, offset in zip(graph.weights, offsets, strict=True):
        out.string(weight.name)
        out.code(_DTYPES, weight.kind)
        out.count(len(weight.shape))
        out.integers(*weight.shape, offset, weight.nbytes)
    out.count(len(graph.nodes))
    for node in graph.nodes:
        out.node(node)
    for ids in (graph.inputs, graph.outputs):
        out.count(len(ids))
        out.integers(*ids)
    return bytes(out.data)


class _Encoder:
    """Appends the parts of a graph section to ``data``."""

    def __init__(self, symbols: dict[str, int]) -> None:
        self.data = bytearray()
        self.symbols = symbols

    def count(self, value: int) -> None:
        self.data += struct.pack("<I", value)

    def integers(self, *values: int) -> None:
        self.data += struct.pack(f"<{len(values)}q", *values)

    def string(self, text: str) -> None:
        encoded = text.encode()
        self.count(len(encoded))
        self.data += encoded

    def code(self, table: Mapping[str, int], name: str) -> None:
        if name not in table:
            raise ValueError(f"found {name!r}, wanted one of {', '.join(table)}")
        self.data.append(table[name])

    def dim(self, dim: Dim) -> None:
        """A program of (u8 kind, i64 operand): 0 a number, 1 a symbol, 2 to 5 an operator."""
        program = dim if isinstance(dim, tuple) else (dim,)
        self.count(len(program))
        for token in program:
            if isinstance(token, int):
                kind, operand = 0, token
            elif token in _OPERATORS:
                kind, operand = _OPERATORS[token], 0
            elif token in self.symbols:
                kind, operand = 1, self.symbols[token]
            else:
                raise ValueError(
                    f"dim {dim!r}: found {token!r}, wanted a number, one of + - * // or a symbol"
                )
            self.data += struct.pack("<Bq", kind, operand)

    def node(self, node: Node) -> None:
        self.string(node.op)
        self.string(node.path)
        self.code(_STAGES, node.stage)
        self.count(len(node.inputs))
        self.integers(*(-1 if value is None else value for value in node.inputs), node.output)
        self.count(len(node.attributes))
        for name, attribute in node.attributes.items():
            self.string(name)
            self.attribute(attribute)
        self.count(len(node.weights))
        for role, weight in node.weights.items():
            self.string(role)
            self.integers(weight)
        self.count(len(node.packings))
        for packing in node.packings:
            self.code(_ALGORITHMS, packing.algorithm)
            self.code(_TYPES, packing.type)
            self.integers(packing.weight)
        self.count(len(node.tuned))
        for tuned in node.tuned:
            self.code(_ALGORITHMS, tuned.algorithm)
            self.count(len(tuned.sizes))
            for symbol, size in tuned.sizes.items():
                if symbol not in self.symbols:
                    raise ValueError(f"tuned sizes of {node.path or node.op}: unknown symbol {symbol!r}")
                self.integers(self.symbols[symbol], size)

    def attribute(self, value: int | float | str | tuple[int, ...]) -> None:
        """u8 kind and the value: 0 an integer, 1 a float, 2 a string, 3 a count of integers."""
        if isinstance(value, int):
            self.data.append(0)
            self.integers(int(value))
        elif isinstance(value, float):
            self.data += struct.pack("<Bd", 1, value)
        elif isinstance(value, str):
            self.data.append(2)
            self.string(value)
        else:
            self.data.append(3)
            self.count(len(value))
            self.integers(*value)
