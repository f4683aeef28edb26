"""timestep_embedding beside PyTorch eager, for one step and for the whole schedule at once.

``python benchmarks/bench_timestep_embedding.py [--threads N] [--rounds N]``

Each row is verified first. GB/s counts y written once;
"of copy" is the share of a plain copy by one thread that moves as much, from the same turns. With one thread,
times are the thread's CPU time.
"""

from __future__ import annotations

import numpy as np
import torch
from memory_bound import compare

from fastdiff.kernels import timestep_embedding

# timesteps, frequencies
CASES = [(2, 160), (50, 160), (1000, 160)]
# PyTorch's sine and cosine of an angle of hundreds; the kernel's are within 6e-8.
TOLERANCE = 3e-7


def prepare(rng, threads, rows, half):
    timesteps = rng.uniform(0, 1000, rows).astype(np.float32)
    frequencies = np.exp(-np.log(1e4) * np.arange(half) / half).astype(np.float32)
    angles = (timesteps[:, None] * frequencies).astype(np.float64)
    out = np.empty((rows, 2 * half), np.float32)
    t, f = torch.from_numpy(timesteps), torch.from_numpy(frequencies)

    def ours(isa):
        return timestep_embedding(timesteps, frequencies, out=out, threads=threads, isa=isa)

    def eager():
        product = t[:, None] * f
        return torch.cat([torch.cos(product), torch.sin(product)], 1)

    return ours, eager, np.concatenate([np.cos(angles), np.sin(angles)], 1), out.nbytes


if __name__ == "__main__":
    compare(__doc__, CASES, prepare, TOLERANCE)
