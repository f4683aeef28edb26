"""Truncated and mutated module files are refused, or run; nothing crashes.

Each case goes the way of a user's file, through the file system and the binding; tests/cpp/test_session.cpp
does the same to 10,000 files in memory, under the sanitizers too. Longer runs: raise ``CASES``.
"""

from __future__ import annotations

import random
import struct
import zlib
from pathlib import Path

import numpy as np

from fastdiff import _C
from fastdiff.config import SizeRange
from fastdiff.errors import EngineError, InputError
from tests.targets.native.graphs import GraphBuilder

CASES = 10_000
LARGEST = 1 << 18
"""Bytes of arena with which a mutated file is still run: one that asks for more would take long."""


def module_file(folder: Path) -> bytes:
    """A graph with a view, a packed weight, a concatenation in place and one by copying."""
    g = GraphBuilder(batch=SizeRange(), tokens=SizeRange(1, 64))
    x = g.input("x", ("batch", "tokens", 4))
    ids = g.input("ids", ("batch", "tokens"), "int64")
    rng = np.random.default_rng(0)
    weight = rng.standard_normal((12, 4)).astype(np.float32)
    table = rng.standard_normal((9, 4)).astype(np.float32)
    shape = ("batch", "tokens", 4)
    merged = g.linear(x, weight)
    q, k, v = (g.node("slice", (merged,), shape, {"axis": 2, "start": start}) for start in (0, 4, 8))
    a = g.node("attention", (q, k, v), shape, {"heads": 2, "scale": 0.5, "causal": 0})
    e = g.node("embedding", (ids,), shape, weights={"table": table})
    both = g.node("concat", (a, e, x), ("batch", "tokens", 12), {"axis": 2})
    y = g.node("permute", (both,), ("batch", 12, "tokens"), {"axes": (0, 2, 1)})
    g.session(folder, y)
    return (folder / "m.fdn").read_bytes()


def repaired(data: bytearray) -> bytearray:
    """With the file's size and a checksum that fits."""
    struct.pack_into("<Q", data, 16, len(data))
    size = struct.unpack_from("<Q", data, 24)[0]
    struct.pack_into("<I", data, 60, zlib.crc32(data[64 : 64 + size], zlib.crc32(data[:60])))
    return data


def test_damaged_files_are_refused_or_run(tmp_path: Path) -> None:
    good = module_file(tmp_path)
    size = struct.unpack_from("<Q", good, 24)[0]
    dice = random.Random(1)
    path = tmp_path / "damaged.fdn"
    outcomes = {"refused": 0, "large": 0, "ran": 0}
    for case in range(CASES):
        data = bytearray(good[: dice.randrange(64, len(good))] if dice.random() < 0.1 else good)
        for _ in range(dice.randrange(1, 4)):
            end = len(data) if dice.random() < 0.1 else min(len(data), 64 + size)
            data[dice.randrange(end)] = dice.choice([dice.randrange(256), dice.randrange(9), 255])
        path.write_bytes(repaired(data) if dice.random() < 0.9 else data)
        try:
            module = _C.NativeModule(str(path))
            session = _C.NativeSession(module, 1 + case % 2)
            sizes = dict.fromkeys(module.symbols, 3)
            if session.planned_bytes(sizes) > LARGEST:
                outcomes["large"] += 1
                continue
            shapes = [
                [sizes.get(length, 3) if isinstance(length, str) else length for length in shape]
                for _, _, shape in module.inputs
            ]
            if any(np.prod(shape, dtype=float) > LARGEST for shape in shapes):
                outcomes["large"] += 1
                continue
            inputs = zip(module.inputs, shapes, strict=True)
            session.run({name: np.ones(shape, dtype) for (name, dtype, _), shape in inputs})
            outcomes["ran"] += 1
        except (EngineError, InputError):
            outcomes["refused"] += 1
        path.unlink()
    assert outcomes["refused"] > CASES // 2, outcomes
    assert outcomes["ran"] > CASES // 50, outcomes
