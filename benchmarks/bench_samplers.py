"""What samplers cost beside the denoiser: tables, loops and memory, for every registered sampler.

``python benchmarks/bench_samplers.py [--rounds N] [--step-ms MS] [--sampler NAME]``

Three tables follow each other, each with its bar. Times are the thread's CPU time.

Tables: the time to build one of 50 steps; at most 5 ms.

Loops: the time per evaluation of the loops in Python and in C++ around a denoiser that costs nothing, on the
latents of ``scenes``, 1 to 8 pictures with guidance, as a share of the denoiser's own time, ``--step-ms`` for
one picture (a batch of two) and as often for more; at most 3 %. Python's loop runs with ``Denoiser`` and the
checks of a ``Session``; C++'s around a graph of one node, which is counted. Noise is counted. A table that is
not linear has no loop in C++. Both loops are compared first.

Memory: what the kernel reads and writes in a step, counted from its arguments while a table runs, against the
floor: the sample, the model's output, used slots and used noise read once; the sample, what the table saves
and the model's next input written once. Then the kernel's GB/s on large arrays, one thread, each kind of step
verified against the reference in float64, beside a copy of as many bytes from the same turns.
"""

from __future__ import annotations

import argparse
import functools
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from bench_scheduler_step import arguments_of_step, to_torch, verify
from machine import alternate, copier, describe

from fastdiff import _C
from fastdiff.config import SizeRange, TensorSpec
from fastdiff.denoise import Denoiser
from fastdiff.errors import InputError
from fastdiff.kernels import reference, scheduler_step
from fastdiff.samplers import SAMPLERS, Generator, NoiseSchedule, StepTable, loop, make_table, sample
from fastdiff.targets.graph import Graph, Node, Value
from fastdiff.targets.native.file import write
from fastdiff.targets.session import Session

STEPS, GUIDANCE = 50, 4.0
MOST_STEPS = {"consistency": 40}
"""Of samplers that have no more."""
PICTURES = (1, 2, 4, 8)
LATENT = (4, 16, 16)
"""Of ``scenes``."""
TABLE_BAR, LOOP_BAR = 5e-3, 0.03
LARGE = (16, 4, 512, 512)  # 67 MB each: no cache holds two
STABLE_DIFFUSION = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "clip_sample": False,
    "steps_offset": 1,
}
CONFIGS = (STABLE_DIFFUSION, {"prediction_type": "flow_prediction"}, {"prediction_type": "score"}, {})
"""A sampler runs with the first that it takes."""


