"""The doctor's report on this machine, and on machines that lack things."""

from __future__ import annotations

import json
import platform
import subprocess
from pathlib import Path

import pytest

from fastdiff import _C, doctor
from fastdiff.targets import TARGETS

pytestmark = pytest.mark.smoke


def test_report_of_this_machine() -> None:
    report = doctor.examine()
    assert report.problems == ()
    assert report.cpu["kernels"]["chosen"] == _C.isa()
    assert report.cpu["kernels"]["available"] == _C.available_isas()
    assert 1 <= report.cpu["usable_cores"] <= report.cpu["cores"]
    assert report.memory["available"] <= report.memory["total"]
    assert report.targets["onnxruntime"]["ok"]
    assert report.temporary_folder["writable"]
    assert report.libraries["runs engines"]["numpy"]
    assert json.loads(json.dumps(report.as_json()))["fastdiff"] == report.fastdiff


def test_every_target_says_why_not_and_how_to_fix() -> None:
    targets = doctor.examine().targets
    assert set(TARGETS) == set(targets)
    for target in targets.values():
        assert target["ok"] or (target["reason"] and target["fix"])


@pytest.mark.skipif(platform.machine() != "x86_64", reason="names of x86 instruction sets")
def test_instruction_sets_cover_the_chosen_kernels() -> None:
    cpu = doctor.examine().cpu
    needs = {"avx512": {"avx512f", "avx2"}, "avx2": {"avx2", "fma"}, "portable": set()}
    assert needs[cpu["kernels"]["chosen"]] <= set(cpu["instruction_sets"])


def test_gpus_come_from_nvidia_smi(monkeypatch: pytest.MonkeyPatch) -> None:
    text = "NVIDIA H200, 143771 MiB, 570.86.15, 9.0\nNVIDIA L4, 23034 MiB, 570.86.15, 8.9\n"
    monkeypatch.setattr(doctor.shutil, "which", lambda name: f"/usr/bin/{name}")
    monkeypatch.setattr(
        doctor.subprocess, "run", lambda command, **options: subprocess.CompletedProcess(command, 0, text, "")
    )
    report = doctor.examine()
    assert report.gpus[0] == doctor.Gpu("NVIDIA H200", "143771 MiB", "570.86.15", "9.0")
    assert len(report.gpus) == 2
    assert report.gpu_note == ""


def test_software_for_gpus_is_there_or_says_how_to_get_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for part in doctor.examine().gpu_software.values():
        assert part["reason"]
        assert part["ok"] == (not part["fix"])

    def torch_of(cuda: str) -> dict[str, object]:
        (tmp_path / "version.py").write_text(f"__version__ = '2.11.0'\ncuda: str | None = {cuda}\n")
        return doctor.examine().gpu_software["torch"]

    class Spec:
        origin = str(tmp_path / "__init__.py")

    monkeypatch.setattr(doctor.importlib.util, "find_spec", lambda name: Spec)
    monkeypatch.setattr(doctor, "_version", lambda name: "2.11.0")
    assert torch_of("'13.0'") == {"ok": True, "reason": "2.11.0, built for CUDA 13.0", "fix": ""}
    assert "without CUDA" in str(torch_of("None")["reason"])
    monkeypatch.setattr(doctor, "_version", lambda name: None)
    assert doctor.examine().gpu_software["torch"]["reason"] == "not installed"


def test_a_driver_that_hangs_or_fails_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(command: list[str], **options: object) -> None:
        raise subprocess.TimeoutExpired(command, 10)

    monkeypatch.setattr(doctor.shutil, "which", lambda name: f"/usr/bin/{name}")
    monkeypatch.setattr(doctor.subprocess, "run", fail)
    report = doctor.examine()
    assert report.gpus or "nvidia" in report.gpu_note.lower()


def test_a_compiled_part_that_does_not_load_is_a_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(name: str) -> None:
        raise ImportError(f"{name}.so: undefined symbol")

    monkeypatch.setattr(doctor.importlib, "import_module", refuse)
    assert any(
        "undefined symbol" in problem and "pip install" in problem for problem in doctor.examine().problems
    )


def test_a_temporary_folder_that_cannot_be_written(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(doctor.tempfile, "gettempdir", lambda: str(tmp_path / "missing"))
    report = doctor.examine()
    assert not report.temporary_folder["writable"]
    assert any("TMPDIR" in problem for problem in report.problems)


def test_missing_libraries_are_problems(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "_version", lambda name: None if name == "tokenizers" else "1")
    assert any(
        problem == "tokenizers is missing: pip install tokenizers" for problem in doctor.examine().problems
    )
