"""The GPU suite's own logic, with made-up stages: no stage takes the results of another along."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from fastdiff.bench.report import Report
from tests.bench.made_up import make_run

ROOT = Path(__file__).parents[2]
WRITE = "import json, os, sys, time; out = open(os.environ['RESULT'], 'w'); "

FAKE = {
    "good": WRITE + "json.dump({'x': 1}, out); print('fine')",
    "fails": WRITE + "json.dump({'half': 2}, out); out.flush(); print('why it failed'); sys.exit(3)",
    "hangs": WRITE + "json.dump({'first': 3}, out); out.flush(); time.sleep(60)",
    "leaves a child": "import subprocess, sys, time; subprocess.Popen(['sleep', '60']); time.sleep(60)",
    "garbage": WRITE + "sys.stdout.buffer.write(bytes(range(256)) * 99); out.write('{not json')",
    "dies": WRITE + "json.dump([], out); out.flush(); os.kill(os.getpid(), 11)",
    "silent": "pass",
    "last": WRITE + "json.dump({'x': 9}, out)",
}


def suite() -> Any:
    return importlib.import_module("gpu_suite")


def fakes(seconds: float) -> list[Any]:
    return [suite().Stage(name, (sys.executable, "-c", code), seconds) for name, code in FAKE.items()]


def test_every_stage_keeps_its_results() -> None:
    saved: list[list[str]] = []
    said: list[str] = []
    started = time.perf_counter()
    stages = [*fakes(1.5), suite().Stage("absent", ("no/such/program",), 1.0)]
    found = suite().run_stages(stages, 60.0, lambda results: saved.append(list(results)), said.append)
    assert time.perf_counter() - started < 30, "what hangs is stopped, with what it started"
    assert {name: outcome["status"] for name, outcome in found.items()} == {
        "good": "ok",
        "fails": "failed",
        "hangs": "timeout",
        "leaves a child": "timeout",
        "garbage": "failed",
        "dies": "failed",
        "silent": "failed",
        "last": "ok",
        "absent": "failed",
    }
    assert [found[name]["result"] for name in ("good", "fails", "hangs", "last")] == [
        {"x": 1},
        {"half": 2},
        {"first": 3},
        {"x": 9},
    ]
    assert "why it failed" in found["fails"]["reason"]
    assert "no JSON" in found["garbage"]["reason"]
    assert "no result" in found["silent"]["reason"]
    assert [len(names) for names in saved] == list(range(1, 10)), "written after every stage"
    assert "[good] fine" in said


def test_stages_that_have_no_time_or_no_means_say_so() -> None:
    module = suite()
    good = FAKE["good"]
    stages = [module.Stage("a", (sys.executable, "-c", good), 9.0, needs="no nvcc"), *fakes(1.0)[:1]]
    found = module.run_stages(stages, 0.0, lambda results: None, lambda line: None)
    assert (found["a"]["status"], found["a"]["reason"]) == ("skipped", "no nvcc")
    assert (found["good"]["status"], found["good"]["reason"]) == ("skipped", "no time left")


def test_what_is_written(tmp_path: Path) -> None:
    device = {"name": "NVIDIA H200", "memory": "1", "driver": "580.1", "compute_capability": "9.0"}
    save = suite().writer(tmp_path, device, False)
    ok = {"status": "ok", "reason": "", "seconds": 1.0, "log": "long"}
    tests = {
        "tests/a.py::test_x": {"outcome": "passed"},
        "tests/a.py::test_y": {"outcome": "failed", "text": "Traceback: it is 2, wanted 3"},
    }
    save({"tests": {**ok, "status": "failed", "reason": "1 | 2", "result": {"tests": tests}}})
    save(
        {
            "tests": {**ok, "status": "failed", "reason": "1 | 2", "result": {"tests": tests}},
            "scenes": {**ok, "result": {"reports": [asdict(Report((make_run(),)))]}},
        }
    )
    names = sorted(path.name for path in tmp_path.iterdir())
    assert [name.rpartition(".")[2] for name in names] == ["txt", "json", "md"]
    assert names[1].startswith("gpu-nvidia-h200-")
    document = json.loads((tmp_path / names[1]).read_text())
    assert document["gpu"] == device
    assert document["stages"]["tests"]["result"]["tests"] == tests
    text = (tmp_path / names[2]).read_text()
    assert "1 passed, 1 failed" in text
    # 2 GFLOP in 10 ms are 200 GFLOP/s of 160
    assert "| fastdiff:native | 10 | 9.2–11.6 | 125% |" in text
    assert "| scenes unet 64x96 batch 2 | inductor | refused: its outputs differ" in text
    assert "wanted 3" in (tmp_path / "failures.txt").read_text()


def test_goals_are_checked() -> None:
    goal = importlib.import_module("gpu_table")._goal
    label = "sd15-unet step 512x512 batch 2 cuda fp16"
    assert goal(label, "fastdiff:cuda", 4.0, {}) == "≤ 5 ms: reached"
    assert goal(label, "torch", 4.0, {}) == ""
    assert goal("x", "fastdiff:cuda", 4.0, {"inductor": 5.0}) == "≥ 1.3 × torch.compile: 1.25, missed"


def test_without_a_gpu_it_ends_with_one_line(tmp_path: Path) -> None:
    # nvidia-smi is found through PATH
    environment = {**os.environ, "PATH": str(tmp_path)}
    if Path("/proc/driver/nvidia/gpus").exists():
        pytest.skip("this machine has an NVIDIA GPU")
    command = [sys.executable, str(ROOT / "benchmarks" / "gpu_suite.py"), "--out", str(tmp_path / "out")]
    run = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert run.returncode != 0
    assert run.stdout == ""
    assert run.stderr == "gpu_suite: no NVIDIA GPU found (nvidia-smi names none); nothing was run\n"


def test_tests_are_reported_one_by_one(tmp_path: Path) -> None:
    """A test that takes its process down leaves those before it, and is named."""
    file = tmp_path / "test_made_up.py"
    file.write_text(
        "import os, pytest\n"
        "def test_a(): pass\n"
        "def test_b(): assert 1 + 1 == 3\n"
        "@pytest.mark.skip(reason='not now')\n"
        "def test_c(): pass\n"
        "def test_d(): os._exit(1)\n"
        "def test_e(): pass\n"
    )
    lines = tmp_path / "report.jsonl"
    environment = {**os.environ, "GPU_REPORT": str(lines), "PYTHONPATH": str(ROOT / "benchmarks")}
    command = [sys.executable, "-m", "pytest", "-p", "gpu_report", "-p", "no:cacheprovider", str(file)]
    subprocess.run(command, env=environment, capture_output=True, check=False, cwd=tmp_path)
    found: dict[str, Any] = {}
    for line in lines.read_text().splitlines():
        test = json.loads(line)
        found[test.pop("test").rpartition("::")[2]] = test
    assert {name: test["outcome"] for name, test in found.items()} == {
        "test_a": "passed",
        "test_b": "failed",
        "test_c": "skipped",
        "test_d": "hung",
    }
    assert "assert (1 + 1) == 3" in found["test_b"]["text"]
    assert "not now" in found["test_c"]["text"]


def test_gpu_tests_are_collected_without_diffusers(tmp_path: Path) -> None:
    """The suite runs where diffusers is not installed: what only other tests compare with is no reason that
    a file's tests marked ``gpu`` are lost.
    """
    (tmp_path / "no_diffusers.py").write_text("import sys\nsys.modules['diffusers'] = None\n")
    files = importlib.import_module("gpu_stages").gpu_test_files()
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join((str(ROOT), str(tmp_path)))}
    options = ["--collect-only", "-q", "-m", "gpu", "-p", "no_diffusers", "-p", "no:cacheprovider"]
    run = subprocess.run(
        [sys.executable, "-m", "pytest", *options, *map(str, files)],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
    )
    assert run.returncode == 0, run.stdout[-3000:]
    missing = [path for path in files if f"{path.relative_to(ROOT).as_posix()}::" not in run.stdout]
    assert missing == [], "every one of these files has a test for a GPU"


def test_stages_are_those_of_the_issue() -> None:
    module, known = suite(), importlib.import_module("gpu_stages").STAGES
    full, quick = module.stages(False, Path("/keep")), module.stages(True, Path("/keep"))
    assert [stage.name for stage in full] == list(known)
    assert {stage.name for stage in quick} <= set(known)
    assert all(stage.command[2] == stage.name for stage in (*full, *quick))


@pytest.mark.gpu
def test_ceilings_on_a_gpu(tmp_path: Path) -> None:
    """The shortest real stage, from end to end."""
    module = suite()
    (stage,) = [stage for stage in module.stages(True, tmp_path) if stage.name == "ceilings"]
    found = module.run_stage(stage, 120.0, tmp_path / "log", lambda line: None)
    assert found["status"] == "ok", found["log"]
    assert found["result"]["gemm"] > 1e13
    assert found["result"]["copy"] > 1e11
