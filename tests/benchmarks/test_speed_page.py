"""README.md's figures of speed: what the committed results say, and no more."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

import pytest

from fastdiff.bench.case import Case
from fastdiff.bench.ceilings import Ceilings
from fastdiff.bench.measure import Measurement, Spread
from fastdiff.bench.report import Result, Run


@pytest.fixture
def speed() -> Any:
    return importlib.import_module("speed_page")


def test_the_page_is_what_the_results_say(speed: Any) -> None:
    run = speed.one_run(speed.RESULTS)
    text = speed.PAGE.read_text(encoding="utf-8")
    assert speed.page(text, run, speed.works(run)) == text, "run: python benchmarks/speed_page.py"
    assert speed.PLOT.is_file()


def test_results_of_two_machines_are_no_table(speed: Any, tmp_path: Path) -> None:
    document = json.loads(speed.RESULTS[0].read_text(encoding="utf-8"))
    document["runs"][0]["machine"]["cpu"] = "another"
    (tmp_path / "other.json").write_text(json.dumps(document), encoding="utf-8")
    with pytest.raises(SystemExit, match="different machine"):
        speed.one_run([speed.RESULTS[0], tmp_path / "other.json"])


def measured(name: str, median: float, ratio: float | None) -> Measurement:
    status = "ok" if ratio is not None else "refused"
    spread = Spread(median=median, p10=median, p90=median, calls=9) if ratio is not None else None
    return Measurement(name, status, spread=spread, ratio=ratio)


def run_of(*results: tuple[Case, tuple[Measurement, ...]]) -> Run:
    machine = {"cpu": "a CPU", "isa": "avx2", "threads": 3}
    found = tuple(Result(case, 1, 1, 1, measurements) for case, measurements in results)
    return Run("2026-01-01", {}, {"torch": "9.9"}, machine, {}, Ceilings(1.0, 1.0), found)


def test_a_row_has_the_faster_of_pytorchs_formats_and_nobody_who_was_refused(speed: Any) -> None:
    unet = Case("sd15-unet", "run", "unet", 2, 512, 512)
    ours = measured("fastdiff:native", 2500.0, 1.0)
    peers = (
        measured("torch", 9000.0, 3.6),
        measured("torch-channels-last", 8000.0, 3.24),
        measured("openvino", 1.0, None),
    )
    alone = Case("scenes", "picture", "", 1, 64, 64)
    opening = Case("sd15-unet", "open", "unet", 2, 512, 512)
    run = run_of((unet, (ours, *peers)), (alone, (ours,)), (opening, (ours, *peers)))
    (row,) = speed.works(run)
    assert (row.seconds, row.ratios) == (2.5, {"torch": 3.24})
    text = speed.page(f"before\n{speed.BEGIN}old\n{speed.END}\nafter\n", run, [row])
    assert "| SD 1.5 U-Net at 512 x 512, a guided step | 2.50 s | 3.2 x |" in text
    assert "a CPU, avx2, 3 threads, float32; PyTorch 9.9." in text
    assert text.startswith("before\n")
    assert text.endswith("\nafter\n")
    assert "old" not in text


def test_short_times_have_their_digits(speed: Any) -> None:
    assert [speed._seconds(value) for value in (0.0052, 0.31, 2.639)] == ["5.2 ms", "310 ms", "2.64 s"]
