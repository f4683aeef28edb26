"""The writer of native module files: layout, alignment, what it refuses."""

from __future__ import annotations

import struct
import weakref
import zlib
from pathlib import Path

import numpy as np
import pytest

from fastdiff.config import SizeRange
from fastdiff.errors import OutputError
from fastdiff.targets.graph import Graph, Node, Packing, Tuned, Value, Weight
from fastdiff.targets.native.file import write


def graph(weights: tuple[Weight, ...]) -> Graph:
    values = (Value("x", "float32", ("batch", 3)), Value("y", "float32", (("batch", 2, "*"), 3)))
    return Graph({"batch": SizeRange()}, values, (Node("silu", (0,), 1),), weights, (0,), (1,))


def test_weights_are_aligned_and_checksummed(tmp_path: Path) -> None:
    # 3 and 5 elements: neither fills a multiple of 64 bytes.
    arrays = [np.arange(3, dtype=np.float32), np.arange(5, dtype=np.int64), np.ones((2, 3), np.float16)]
    weights = [Weight.of(f"w{i}", array) for i, array in enumerate(arrays)]
    blob = bytes(range(70))
    write(tmp_path / "m.fdn", graph((*weights, Weight("p", "packed", (70,), lambda: blob))))
    data = (tmp_path / "m.fdn").read_bytes()
    magic, version, zero, size, graph_size, start = struct.unpack_from("<8sIIQQQ", data)
    assert (magic, version, zero, size) == (b"\x89FDN\r\n\x1a\n", 1, 0, len(data))
    assert start % 4096 == 0
    assert start >= 64 + graph_size
    assert struct.unpack_from("<I", data, 60)[0] == zlib.crc32(data[:60] + data[64 : 64 + graph_size])
    for i, expected in enumerate([*(array.tobytes() for array in arrays), blob]):
        at = start + 64 * i
        assert data[at : at + len(expected)] == expected
    assert len(data) == start + 64 * 3 + 128


def test_only_one_weight_is_in_memory_at_a_time(tmp_path: Path) -> None:
    loaded: list[weakref.ref[np.ndarray]] = []

    class Array(np.ndarray):  # a plain array takes no weak references
        pass

    def load() -> np.ndarray:
        assert all(array() is None for array in loaded)
        array = np.zeros(1 << 20, np.uint8).view(Array)
        loaded.append(weakref.ref(array))
        return array

    described = graph(tuple(Weight(f"w{i}", "packed", (1 << 20,), load) for i in range(3)))
    write(tmp_path / "m.fdn", described)
    assert (tmp_path / "m.fdn").stat().st_size > 3 << 20


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"values": (Value("x", "float64", ()), Value("y", "float32", ()))}, "float64"),
        ({"values": (Value("x", "float32", ("depth",)), Value("y", "float32", ()))}, "depth"),
        ({"nodes": (Node("silu", (0,), 1, stage="later"),)}, "later"),
        ({"nodes": (Node("conv2d", (0,), 1, packings=(Packing("fft", "fp32", 0),)),)}, "fft"),
        ({"nodes": (Node("conv2d", (0,), 1, tuned=(Tuned({"depth": 3}, "direct"),)),)}, "depth"),
        ({"weights": (Weight("w", "float32", (3,), lambda: np.zeros(4, np.float32)),)}, r"\(4,\)"),
        ({"weights": (Weight("w", "packed", (3,), lambda: b"12"),)}, r"\(2,\)"),
    ],
)
def test_what_the_format_cannot_hold_is_refused(change, message, tmp_path: Path) -> None:
    described = graph(())
    fields = {name: getattr(described, name) for name in described.__dataclass_fields__} | change
    with pytest.raises(ValueError, match=message):
        write(tmp_path / "m.fdn", Graph(**fields))


def test_a_folder_that_does_not_exist_is_an_output_error(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="cannot be written"):
        write(tmp_path / "none" / "m.fdn", graph(()))
