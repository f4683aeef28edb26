"""embedding beside PyTorch eager at the sizes of text encoders.

``python benchmarks/bench_embedding.py [--threads N] [--rounds N]``

Each row is verified first. GB/s counts the rows read once and y written once;
"of copy" is the share of a plain copy by one thread that moves as much, from the same turns. With one thread,
times are the thread's CPU time.
"""

from __future__ import annotations

import numpy as np
import torch
from memory_bound import compare

from fastdiff.kernels import embedding

# ids, rows of the table, channels, dtype of the table
CASES = [(154, 49408, 768, "float32"), (154, 49408, 768, "float16"), (154, 49408, 1280, "float32")]
TOLERANCE = 0.0


def prepare(rng, threads, count, rows, channels, dtype):
    table = rng.standard_normal((rows, channels), np.float32).astype(dtype)
    ids = rng.integers(0, rows, count)
    tensor, indices = torch.from_numpy(table), torch.from_numpy(ids)
    out = np.empty((count, channels), np.float32)

    def ours(isa):
        return embedding(ids, table, out=out, threads=threads, isa=isa)

    def eager():
        return torch.nn.functional.embedding(indices, tensor).float()

    return ours, eager, table[ids].astype(np.float64), count * channels * table.itemsize + out.nbytes


if __name__ == "__main__":
    compare(__doc__, CASES, prepare, TOLERANCE)
