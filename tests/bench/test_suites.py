"""The committed suites: every request can be met as it stands."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest

from fastdiff.bench.measure import Pace
from fastdiff.bench.models import find_models
from fastdiff.bench.suite import run_suite
from fastdiff.errors import InputError

SUITES = runpy.run_path(str(Path(__file__).parents[2] / "benchmarks" / "suites.py"))


def labels(name: str, tmp_path: Path) -> list[str]:
    made = SUITES["requests"](name, 2, Pace())
    return [
        f"{case.kind} {case.label}"
        for request in made
        for model in find_models(request, tmp_path)
        for case in model.cases(request)
    ]


def test_the_cpu_suite_is_the_work_that_the_native_engine_was_designed_for(tmp_path: Path) -> None:
    assert labels("cpu", tmp_path) == [
        "run sd15-unet 256x256 batch 2",
        "run sd15-unet 512x512 batch 2",
        "run sd15-vae-decoder 256x256 batch 1",
        "run sd15-vae-decoder 512x512 batch 1",
        "run scenes unet 64x64 batch 2",
        "picture scenes picture 64x64 batch 1",
        "cold scenes cold 64x64 batch 1",
        "open sd15-unet open 256x256 batch 2",
    ]


def test_the_quick_suite_measures_all_of_scenes(tmp_path: Path) -> None:
    assert len(labels("quick", tmp_path)) == 5


def test_an_unknown_suite_is_named() -> None:
    with pytest.raises(SystemExit, match="unknown suite 'gpu': known are cpu, quick"):
        SUITES["requests"]("gpu", 2, Pace())


def test_requests_of_one_run_agree_on_threads() -> None:
    one, other = (SUITES["requests"]("quick", threads, Pace())[0] for threads in (1, 2))
    with pytest.raises(InputError, match="different threads"):
        run_suite([one, other])
    with pytest.raises(InputError, match="nothing to measure"):
        run_suite([])
