"""scheduler_step beside PyTorch eager, one thread each, at latent sizes.

``python benchmarks/bench_scheduler_step.py [--rounds N]``

Each row is verified against the reference in float64 first. GB/s counts every input read once and both
outputs written once; "of copy" is its share of a plain copy of as many bytes, from the same turns. Times are
the thread's CPU time.
"""

from __future__ import annotations

import argparse
import functools
import time

import numpy as np
import torch
from machine import alternate, copier, describe

from fastdiff import _C
from fastdiff.kernels import reference, scheduler_step

SHAPES = [(1, 4, 16, 16), (1, 4, 64, 64), (1, 16, 128, 128), (8, 16, 128, 128)]
# What a step combines: (name, guidance, history arrays, noise)
STEPS = [
    ("DDIM, guided", True, 0, False),
    ("DPM-Solver++(2M), guided", True, 1, False),
    ("PNDM, guided", True, 3, False),
    ("Euler", False, 0, False),
    ("ancestral, guided", True, 0, True),
]
TOLERANCE = 1e-6


def to_torch(value: object, dtype: torch.dtype) -> object:
    if isinstance(value, list):
        return [to_torch(item, dtype) for item in value]
    return torch.from_numpy(value).to(dtype) if isinstance(value, np.ndarray) else value


def arguments_of_step(rng: np.random.Generator, shape, guided: bool, history_count: int, with_noise: bool):
    """Arguments that the kernel and the reference share; a list of arrays is the history."""
    sample, cond, uncond, noise = (rng.standard_normal(shape).astype(np.float32) for _ in range(4))
    history = [rng.standard_normal(shape).astype(np.float32) for _ in range(history_count)]
    coefs = [0.3, -0.2, 0.1][:history_count]
    noise_and_coef = (noise, 0.05) if with_noise else (None, 0.0)
    return [sample, cond, uncond if guided else None, 7.5, 0.98, -0.12, history, coefs, *noise_and_coef]


def verify(found: tuple[np.ndarray, ...], wanted: tuple[torch.Tensor, ...], label: str) -> None:
    for array, exact in zip(found, wanted, strict=True):
        error = float((torch.from_numpy(array).double() - exact).norm() / exact.norm())
        if not error <= TOLERANCE:
            raise SystemExit(f"{label}: relative L2 {error:.2e}, allowed {TOLERANCE:.0e}; no figures")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=31)
    rounds = parser.parse_args().rounds
    torch.set_num_threads(1)
    torch.set_grad_enabled(False)
    rng = np.random.default_rng(0)

    print(describe(threads=1))
    print(f"{'shape':>18} {'step':>25} {'what':>9} {'us':>9} {'GB/s':>7} {'of copy':>8} {'PyTorch /':>10}")
    for shape in SHAPES:
        for label, has_guidance, history_count, with_noise in STEPS:
            arguments = arguments_of_step(rng, shape, has_guidance, history_count, with_noise)
            tensors = [to_torch(value, torch.float32) for value in arguments]
            wanted = reference.scheduler_step(*(to_torch(value, torch.float64) for value in arguments))
            out, guided = np.empty(shape, np.float32), np.empty(shape, np.float32)

            functions = {}
            for isa in _C.available_isas():
                functions[isa] = functools.partial(
                    scheduler_step, *arguments, out=out, guided=guided, isa=isa
                )
                out.fill(np.nan)
                guided.fill(np.nan)
                verify(functions[isa](), wanted, f"{shape}, {label}, {isa}")
            functions["PyTorch"] = functools.partial(reference.scheduler_step, *tensors)

            moved = out.nbytes * (4 + has_guidance + history_count + with_noise)
            functions["copy"] = copier(moved)
            seconds = alternate(functions, rounds=rounds, clock=time.thread_time)
            for name, value in seconds.items():
                print(
                    f"{'x'.join(map(str, shape)):>18} {label:>25} {name:>9} {value * 1e6:9.1f} "
                    f"{moved / value / 1e9:7.1f} {seconds['copy'] / value:8.0%} "
                    f"{seconds['PyTorch'] / value:9.2f}x"
                )


if __name__ == "__main__":
    main()
