"""Compiling in processes: what arrives in Triton's cache, what is refused, what dies."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest
import torch

from fastdiff.kernels.triton import planning, pool
from fastdiff.kernels.triton.geglu import geglu
from fastdiff.kernels.triton.linear import linear
from fastdiff.kernels.triton.planning import Job
from fastdiff.kernels.triton.pool import compile_all


@pytest.fixture(autouse=True)
def empty_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))


def jobs(device: str = "cpu") -> list[Job]:
    with planning.planning() as planned:
        for width in (32, 64, 34):
            geglu(torch.zeros(4, width, device=device))
    assert len(planned) == 3
    return list(planned.values())


def test_jobs_are_compiled_and_what_fails_says_why() -> None:
    good = jobs()
    wrong = dataclasses.replace(good[0], options={**good[0].options, "num_warps": 3})
    seen: list[tuple[int, int]] = []
    failures = compile_all([*good, wrong], 2, lambda done, total: seen.append((done, total)))
    assert list(failures) == [wrong.key]
    assert "num_warps must be a power of 2" in failures[wrong.key]
    assert all(planning.is_compiled(job) for job in good)
    assert seen == [(done, 4) for done in (1, 2, 3, 4)]
    assert compile_all(good, 2, lambda done, total: pytest.fail("compiled again")) == {}


def test_a_crash_costs_one_kernel(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A worker that dies on the first kernel it meets is replaced for the others."""
    good = jobs()
    ask = pool._Worker.ask

    def kill_at(worker: Any, job: Job) -> Any:
        if job is good[0]:
            worker.stop()
        return ask(worker, job)

    monkeypatch.setattr(pool._Worker, "ask", kill_at)
    failures = compile_all(good, 1)
    assert failures == {good[0].key: "the compiler's process ended with SIGKILL"}
    assert [planning.is_compiled(job) for job in good] == [False, True, True]


def test_without_processes_nothing_is_compiled_and_nothing_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    good = jobs()
    monkeypatch.setattr(pool, "_cores", lambda: 1)
    monkeypatch.setattr(pool, "_Crew", lambda *rest: pytest.fail("a process for one core"))
    assert compile_all(good) == {}
    monkeypatch.undo()
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    assert compile_all(good, 2) == {}
    monkeypatch.setattr(sys, "executable", "/bin/false")  # starts, and ends before it is ready
    assert compile_all(good, 2) == {}


def test_an_exception_ends_all_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[Any] = []
    begin = pool._Worker.__init__

    def note(worker: Any) -> None:
        begin(worker)
        started.append(worker)

    monkeypatch.setattr(pool._Worker, "__init__", note)

    def interrupt(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        compile_all(jobs(), 2, interrupt)
    assert started
    assert all(worker._process.poll() is not None for worker in started)


def test_a_worker_ends_with_its_parent() -> None:
    """The parent dies without a word, in the middle of a job of its child."""
    code = (
        "import os, sys; from fastdiff.kernels.triton.pool import _Worker; worker = _Worker();"
        "worker.ready(); print(worker._process.pid, flush=True);"
        "worker._process.stdin.write(sys.argv[1] + '\\n'); worker._process.stdin.flush(); os._exit(1)"
    )
    document = json.dumps(jobs()[0].to_json())
    command = [sys.executable, "-c", code, document]
    run = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    child = int(run.stdout)
    deadline = time.monotonic() + 30
    while _lives(child):
        assert time.monotonic() < deadline, "the worker still runs"
        time.sleep(0.05)


def _lives(process: int) -> bool:
    try:
        state = Path(f"/proc/{process}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


def test_a_worker_sees_no_gpu() -> None:
    worker = pool._Worker()
    try:
        assert worker.ready()
        environment = Path(f"/proc/{worker._process.pid}/environ").read_bytes().split(b"\0")
        assert b"CUDA_VISIBLE_DEVICES=" in environment
    finally:
        worker.stop()
        worker.close()


@pytest.mark.gpu
def test_gpu_a_launch_compiles_nothing_after_its_job(monkeypatch: pytest.MonkeyPatch) -> None:
    import triton

    from fastdiff.kernels.triton import geglu as geglu_file
    from fastdiff.kernels.triton import linear as linear_file

    for kernel in (geglu_file._geglu_kernel, linear_file._linear_kernel):  # nothing from earlier tests
        monkeypatch.setattr(kernel, "device_caches", defaultdict(kernel.create_binder))
    x = torch.randn(70, 144, device="cuda", dtype=torch.float16)
    weight = torch.randn(48, 144, device="cuda", dtype=torch.float16)
    with planning.planning() as planned:
        geglu(x)
        linear(x, weight, activation="silu")
    assert compile_all(planned.values(), 2) == {}
    assert all(planning.is_compiled(job) for job in planned.values())
    hits: list[bool] = []
    with triton.knobs.compilation.scope():
        triton.knobs.compilation.listener = lambda cache_hit, **rest: hits.append(cache_hit)
        geglu(x)
        linear(x, weight, activation="silu")
        torch.cuda.synchronize()
    assert hits == [True, True]
