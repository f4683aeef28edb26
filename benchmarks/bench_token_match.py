"""token_match and what it saves: self-attention of all tokens beside that of the merged ones.

``python benchmarks/bench_token_match.py [--threads N] [--rounds N]``

Each plan is verified against the reference first. "merging" is token_match, token_merge and token_unmerge
together, "attention" that of 8 heads on all tokens and on half of them. With one thread, times are the
thread's CPU time.
"""

from __future__ import annotations

import argparse
import functools
import time

import numpy as np
import torch
from machine import alternate, describe

from fastdiff import _C
from fastdiff.kernels import attention, reference, token_match, token_merge, token_unmerge

# height, width, channels of one picture: SD 1.5 at 256², 512² and 768², SDXL's finest attention at 1024²
CASES = [(32, 32, 320), (64, 64, 320), (96, 96, 320), (64, 64, 640)]
HEADS = 8


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    threads = arguments.threads
    torch.set_num_threads(threads)
    rng = np.random.default_rng(0)
    print(describe(threads))
    print(f"{'height, width, channels':>24} {'what':>18} {'ms':>9}")
    for height, width, channels in CASES:
        x = rng.standard_normal((1, height, width, channels), np.float32)
        tokens, merged = height * width, height * width // 2
        flat = x.reshape(1, tokens, channels)
        plan = token_match(x, merged, threads=threads)
        wanted = reference.token_match(torch.from_numpy(x).double(), 1, 2).numpy()
        if (plan != wanted).mean() > 0.01:  # where two cosines are alike, rounding decides
            raise SystemExit(f"{height}, {width}, {channels}: another plan than the reference's; no figures")
        small = token_merge(flat, plan, tokens - merged)
        scale = (channels // HEADS) ** -0.5

        def merging(x=x, flat=flat, small=small, merged=merged):
            plan = token_match(x, merged, threads=threads)
            token_merge(flat, plan, flat.shape[1] - merged, threads=threads)
            token_unmerge(small, plan, threads=threads)

        functions = {
            **{
                isa: functools.partial(token_match, x, merged, threads=threads, isa=isa)
                for isa in _C.available_isas()
                if isa != "portable"
            },
            "merging": merging,
            "attention, all": functools.partial(attention, flat, flat, flat, HEADS, scale, threads=threads),
            "attention, half": functools.partial(
                attention, small, small, small, HEADS, scale, threads=threads
            ),
        }
        seconds = alternate(
            functions, rounds=arguments.rounds, clock=time.thread_time if threads == 1 else time.perf_counter
        )
        for name, value in seconds.items():
            print(f"{f'{height}, {width}, {channels}':>24} {name:>18} {value * 1e3:9.2f}")


if __name__ == "__main__":
    main()