class Nothing(Session):
    """A U-Net that returns what it has made already."""

    def __init__(self, batch: int) -> None:
        sizes = ("batch", *LATENT)
        specs = (
            TensorSpec("sample", "float32", sizes),
            TensorSpec("timestep", "float32", ("batch",)),
            TensorSpec("encoder_hidden_states", "float32", ("batch", "tokens", 8)),
        )
        super().__init__("nothing", specs, specs[:1], {})
        self.output = np.random.default_rng(0).standard_normal((batch, *LATENT)).astype(np.float32)

    def _run(self, arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        return {"sample": self.output}


def native_graph(folder: Path) -> Any:
    """A U-Net that clips its input, a single node, as a session with a loop in C++."""
    shape = ("batch", *LATENT)
    graph = Graph(
        {"batch": SizeRange()},
        (
            Value("sample", "float32", shape),
            Value("timestep", "float32", ("batch",)),
            Value("y", "float32", shape),
        ),
        (Node("clamp", (0,), 2, {"low": -1.0, "high": 1.0}, {}, (), (), "step", "y"),),
        (),
        (0, 1),
        (2,),
    )
    write(folder / "nothing.fdn", graph)
    return _C.NativeSession(_C.NativeModule(str(folder / "nothing.fdn")), 1)


def table_of(name: str, config: dict[str, object]) -> StepTable:
    """With a schedule made anew, as by a pipeline that was just opened."""
    return make_table(name, NoiseSchedule.from_config(config), MOST_STEPS.get(name, STEPS))


def configs_of(names: list[str]) -> dict[str, dict[str, object]]:
    """A config for each sampler that takes one of CONFIGS; says why another has none."""
    found: dict[str, dict[str, object]] = {}
    for name in names:
        reasons = []
        for config in CONFIGS:
            try:
                table_of(name, config)
            except InputError as error:
                reasons.append(str(error))
                continue
            found[name] = config
            break
        else:
            print(f"{name} is left out: {reasons[0]}")
    return found


def bench_tables(configs: dict[str, dict[str, object]], rounds: int) -> bool:
    print(f"{'sampler':>24} {'evaluations':>12} {'table ms':>9}")
    good = True
    for name, config in configs.items():
        table = table_of(name, config)
        if not table.is_finite() or not table.steps:
            raise SystemExit(f"{name}: the table is not finite; no figures")
        build = {name: functools.partial(table_of, name, config)}
        seconds = alternate(build, rounds=rounds, clock=time.thread_time)[name]
        good &= seconds <= TABLE_BAR
        print(f"{name:>24} {table.evaluations:12} {seconds * 1e3:9.2f}{over(seconds, TABLE_BAR)}")
    return good


def bench_loops(tables: dict[str, StepTable], rounds: int, step_seconds: float) -> bool:
    heads = " ".join(f"{f'{n} in {where}':>13}" for n in PICTURES for where in ("Python", "C++"))
    print(f"us per evaluation, share of {step_seconds * 1e3:g} ms per picture\n{'sampler':>24} {heads}")
    good = True
    with tempfile.TemporaryDirectory() as folder:
        native = native_graph(Path(folder))
        for name, table in tables.items():
            cells = []
            for pictures in PICTURES:
                functions = loops(name, table, pictures, native)
                seconds = alternate(functions, rounds=rounds, clock=time.thread_time)
                for where in ("Python", "C++"):
                    if where not in seconds:
                        cells.append(f"{'':>13}")
                        continue
                    each = seconds[where] / table.evaluations
                    share = each / (pictures * step_seconds)
                    good &= share <= LOOP_BAR
                    cells.append(f"{each * 1e6:6.1f} {share:5.2%}{over(share, LOOP_BAR) or ' '}")
            print(f"{name:>24} {' '.join(cells)}")
    return good


def loops(name: str, table: StepTable, pictures: int, native: Any) -> dict[str, Callable[[], object]]:
    """Both loops, after a comparison of their results."""
    rng = np.random.default_rng(0)
    latents = rng.standard_normal((pictures, *LATENT)).astype(np.float32) * np.float32(table.init_noise_sigma)
    states = rng.standard_normal((pictures, 77, 8)).astype(np.float32)
    inputs = {"encoder_hidden_states": states}
    denoiser = Denoiser(Nothing(2 * pictures), inputs, inputs)

    def in_python() -> object:
        return denoiser.run(table, latents, GUIDANCE, Generator(0), None)

    def in_cpp() -> np.ndarray:
        return native.sample(table, latents, {}, GUIDANCE, Generator(0).state)

    if not table.linear:
        return {"Python": in_python}

    def clip(x: np.ndarray, timestep: float, guided: bool) -> tuple[np.ndarray, np.ndarray]:
        batch = np.concatenate([x, x])
        output = native.run({"sample": batch, "timestep": np.full(len(batch), timestep, np.float32)})["y"]
        return output[len(x) :], output[: len(x)]

    wanted = sample(table, clip, latents, guidance=GUIDANCE, noise=Generator(0))
    if not np.array_equal(in_cpp(), wanted):
        raise SystemExit(f"{name}: the loops in Python and in C++ differ; no figures")
    return {"Python": in_python, "C++": in_cpp}


def bench_bytes(tables: dict[str, StepTable]) -> bool:
    """Arrays that the kernel is given while a table runs, against those that the table needs."""
    print(f"arrays read and written per evaluation\n{'sampler':>24} {'kernel':>8} {'floor':>8} {'ratio':>6}")
    good = True
    for name, table in tables.items():
        moved = 0

        def count(*given: Any, **more: Any) -> Any:
            nonlocal moved
            history = given[6] if len(given) > 6 else ()
            inputs = [array for array in (*given, *history) if isinstance(array, np.ndarray)]
            inputs += [more["noise"]] if "noise" in more else []
            outputs = [more.get(key) for key in ("out", "estimate", "next_input", "next_again")]
            moved += len({array.ctypes.data for array in inputs})
            moved += sum(output is not None for output in outputs)
            return scheduler_step(*given, **more)

        rng = np.random.default_rng(0)
        cond, uncond, latents = (rng.standard_normal((1, *LATENT)).astype(np.float32) for _ in range(3))
        if table.variance_channels:
            cond, uncond = (np.concatenate([m, np.abs(m)], axis=1) for m in (cond, uncond))
        constant = functools.partial(lambda *pair_and_rest: pair_and_rest[:2], cond, uncond)
        with mock.patch.object(loop, "scheduler_step", count):
            sample(table, constant, latents, guidance=GUIDANCE, noise=Generator(0))
        floor = floor_of(table)
        per_step = f"{moved / table.evaluations:8.2f} {floor / table.evaluations:8.2f}"
        print(f"{name:>24} {per_step} {moved / floor:6.2f}")
        good &= moved == floor or not table.linear
    return good


def floor_of(table: StepTable) -> int:
    """Arrays of the latents' size that all steps must read and write."""
    total = 3 if table.start_noise else 0  # sample, noise, sample
    rows = zip(table.steps, (*table.steps[1:], None), table.guidance_scales(GUIDANCE), strict=True)
    for step, following, scale in rows:
        total += 2 + (scale != 1)  # the sample and one or both halves of the output
        total += len({slot for slot, _ in step.history})
        total += bool(step.noise_coef)
        total += 1  # the sample; saving it exchanges buffers
        total += step.save_output is not None and step.save_output != step.save_sample
        total += following is not None and following.input_scale != 1
    return total


CLIPPED = {"estimate_sample": 1.1, "estimate_output": -0.4, "estimate_limit": 1.0}
KINDS = {
    "Euler": (0, False, {}, False),
    "multistep, clipped": (2, False, CLIPPED, True),
    "ancestral": (0, True, {}, False),
}
"""Of a step with guidance: history arrays, noise, the estimate's numbers, whether it is kept."""


def bench_bandwidth(rounds: int) -> None:
    print(f"{LARGE[0] * LARGE[1]} x {LARGE[2]} x {LARGE[3]}, one thread")
    print(f"{'step':>24} {'ms':>8} {'GB/s':>7} {'copy GB/s':>10} {'of copy':>8}")
    rng = np.random.default_rng(0)
    for label, (history, noise, numbers, keep) in KINDS.items():
        arguments = arguments_of_step(rng, LARGE, True, history, noise)
        buffers = {"out": np.empty(LARGE, np.float32), "next_input": np.empty(LARGE, np.float32)}
        buffers |= {"estimate": np.empty(LARGE, np.float32)} if keep else {}
        step = functools.partial(scheduler_step, *arguments, **numbers, **buffers, next_scale=0.7)
        step()
        exact = reference.scheduler_step(*(to_torch(value, torch.float64) for value in arguments), **numbers)
        found = (buffers["out"], buffers["estimate"]) if keep else (buffers["out"],)
        verify(found, exact[: len(found)], label)
        verify((buffers["next_input"],), (0.7 * exact[0],), f"{label}, next input")
        moved = buffers["out"].nbytes * (3 + history + noise + len(buffers))
        seconds = alternate({"step": step, "copy": copier(moved)}, rounds=rounds, clock=time.thread_time)
        print(
            f"{label:>24} {seconds['step'] * 1e3:8.2f} {moved / seconds['step'] / 1e9:7.1f} "
            f"{moved / seconds['copy'] / 1e9:10.1f} {seconds['copy'] / seconds['step']:8.0%}"
        )


def over(value: float, bar: float) -> str:
    return "" if value <= bar else "!"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--step-ms", type=float, default=6.6, help="the denoiser's time for one picture")
    parser.add_argument("--sampler", action="append", choices=SAMPLERS, help="only this one; may be repeated")
    arguments = parser.parse_args()
    configs = configs_of(arguments.sampler or list(SAMPLERS))
    tables = {name: table_of(name, config) for name, config in configs.items()}
    torch.set_grad_enabled(False)
    torch.set_num_threads(1)
    print(describe(threads=1))
    good = bench_tables(configs, arguments.rounds)
    good &= bench_loops(tables, arguments.rounds, arguments.step_ms / 1e3)
    good &= bench_bytes(tables)
    bench_bandwidth(max(3, arguments.rounds // 3))
    print("all within their bars" if good else "marked with !: over its bar, or more arrays than the floor")


if __name__ == "__main__":
    main()
