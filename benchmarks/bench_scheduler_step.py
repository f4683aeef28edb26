"""scheduler_step beside PyTorch eager, at latent sizes.

``python benchmarks/bench_scheduler_step.py [--rounds N]``: one thread each
``python benchmarks/bench_scheduler_step.py --device cuda [--json FILE]``: the Triton kernels, scheduler_step
in float32 and table_step with an fp16 model, each of their tilings, beside the reference in PyTorch

Each row is verified against the reference in float64 first. GB/s counts every input read once and both
outputs written once; "of copy" is its share of a plain copy of as many bytes, from the same turns. Times are
the thread's CPU time.
"""

from __future__ import annotations

import argparse
import functools
import time
from pathlib import Path

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
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--json", type=Path, help="with --device cuda: write the rows there")
    arguments = parser.parse_args()
    torch.set_grad_enabled(False)
    if arguments.device == "cuda":
        on_gpu(arguments.json)
    else:
        on_cpu(arguments.rounds)


def on_gpu(json: Path | None) -> None:
    import gpu

    from fastdiff.kernels.cuda import scheduler_step as cuda
    from fastdiff.kernels.triton.scheduler_step import configs
    from fastdiff.kernels.triton.scheduler_step import scheduler_step as fused
    from fastdiff.kernels.triton.table_step import configs as table_configs
    from fastdiff.kernels.triton.table_step import table_step

    gpu.describe_gpu()  # exits where there is no GPU
    rng = np.random.default_rng(0)
    gpu.header()
    rows = []

    def tensors(value: object) -> object:
        if isinstance(value, list):
            return [tensors(item) for item in value]
        return torch.from_numpy(value).cuda() if isinstance(value, np.ndarray) else value

    for shape in SHAPES:
        for label, has_guidance, history_count, with_noise in STEPS:

            def make(shape=shape, rest=(has_guidance, history_count, with_noise)):
                return tuple(tensors(arguments_of_step(rng, shape, *rest)))

            def run(config):
                return lambda *given: fused(*given, config=config)

            inputs = gpu.rotation(make)
            wanted = reference.scheduler_step(*(to_double(value) for value in inputs[0]))
            rows += gpu.compare(
                f"{'x'.join(map(str, shape))} {label}",
                {
                    **{f"Triton {i}": run(config) for i, config in enumerate(configs())},
                    "CUDA C++": cuda.scheduler_step,
                    "PyTorch": reference.scheduler_step,
                },
                inputs,
                wanted,
                TOLERANCE,
                moved=inputs[0][0].nbytes * (4 + has_guidance + history_count + with_noise),
                peers=["PyTorch"],
            )

        def make_table(shape=shape):
            columns = torch.rand(20, len(reference.TABLE_COLUMNS) + 2, device="cuda")
            columns[:, reference.TABLE_COLUMNS.index("estimate_weight")] = 0.0
            saves = torch.tensor([[-1, 0], [-1, 1]] * 10, dtype=torch.int32, device="cuda")
            output = torch.randn(2 * shape[0], *shape[1:], device="cuda").half()
            slots = torch.randn(2, *shape, device="cuda")
            counter = torch.ones(1, dtype=torch.int32, device="cuda")
            return torch.randn(shape, device="cuda"), output, slots, columns, saves, counter, True

        def run_table(config):
            # In place, and compared by its first call's results: the arguments stay as they were.
            return lambda x, output, slots, *rest: table_step(
                x.clone(), output, slots.clone(), *rest, config=config
            )

        sets = gpu.rotation(make_table)
        wanted = reference.table_step(*(to_double(value) for value in sets[0]))
        element = sets[0][0].numel()
        rows += gpu.compare(
            f"{'x'.join(map(str, shape))} table, with copies",
            {
                **{f"Triton {i}": run_table(config) for i, config in enumerate(table_configs())},
                "CUDA C++": cuda.table_step,  # which writes new tensors when it is not told where
            },
            sets,
            wanted,
            5e-4,  # the model's next input is rounded to fp16
            moved=element * (4 + 2 * 2 + 2 * 4 + 4 + 4 + 2 * 2),
        )
    gpu.save(json, rows)


def to_double(value: object) -> object:
    """Floating tensors in float64, also in a list; all else as it is."""
    if isinstance(value, list):
        return [to_double(item) for item in value]
    if not isinstance(value, torch.Tensor):
        return value
    return value.double() if value.is_floating_point() else value


def on_cpu(rounds: int) -> None:
    torch.set_num_threads(1)
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
                    scheduler_step, *arguments, out=out, estimate=guided, isa=isa
                )
                out.fill(np.nan)
                guided.fill(np.nan)
                functions[isa]()
                verify((out, guided), wanted, f"{shape}, {label}, {isa}")
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
