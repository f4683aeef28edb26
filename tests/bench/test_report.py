"""Reports: JSON there and back, merged, as text and as a page."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from fastdiff.bench.html import page
from fastdiff.bench.report import (
    Report,
    best_peer,
    check_writable,
    load_reports,
    merge,
    rate,
    save_report,
    write_json,
)
from fastdiff.bench.table import compare_lines, report_lines
from fastdiff.errors import InputError, OutputError
from tests.bench.made_up import make_run, reports
from tests.full.report import Report as FullReport

pytestmark = pytest.mark.smoke


def test_json_round_trip(tmp_path: Path) -> None:
    first, second = reports()
    for name, report in (("a.json", first), ("b.json", second)):
        save_report(report, tmp_path / name)
    assert load_reports([tmp_path / "a.json", tmp_path / "b.json"]) == [first, second]
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["a.json", "b.json"]


def test_many_samples_are_thinned_but_not_their_percentiles(tmp_path: Path) -> None:
    run = make_run()
    long = replace(run.results[0].measurements[0], samples_ms=tuple(map(float, range(1001))))
    result = replace(run.results[0], measurements=(long,))
    save_report(Report((replace(run, results=(result,)),)), tmp_path / "long.json")
    (loaded,) = load_reports([tmp_path / "long.json"])
    found = loaded.runs[0].results[0].measurements[0]
    assert found.samples_ms == tuple(map(float, range(0, 1001, 6)))
    assert found.spread == long.spread


def damage(**changes: Any) -> Any:
    def change(document: Any) -> Any:
        return {**document, **changes}

    return change


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (damage(format="other"), "is no report of fastdiff bench"),
        (damage(version=2), "version 2, 1 is read here"),
        (damage(runs=[{"date": "x"}]), "is damaged"),
        (damage(runs=7), "is damaged"),
        (lambda document: [document], "is no report"),
        (lambda document: document["runs"][0].pop("ceilings") and document, "is damaged"),
        (lambda document: document["runs"][0]["results"][0]["case"].update(x=1) or document, "is damaged"),
    ],
)
def test_files_that_are_no_reports(tmp_path: Path, change: Any, says: str) -> None:
    path = tmp_path / "report.json"
    save_report(Report((make_run(),)), path)
    path.write_text(json.dumps(change(json.loads(path.read_text()))))
    with pytest.raises(InputError, match=re.escape(says)) as caught:
        load_reports([path])
    assert "report.json" in str(caught.value)


def test_files_that_cannot_be_read_or_written(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be read"):
        load_reports([tmp_path / "none.json"])
    (tmp_path / "cut.json").write_text('{"format": ')
    with pytest.raises(InputError, match="not valid JSON"):
        load_reports([tmp_path / "cut.json"])
    with pytest.raises(OutputError, match="create it first"):
        check_writable(tmp_path / "none" / "report.json")
    with pytest.raises(OutputError, match="is a folder"):
        check_writable(tmp_path)


@pytest.mark.parametrize("value", [float("inf"), float("-inf"), float("nan")])
def test_what_json_does_not_have_is_refused_by_its_place(tmp_path: Path, value: float) -> None:
    path = tmp_path / "x.json"
    with pytest.raises(ValueError, match=re.escape(f"the document['rows'][1]['psnr'] is {value}")):
        write_json(path, {"rows": [{"psnr": 50.0}, {"psnr": value}]})
    assert not list(tmp_path.iterdir())
    write_json(path, {"rows": ({"psnr": 50.0}, {"psnr": None})})
    assert json.loads(path.read_text()) == {"rows": [{"psnr": 50.0}, {"psnr": None}]}


def test_full_size_figures_of_equal_pictures_are_json(tmp_path: Path) -> None:
    figures = FullReport()
    figures.add("m", "picture", float("inf"), "dB", "≥ 45")
    figures.add("m", "other", 61.25, "dB", "≥ 45")
    figures.write(tmp_path)

    def never(constant: str) -> None:
        raise AssertionError(f"{constant} is no JSON")

    rows = json.loads((tmp_path / "full.json").read_text(), parse_constant=never)["rows"]
    assert [row["value"] for row in rows] == [None, 61.25]
    table = (tmp_path / "full.md").read_text()
    assert "| m | picture | equal | ≥ 45 |\n| m | other | 61.25 dB | ≥ 45 |" in table
    figures.add("m", "error", float("nan"))
    with pytest.raises(ValueError, match="is nan"):
        figures.write(tmp_path)


def test_results_in_the_repository_are_json() -> None:
    def never(constant: str) -> None:
        raise AssertionError(f"{path}: {constant} is no JSON")

    paths = sorted((Path(__file__).parents[2] / "benchmarks" / "results").glob("*.json"))
    assert paths
    for path in paths:
        json.loads(path.read_text(encoding="utf-8"), parse_constant=never)


def test_merge_sorts_by_date_and_keeps_each_run_once() -> None:
    first, second = reports()
    merged = merge([second, first, second])
    assert [run.machine["cpu"] for run in merged.runs] == ["CPU <A> & co", "CPU B"]


def test_rate_is_against_the_ceiling_that_limits() -> None:
    run = make_run()
    result = run.results[0]
    # 2 GFLOP take 12.5 ms at 160 GFLOP/s, 40.5 MB take 2 ms at 20 GB/s: arithmetic limits
    found = rate(run, result, 10.0)
    assert found is not None
    assert (found.value, found.unit, found.share) == (pytest.approx(200), "GFLOP/s", pytest.approx(1.25))
    # a thousandth of the arithmetic: now the weights do
    found = rate(run, replace(result, flops=2_000_000), 10.0)
    assert found is not None
    assert (found.value, found.unit, found.share) == (pytest.approx(4.05), "GB/s", pytest.approx(0.2025))
    assert rate(run, run.results[1], 10.0) is None


def test_best_peer_is_no_engine_of_ours() -> None:
    result = make_run().results[0]
    best = best_peer(result)
    assert best is not None
    assert (best.name, best.ratio) == ("torch", 2.5)
    assert best_peer(make_run().results[1]) is None


def test_table_says_everything() -> None:
    text = "\n".join(report_lines(Report((make_run(),))))
    for part in (
        "CPU <A> & co, 2 threads, avx2, 0123456+",
        "matrix product 160 GFLOP/s, copy 20.0 GB/s",
        "scenes unet 64x96 batch 2: 2 GFLOP, 40 MB of weights",
        "200 GFLOP/s",
        "125%",
        "fastdiff:native is 2.50 x as fast as the fastest peer, torch",
        "inductor refused: its outputs differ: relative L2 error 2.0e-01",
        "openvino missing: openvino not installed: pip install 'fastdiff[bench]'",
        "86 dB",
    ):
        assert part in text, part
    row = next(line for line in text.splitlines() if line.startswith("torch"))
    assert row.split() == [
        *("torch", "25", "24.2", "37", "80", "GFLOP/s", "50%", "2.50", "123", "0.25", "1.00", "2.5e-07")
    ]


def test_comparison_puts_runs_side_by_side() -> None:
    lines = list(compare_lines(merge(reports())))
    assert lines[0].startswith("[1] CPU <A> & co")
    assert next(line for line in lines if line.startswith("torch")).split() == ["torch", "25", "12.5", "0.50"]
    # a case that only one run has
    first, second = reports()
    alone = Report((replace(second.runs[0], results=()),))
    lines = list(compare_lines(merge([first, alone])))
    assert next(line for line in lines if line.startswith("torch")).split() == ["torch", "25", "–", "–"]


def test_page_is_well_formed_and_loads_nothing() -> None:
    text = page(merge(reports()))
    root = ElementTree.fromstring(text.removeprefix("<!DOCTYPE html>\n"))
    tags = {element.tag for element in root.iter()}
    assert {"svg", "rect", "table", "style"} <= tags
    assert not tags & {"script", "link", "img", "iframe", "image", "use", "object"}
    attributes = {name for element in root.iter() for name in element.attrib}
    assert not attributes & {"src", "href", "srcset", "style", "onload"}
    assert "url(" not in text
    assert "@import" not in text
    assert "http" not in text
    words = "".join(root.itertext())
    assert "CPU <A> & co" in words, "names are escaped, not markup"
    assert "2.50 ×" in words
    assert "openvino missing" in words


def test_bars_are_as_long_as_their_medians() -> None:
    root = ElementTree.fromstring(page(Report((make_run(),))).removeprefix("<!DOCTYPE html>\n"))
    svg = next(element for element in root.iter() if element.tag == "svg")
    ours, theirs = (float(item.attrib["width"]) for item in svg if item.tag == "rect")
    assert theirs / ours == pytest.approx(2.5, rel=2e-3)  # widths are written with one decimal
