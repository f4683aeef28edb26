"""A planned launch against what Triton's own launcher asks its compiler for, on a GPU that is not there."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget

from fastdiff.kernels.triton import launch as launch_module
from fastdiff.kernels.triton import planning
from fastdiff.kernels.triton.attention import attention
from fastdiff.kernels.triton.conv2d import conv2d
from fastdiff.kernels.triton.epilogue import epilogue
from fastdiff.kernels.triton.geglu import geglu
from fastdiff.kernels.triton.group_norm_silu import add_group_norm_silu, configs, group_norm_silu
from fastdiff.kernels.triton.launch import Config
from fastdiff.kernels.triton.layer_norm import layer_norm
from fastdiff.kernels.triton.linear import linear
from fastdiff.kernels.triton.planning import Job
from fastdiff.kernels.triton.scheduler_step import scheduler_step
from fastdiff.kernels.triton.table_step import table_step


def halves(*shape: int) -> Tensor:
    return torch.zeros(shape, dtype=torch.float16)


def _table(guided: bool) -> Callable[[], Any]:
    def run() -> Any:
        sample, slots = torch.zeros(1, 4, 5, 7), torch.zeros(2, 1, 4, 5, 7)
        rows, saves = torch.zeros(3, 11), torch.zeros(3, 2, dtype=torch.int32)
        counter = torch.zeros(1, dtype=torch.int32)
        return table_step(sample, halves(1 + guided, 4, 5, 7), slots, rows, saves, counter, guided)

    return run


SPLIT = next(config for config in configs(600, 64, 8) if "APPLY_P" in dict(config.blocks))

# What the compiler specialises on: optional arguments left out, sizes and strides of 1, strides that are no
# multiple of 16, pointers that are not aligned, several kernels in one call, tilings other than the default.
LAUNCHES: dict[str, Callable[[], Any]] = {
    "geglu": lambda: geglu(halves(77, 2560)),
    "geglu of one row of odd width": lambda: geglu(halves(1, 2 * 33)),
    "geglu of one column": lambda: geglu(torch.zeros(3, 2)),
    "geglu off by two bytes": lambda: geglu(halves(1 + 4 * 64)[1:].view(4, 64)),
    "linear": lambda: linear(halves(77, 320), halves(640, 320), halves(640)),
    "linear, tiled": lambda: linear(
        halves(9, 64),
        halves(32, 64),
        residual=halves(9, 32),
        config=Config.of(8, 4, BLOCK_M=64, BLOCK_N=32, BLOCK_K=32, GROUP=1),
    ),
    "conv2d": lambda: conv2d(
        halves(1, 5, 7, 32), halves(48, 32, 3, 3), halves(48), halves(1, 48), None, 1, (1, 1, 1, 1)
    ),
    "attention": lambda: attention(halves(2, 70, 80), halves(2, 77, 80), halves(2, 77, 80), 2, 0.1),
    "attention of parts": lambda: attention(*halves(1, 9, 200).split((64, 64, 72), -1), 1, 0.1, True),
    "layer_norm": lambda: layer_norm(halves(3, 320), None, halves(320), None),
    "group_norm_silu, split": lambda: group_norm_silu(
        halves(2, 600, 64),
        None,
        None,
        8,
        config=SPLIT,
    ),
    "add_group_norm_silu": lambda: add_group_norm_silu(
        halves(1, 6, 6, 32), halves(32), halves(1, 32), None, halves(32), halves(32), 4
    ),
    "epilogue": lambda: epilogue(torch.zeros(2, 9, 31), None, None, torch.zeros(2, 9, 31), "silu", 0.5),
    "scheduler_step": lambda: scheduler_step(
        torch.zeros(1, 4, 8, 8), halves(1, 4, 8, 8), None, 1.0, 0.5, 0.5, [torch.zeros(1, 4, 8, 8)], [1.0]
    ),
    "table_step": _table(False),
    "table_step, guided": _table(True),
}


class Driver:
    """As much of Triton's driver as looking at arguments takes."""

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", 90, 32)


@pytest.fixture
def hopper(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Launches of CPU tensors go through Triton's own launcher, on an H100 that nothing is loaded to."""

    class Launcher:
        def __init__(self, kernel: Any) -> None:
            self.kernel = kernel

        def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., Any]:
            # compiled for this test, or not at all
            monkeypatch.setattr(self.kernel, "compile", triton.compiler.compile, raising=False)
            monkeypatch.setattr(self.kernel, "device_caches", defaultdict(self.kernel.create_binder))
            return lambda *arguments, **constants: self.kernel.run(
                *arguments, grid=grid, warmup=True, **constants
            )

    before = triton.runtime.driver._active
    triton.runtime.driver.set_active(Driver())
    monkeypatch.setattr(launch_module, "interpreted", Launcher)
    yield
    triton.runtime.driver._active = before


@pytest.mark.parametrize("name", LAUNCHES)
def test_a_job_is_what_triton_would_compile(hopper: None, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    asked: list[str] = []

    def compile_nothing(source: Any, target: GPUTarget, options: dict[str, Any]) -> Any:
        asked.append(planning.cache_hash(source, target, options))
        return SimpleNamespace()

    monkeypatch.setattr(triton.compiler, "compile", compile_nothing)
    LAUNCHES[name]()
    with planning.planning() as planned:
        LAUNCHES[name]()
        LAUNCHES[name]()
    assert len(planned) == len(asked) == len(set(asked))
    jobs = [Job.from_json(json.loads(json.dumps(job.to_json()))) for job in planned.values()]
    assert [job.key for job in jobs] == list(planned)
    assert [planning.cache_hash(job.source(), job.target(), job.options) for job in jobs] == asked


def test_the_launcher_finds_what_a_job_compiled(
    hopper: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    with planning.planning() as planned:
        LAUNCHES["geglu"]()
    (job,) = planned.values()
    assert not planning.is_compiled(job)
    compiled = planning.compile_job(job)
    assert planning.is_compiled(job)
    assert compiled.hash == planning.cache_hash(job.source(), job.target(), job.options)
    hits: list[bool] = []
    with triton.knobs.compilation.scope():
        triton.knobs.compilation.listener = lambda cache_hit, **rest: hits.append(cache_hit)
        LAUNCHES["geglu"]()
        LAUNCHES["geglu of one column"]()  # another specialisation: here the compiler runs
    assert hits == [True, False]


def test_planned_launches_run_nothing() -> None:
    x = torch.full((3, 8), 2.0)
    out = torch.full((3, 4), 7.0)
    with planning.planning() as outer:
        assert geglu(x, out=out) is out
        with planning.planning() as inner:
            result = linear(x, x)
        geglu(torch.ones(0, 8))  # an empty grid
    assert result.shape == (3, 3)
    assert (out == 7).all()
    assert [job.name for job in outer.values()] == ["_geglu_kernel"]
    assert [job.name for job in inner.values()] == ["_linear_kernel"]
    assert not planning.active()
    geglu(x, out=out)
    assert not (out == 7).any()


def test_sizes_do_not_make_jobs() -> None:
    with planning.planning() as planned:
        for rows in (1, 2, 77, 4096):
            geglu(halves(rows, 64))
    assert len(planned) == 1
