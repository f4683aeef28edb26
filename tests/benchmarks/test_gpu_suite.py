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


def test_what_a_stage_has_found_is_saved_while_it_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever ends the suite in the middle of a stage finds what there was seconds before."""
    module = suite()
    monkeypatch.setattr(module, "_SAVE_SECONDS", 0.2)
    stages = [module.Stage("hangs", (sys.executable, "-c", FAKE["hangs"]), 3.0), *fakes(9.0)[:1]]
    saved: list[dict[str, Any]] = []
    module.run_stages(
        stages, 60.0, lambda found: saved.append(json.loads(json.dumps(found))), lambda line: None
    )
    running = [found["hangs"] for found in saved if found["hangs"]["status"] == "running"]
    assert running[-1]["result"] == {"first": 3}
    assert saved[-1]["hangs"]["status"] == "timeout"
    assert saved[-1]["good"]["result"] == {"x": 1}


def test_a_stage_that_would_find_nothing_is_not_begun() -> None:
    module = suite()
    found = module.run_stages(
        fakes(9.0)[:2],
        60.0,
        lambda found: None,
        lambda line: None,
        lambda stage: "it is not compiled" if stage.name == "fails" else "",
    )
    assert [(found[name]["status"], found[name]["reason"]) for name in ("good", "fails")] == [
        ("ok", ""),
        ("skipped", "it is not compiled"),
    ]


def test_without_a_gpu_that_pytorch_can_use_no_stage_begins(monkeypatch: pytest.MonkeyPatch) -> None:
    module = suite()
    monkeypatch.setattr(
        module, "_refusal", lambda program: "" if "_C" in program else "RuntimeError: no driver"
    )
    assert module.useless(module.Stage("build", (), 1.0)) == ""
    tests = module.Stage("tests", (), 1.0)
    assert module.useless(tests) == "PyTorch cannot use the GPU: RuntimeError: no driver"
    monkeypatch.undo()
    assert module._refusal("import fastdiff._C") == "", "it is compiled here"
    assert module._refusal("raise ValueError('why')") == "ValueError: why"
    monkeypatch.setattr(module, "_refusal", lambda program: "ImportError: _C")
    assert "(ImportError: _C): the stage build comes first" in module.useless(tests)


def test_a_stage_ends_with_the_suite(tmp_path: Path) -> None:
    """Also where the suite is killed: what went on would take the GPU from whatever runs next."""
    stage = (
        "import sys, time, subprocess; sys.path.insert(0, sys.argv[1]); import gpu_stages;"
        "gpu_stages.end_with_parent(); child = subprocess.Popen(['sleep', '60']);"
        "print(child.pid, flush=True); time.sleep(60)"
    )
    run = (
        "import subprocess, sys, time; subprocess.Popen(sys.argv[1:], start_new_session=True); time.sleep(60)"
    )
    words = [sys.executable, "-c", run, sys.executable, "-c", stage, str(ROOT / "benchmarks")]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        parent.kill()
        end = time.perf_counter() + 30
        while Path(f"/proc/{child}").exists() and time.perf_counter() < end:
            time.sleep(0.1)
        assert not Path(f"/proc/{child}").exists()


@pytest.mark.parametrize(
    ("versions", "wanted"),
    [
        ({"cmake": None, "ninja": None}, ["cmake is not installed, wanted 3.24 or newer"]),
        ({"setuptools": "70.1"}, ["setuptools 70.1, wanted 77.0.3 or newer"]),
        ({"torch": "2.13.0+cpu"}, ["torch 2.13.0+cpu is built without CUDA"]),
        ({"tensorrt": None, "diffusers": None, "cuda-core": "0.3.2"}, []),
    ],
)
def test_what_is_missing_is_named(
    versions: dict[str, str | None], wanted: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """``wanted``: without which nothing runs; the rest is told, and the suite goes on."""
    needs = importlib.import_module("gpu_needs")
    there = {package.name: package.least for package in needs._PACKAGES} | {"torch": "2.11.0+cu130"}
    found = {**there, **versions}
    monkeypatch.setattr(needs, "_version", found.__getitem__)
    monkeypatch.setattr(needs, "_has_module", lambda name: False)
    programs = {"c++": "/c++", "cc": "/cc", "nvcc": "/nvcc", "ninja": "/usr/bin/ninja"}
    monkeypatch.setattr(needs.shutil, "which", programs.get)
    missing = needs.needs()
    assert [each.what for each in missing if not each.lost] == wanted
    told = {each.package: each.lost for each in missing if each.lost}
    assert set(told) == ({"tensorrt", "diffusers", "cuda-core"} if "tensorrt" in versions else set())
    if missing:
        assert needs.travel(missing).count("--no-index") == 1
        assert all(f" {each.package}" in needs.travel(missing) for each in missing)


def test_processes_share_a_files_tests(tmp_path: Path) -> None:
    stages = importlib.import_module("gpu_stages")
    assert {ROOT / name for name in stages._SHARDS} <= set(stages.gpu_test_files())
    file = tmp_path / "test_made_up.py"
    file.write_text(
        "import pytest\n@pytest.mark.gpu\n@pytest.mark.parametrize('i', range(5))\ndef test(i): pass\n"
        "def test_without_a_gpu(): pass\n"
    )
    found: list[list[str]] = []
    for place in range(2):
        lines = tmp_path / f"{place}.jsonl"
        environment = {
            **os.environ,
            "GPU_REPORT": str(lines),
            "GPU_SHARD": f"{place}/2",
            "PYTHONPATH": str(ROOT / "benchmarks"),
        }
        options = ["-p", "gpu_report", "-p", "no:cacheprovider", "-W", "ignore", str(file)]
        command = [sys.executable, "-m", "pytest", *options]
        subprocess.run(command, env=environment, capture_output=True, check=False, cwd=tmp_path)
        tests = {json.loads(line)["test"].rpartition("::")[2] for line in lines.read_text().splitlines()}
        found.append(sorted(tests))
    assert found == [["test[0]", "test[2]", "test[4]"], ["test[1]", "test[3]"]]


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
