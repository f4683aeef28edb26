"""docs/gpu-status.md: no test without a feature, no feature without a test, and the page is up to date."""

from __future__ import annotations

import importlib
from typing import Any

import pytest


@pytest.fixture
def status() -> Any:
    return importlib.import_module("gpu_status")


def test_every_test_marked_gpu_belongs_to_one_feature(status: Any) -> None:
    files = status.marked_files()
    assert files, "there are tests for GPUs"
    for file in files:
        assert len(status.features_of(file)) == 1, f"{file}: name its feature in benchmarks/gpu_status.py"


def test_the_page_is_what_the_results_say(status: Any) -> None:
    wanted = status.table(status.load_status(), status.marked_files())
    assert status.PAGE.read_text() == wanted, "run: python benchmarks/gpu_status.py"


def test_the_table_has_no_entry_without_a_test(status: Any) -> None:
    file = "tests/bench/test_gpu.py"
    assert [line for line in status.table({}, [file]).splitlines() if "never run" in line] == [
        "| `fastdiff bench --devices cuda` | never run | | | |"
    ]


def test_a_feature_is_checked_when_all_of_its_tests_passed(status: Any) -> None:
    tests = {
        "tests/kernels/triton/test_attention.py::test_a[fp16]": {"outcome": "passed"},
        "tests/kernels/triton/test_attention.py::test_b": {"outcome": "skipped"},
        "tests/kernels/triton/test_linear.py::test_a": {"outcome": "passed"},
        "tests/kernels/triton/test_linear.py::test_b": {"outcome": "failed"},
        "tests/kernels/triton/test_geglu.py::test_a": {"outcome": "skipped"},
        "tests/kernels/triton/test_conv2d.py::test_a": {"outcome": "hung"},
    }
    document = {
        "stages": {"tests": {"result": {"tests": tests}}},
        "commit": "0123456789abcdef",
        "gpu": {"name": "NVIDIA H200"},
        "date": "2026-11-23T03:00:00+00:00",
    }
    found = status.checked(document)
    assert list(found) == ["Triton `attention`"]
    assert found["Triton `attention`"] == {
        "tests": 1,
        "commit": "0123456789abcdef",
        "gpu": "NVIDIA H200",
        "date": "2026-11-23",
    }
    lines = status.table(found, ["tests/kernels/triton/test_attention.py"]).splitlines()
    assert lines[-1] == "| Triton `attention` | 0123456789ab | NVIDIA H200 | 2026-11-23 | 1 |"
    assert status.checked({**document, "stages": {}}) == {}
