"""token_unmerge beside PyTorch eager at the sizes of SD 1.5.

``python benchmarks/bench_token_unmerge.py [--threads N] [--rounds N]``

Each row is verified first. GB/s counts x read once and the result written once; "of copy" is the share of a
plain copy by one thread that moves as much, from the same turns. With one thread, times are the thread's CPU
time.
"""

from __future__ import annotations

import numpy as np
import torch
from memory_bound import compare

from fastdiff.kernels import reference, token_unmerge

# pictures, tokens, channels; half of the tokens are merged
CASES = [(2, 1024, 320), (2, 4096, 320), (2, 4096, 640)]
TOLERANCE = 1e-5


def prepare(rng, threads, batch, tokens, channels):
    rows = tokens // 2
    plan = np.concatenate([np.arange(rows)[None], rng.integers(0, rows, (batch, rows))[:1]], 1)
    plan = np.ascontiguousarray(np.repeat(plan, batch, 0))
    x = rng.standard_normal((batch, rows, channels), np.float32)
    out = np.empty((batch, tokens, channels), np.float32)
    tensor, index = torch.from_numpy(x), torch.from_numpy(plan)

    def ours(isa):
        return token_unmerge(x, plan, out=out, threads=threads, isa=isa)

    def eager():
        return reference.token_unmerge(tensor, index)

    return ours, eager, np.asarray(eager(), np.float64), x.nbytes + out.nbytes


if __name__ == "__main__":
    compare(__doc__, CASES, prepare, TOLERANCE)
