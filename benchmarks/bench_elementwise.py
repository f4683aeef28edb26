"""elementwise beside PyTorch eager: activations, a residual's addition and the broadcasts of a U-Net.

``python benchmarks/bench_elementwise.py [--threads N] [--rounds N]``

Each row is verified in float64 first. GB/s counts every input read once, a broadcast one at its own size, and
the output written once; "of copy" is the share of a plain copy by one thread that moves as much, from the
same turns. With one thread, times are the thread's CPU time.
"""

from __future__ import annotations

import numpy as np
import torch
from memory_bound import compare

from fastdiff.kernels import elementwise

FUNCTIONS = {
    "silu": torch.nn.functional.silu,
    "gelu": torch.nn.functional.gelu,
    "sigmoid": torch.sigmoid,
    "add": torch.add,
    "multiply": torch.mul,
}
# function, a's shape, b's shape
CASES = [
    ("silu", (2, 1280), None),
    ("silu", (2, 4096, 320), None),
    ("gelu", (2, 4096, 1280), None),
    ("sigmoid", (2, 4096, 320), None),
    ("add", (2, 4096, 320), (2, 4096, 320)),
    ("add", (2, 4096, 320), (2, 1, 320)),
    ("multiply", (2, 4096, 320), (2, 4096, 1)),
    ("add", (2, 64, 1280), (2, 64, 1280)),
]
TOLERANCE = 5e-7


def prepare(rng, threads, function, *shapes):
    inputs = [rng.standard_normal(shape).astype(np.float32) for shape in shapes if shape is not None]
    tensors = [torch.from_numpy(x) for x in inputs]
    out = np.empty(shapes[0], np.float32)
    operation = FUNCTIONS[function]

    def ours(isa):
        return elementwise(function, *inputs, out=out, threads=threads, isa=isa)

    def eager():
        return operation(*tensors)

    wanted = operation(*(x.double() for x in tensors)).numpy()
    return ours, eager, wanted, out.nbytes + sum(x.nbytes for x in inputs)


if __name__ == "__main__":
    compare(__doc__, CASES, prepare, TOLERANCE)
