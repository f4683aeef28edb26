"""upsample_nearest2d and avg_pool2d beside PyTorch eager on channels_last tensors.

``python benchmarks/bench_resample.py [--threads N] [--rounds N]``

Each row is verified first. GB/s counts x read once and y written once;
"of copy" is the share of a plain copy by one thread that moves as much, from the same turns. With one thread,
times are the thread's CPU time.
"""

from __future__ import annotations

import numpy as np
import torch
from memory_bound import compare

from fastdiff.kernels import avg_pool2d, upsample_nearest2d

# what, N, H, W, C
CASES = [
    ("upsample", 2, 32, 32, 640),
    ("upsample", 2, 8, 8, 1280),
    ("upsample", 1, 128, 128, 256),
    ("pool", 2, 64, 64, 320),
]
TOLERANCE = 1e-6


def prepare(rng, threads, what, *shape):
    x = rng.standard_normal(shape).astype(np.float32)
    tensor = torch.from_numpy(x).permute(0, 3, 1, 2)
    if what == "upsample":
        function, operation = upsample_nearest2d, torch.nn.functional.interpolate
        options = {"scale_factor": 2, "mode": "nearest"}
    else:
        function, operation, options = avg_pool2d, torch.nn.functional.avg_pool2d, {"kernel_size": 2}
    wanted = operation(tensor.double(), **options).permute(0, 2, 3, 1).numpy()
    out = np.empty(wanted.shape, np.float32)

    def ours(isa):
        return function(x, 2, out=out, threads=threads, isa=isa)

    def eager():
        return operation(tensor, **options).permute(0, 2, 3, 1)

    return ours, eager, wanted, x.nbytes + out.nbytes


if __name__ == "__main__":
    compare(__doc__, CASES, prepare, TOLERANCE)
