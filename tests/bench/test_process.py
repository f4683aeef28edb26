"""Worker processes: answers, errors, deaths, and that none outlives the measuring process."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from fastdiff.bench.case import Case, Job
from fastdiff.bench.process import WorkerProcess, run_task
from fastdiff.build.checkpoint import load_checkpoint
from fastdiff.errors import CheckpointError, InputError, TargetError
from tests.cli.run import environment

LABEL = "made-up"


def state(pid: int) -> str:
    """The letter of a process in /proc: R, S, T for stopped; empty when it is gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return ""


def wait_for(pid: int, states: str) -> bool:
    end = time.monotonic() + 20
    while time.monotonic() < end:
        if state(pid) in tuple(states) or (not states and state(pid) in ("", "Z")):
            return True
        time.sleep(0.02)
    return False


@pytest.fixture
def worker(tmp_path: Path) -> Iterator[WorkerProcess]:
    with WorkerProcess(LABEL, 1, tmp_path) as process:
        yield process


def test_errors_of_fastdiff_keep_their_type(tmp_path: Path) -> None:
    arguments = {"name": "x", "folder": "x", "module": "unet", "path": "x"}
    with pytest.raises(CheckpointError, match="neither a checkpoint folder, nor a"):
        run_task("export", 1, tmp_path, arguments)


def test_other_errors_name_the_contestant(worker: WorkerProcess) -> None:
    with pytest.raises(TargetError, match="made-up failed: KeyError: 'unknown'"):
        worker.ask("task", name="unknown", arguments={})
    with pytest.raises(TargetError, match="AttributeError"):
        worker.ask("nonsense")


def test_a_death_is_told(tmp_path: Path) -> None:
    with WorkerProcess(LABEL, 1, tmp_path) as process:
        pid = process._process.pid
        os.kill(pid, 9)
        with pytest.raises(TargetError, match=r"made-up: the process was killed, .* memory runs out"):
            process.ask("memory")
    assert state(pid) == ""


def test_paused_processes_stop_and_go_on(worker: WorkerProcess) -> None:
    pid = worker._process.pid
    worker.pause()
    assert wait_for(pid, "T")
    worker.resume()
    with pytest.raises(TargetError, match="AttributeError"):
        worker.ask("nonsense")
    worker.pause()
    worker.close()
    assert state(pid) == "", "a stopped process is ended as well"


def test_no_process_outlives_its_parent(tmp_path: Path) -> None:
    """The parent is killed while its worker is stopped: nobody could continue it."""
    code = (
        "import os, pathlib, sys\n"
        "from fastdiff.bench.process import WorkerProcess\n"
        "worker = WorkerProcess('x', 1, pathlib.Path(sys.argv[1]))\n"
        "try: worker.ask('nonsense')\n"
        "except Exception: pass\n"
        "worker.pause()\n"
        "print(worker._process.pid, flush=True)\n"
        "os.kill(os.getpid(), 9)\n"
    )
    run = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], env=environment(), capture_output=True, text=True
    )
    assert run.returncode == -9
    assert wait_for(int(run.stdout), "")


@pytest.mark.parametrize("name", ["nobody", "torch"])
def test_results_that_disagree_are_noticed(
    tiny_checkpoint: Path, tiny_engine: Path, tmp_path: Path, name: str
) -> None:
    """A real engine against PyTorch's outputs, and against outputs that were changed by 0.2 %."""
    checkpoint = load_checkpoint(tiny_checkpoint)
    job = Job(
        contestant="torch",
        case=Case("tiny", "run", "vae_decoder", 1, 16, 24),
        model=checkpoint.spec,
        checkpoint=str(tiny_checkpoint),
        inputs=str(tmp_path / "inputs.npz"),
        expected=str(tmp_path / "expected.npz"),
        threads=1,
    )
    if name == "nobody":
        changed = {**job.to_json(), "contestant": "nobody"}
        with pytest.raises(InputError, match="unknown contestant 'nobody'"):
            run_task("reference", 1, tmp_path, {"job": changed})
        return
    figures = run_task("reference", 1, tmp_path, {"job": job.to_json()})
    assert figures["arrays"] == 4 * (4 * 4 * 6 + 3 * 16 * 24)
    assert figures["flops"] > 0
    with WorkerProcess("engine", 1, tmp_path) as worker:
        opened = worker.ask("open", job={**job.to_json(), "engine": str(tiny_engine)})
        assert opened.keys() == {"import_s", "load_s", "first_s"}
        assert worker.ask("check")["value"] < 1e-5
        assert len(worker.ask("turn", calls=3)) == 3
        assert worker.ask("memory") > 20_000_000
        with np.load(job.expected) as stored:
            wrong = {key: stored[key] * np.float32(1.002) for key in stored.files}
        np.savez(job.expected, **wrong)
        assert worker.ask("check")["value"] == pytest.approx(2e-3, rel=0.01)
