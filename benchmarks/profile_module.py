"""Where a native module's time goes: seconds by op and by layer, the medians of several runs.

``python benchmarks/profile_module.py ENGINE.fd/unet.fdn batch=2 height=64 width=64 tokens=77 [--threads N]``

Sizes are those of the module's symbols, height and width in latent pixels; inputs are random. Layers with the
same op, algorithm and shapes are added up.
"""

from __future__ import annotations

import argparse
import re
from collections import defaultdict

import numpy as np

from fastdiff import _C

ROUNDS = 9


def inputs_of(module: _C.NativeModule, sizes: dict[str, int]) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    arrays = {}
    for name, dtype, shape in module.inputs:
        lengths = []
        for size in shape:
            if isinstance(size, str):  # "batch", or "8*height"
                *factor, symbol = size.split("*")
                size = int(factor[0] if factor else 1) * sizes[symbol.strip()]
            lengths.append(size)
        numbers = rng.standard_normal(lengths).astype(np.float32)
        arrays[name] = numbers if dtype == "float32" else np.zeros(lengths, np.int64)
    return arrays


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("module")
    parser.add_argument("sizes", nargs="+", metavar="symbol=size")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--layers", type=int, default=25, help="rows of the second table")
    arguments = parser.parse_args()
    sizes = {name: int(size) for name, size in (text.split("=") for text in arguments.sizes)}
    module = _C.NativeModule(arguments.module)
    session = _C.NativeSession(module, arguments.threads)
    inputs = inputs_of(module, sizes)
    session.run(inputs)
    seconds = np.median([session.profile(inputs) for _ in range(ROUNDS)], axis=0)
    lines = session.plan(sizes).splitlines()[1:]
    ops: dict[str, list[float]] = defaultdict(list)
    layers: dict[str, list[float]] = defaultdict(list)
    for line, value in zip(lines, seconds, strict=True):
        stage, op = line.split()[:2]
        algorithm = re.search(r" by (\w+):", line)
        kind = f"{stage} {op.rstrip(':')}" + (f" {algorithm[1]}" if algorithm else "")
        shapes = re.findall(r"\[[\d, ]+\]", line)
        ops[kind].append(value)
        layers[f"{kind} {shapes[0]} -> {shapes[-1]}"].append(value)
    total = float(seconds.sum())
    print(f"{_C.isa()}, {arguments.threads} threads, {sizes}: {total * 1e3:.2f} ms in {len(lines)} steps")
    for title, rows, count in (("op", ops, len(ops)), ("layers", layers, arguments.layers)):
        print(f"\n{title:>70} {'number':>7} {'ms':>9} {'share':>6}")
        for name, values in sorted(rows.items(), key=lambda row: -sum(row[1]))[:count]:
            print(f"{name:>70} {len(values):7} {sum(values) * 1e3:9.3f} {sum(values) / total:6.1%}")


if __name__ == "__main__":
    main()
