"""``fastdiff bench``: whole runs on the tiny model, comparing, and what is refused before any work."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest

from fastdiff.bench import Request, load_reports, run_suite, save_report, suite
from fastdiff.bench.case import Picture
from fastdiff.bench.ceilings import Ceilings
from fastdiff.bench.measure import Pace
from fastdiff.bench.report import Report
from tests.bench.made_up import make_run, reports
from tests.cli.run import interrupt_at, run_here, run_process

Capture = pytest.CaptureFixture[str]


def test_a_run_and_its_files(tiny_checkpoint: Path, tmp_path: Path) -> None:
    files = (tmp_path / "r.json", tmp_path / "r.html")
    options = ["--threads", "1", "--rounds", "2", "--modules", "text_encoder", "--measure", "run"]
    options += ["--against", "torch,onnxruntime", "--json", files[0], "--html", files[1]]
    outcome = run_process("bench", tiny_checkpoint, *options)
    assert (outcome.status, outcome.errors) == (0, ""), outcome
    assert "checkpoint text_encoder 32x32 batch 2" in outcome.output
    assert "as fast as the fastest peer" in outcome.output
    (report,) = load_reports([files[0]])
    (run,) = report.runs
    (result,) = run.results
    names = ["fastdiff:native", "torch", "onnxruntime"]
    assert [found.name for found in result.measurements] == names
    for found in result.measurements:
        assert found.status == "ok", found
        assert found.agreement is not None
        assert found.agreement.value < 1e-5
        assert found.spread is not None
        assert 0 < found.spread.p10 <= found.spread.median <= found.spread.p90
        assert found.base == names[0]
        assert found.cold_s is not None
        assert found.load_s is not None
        assert found.cold_s > found.load_s > 0
        assert found.peak_rss is not None
        assert found.peak_rss > 20_000_000
    assert run.machine["threads"] == 1
    assert run.ceilings.gemm > 1e9
    assert run.ceilings.copy > 1e8
    text = files[0].read_text() + files[1].read_text()
    assert str(tmp_path) not in text, "a report names no folder of the machine"


def test_whole_pictures(
    tiny_checkpoint: Path, tiny_native_engine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Warm and from the start of a process, of an engine that was given and of diffusers.

    What the machine can do at best is measured by the run above.
    """
    monkeypatch.setattr(suite, "_ceilings", lambda threads, folder, device: Ceilings(1e11, 1e10))
    request = Request(
        (str(tiny_checkpoint), str(tiny_native_engine)),
        against=("torch", "onnxruntime"),
        kinds=("picture", "cold"),
        threads=1,
        pace=Pace(rounds=1),
        picture=Picture(steps=3),
    )
    (run,) = run_suite([request]).runs
    assert [result.case.kind for result in run.results] == ["picture", "cold"]
    for result in run.results:
        ours, torch, other = result.measurements
        assert (ours.name, ours.status) == ("engine:tiny.fd", "ok"), ours
        assert ours.agreement is not None
        assert (ours.agreement.measure, ours.agreement.value >= 45) == ("psnr", True)
        assert torch.status == "ok", torch
        assert torch.agreement is not None
        assert torch.agreement.value == 100, "diffusers twice gives the same picture"
        assert (other.name, other.status) == ("onnxruntime", "missing")
        assert "whole pictures" in other.reason
    warm, cold = (result.measurements[0].spread for result in run.results)
    assert warm is not None
    assert cold is not None
    assert cold.median > warm.median


REFUSED: list[tuple[tuple[str, ...], tuple[str, ...]]] = [
    ((), ("nothing to measure", "sd15-unet")),
    (("scenes", "--against", "tensorflow"), ("unknown peer 'tensorflow'", "openvino")),
    (("scenes", "--devices", "cuda:0"), ("'cuda:0'", "give cpu or cuda")),
    (("scenes", "--devices", "cpu,cuda"), ("one device",)),
    (("scenes", "--measure", "step"), ("steps of scenes", "on cuda")),
    (("scenes", "--targets", "fast"), ("unknown target 'fast'",)),
    (("scenes", "--sizes", "256"), ("--sizes", "'256' is not a size such as 256x256")),
    (("scenes", "--sizes", "65x64"), ("height 65", "multiple of 16")),
    (("scenes", "--modules", "unet,,vae"), ("--modules", "not a list of names")),
    (("scenes", "--rounds", "0"), ("rounds is 0",)),
    (("scenes", "--seconds", "nan"), ("seconds is nan",)),
    (("scenes", "--threads", "0"), ("threads is 0",)),
    (("scenes", "--batch", "-1"), ("batch is -1",)),
    (("scenes", "--json", "no/such/folder/x.json"), ("no/such/folder", "create it first")),
    (("scenez",), ("scenez", "did you mean 'scenes'")),
    (("scenes", "--compare", "a.json"), ("--compare measures nothing",)),
    (("--compare", "a.json"), ("a.json", "cannot be read")),
]


@pytest.mark.parametrize(("words", "says"), REFUSED, ids=lambda value: " ".join(value)[:40] or "nothing")
def test_refused_before_anything_is_measured(
    capfd: Capture, words: tuple[str, ...], says: tuple[str, ...]
) -> None:
    run_here(capfd, "bench", *words).assert_refused(*says)


def test_interrupting_leaves_nothing(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C while a worker computes, as the progress on the terminal says."""
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setenv("TMPDIR", str(temporary))
    options = ["--threads", "1", "--modules", "text_encoder", "--measure", "run", "--against", "none"]
    outcome = interrupt_at("PyTorch's results", "bench", tiny_checkpoint, *options, cwd=tmp_path)
    assert outcome.status == 130
    assert outcome.errors.endswith("fastdiff: interrupted\n")
    assert "text_encoder 32x32" in outcome.errors
    assert list(temporary.iterdir()) == []


def test_missing_peers_are_named(capfd: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    find_spec = importlib.util.find_spec

    def without(name: str, *rest: Any) -> Any:
        return None if name == "openvino" else find_spec(name, *rest)

    monkeypatch.setattr(importlib.util, "find_spec", without)
    outcome = run_here(capfd, "bench", "scenes", "--against", "torch,openvino")
    outcome.assert_refused("peer 'openvino' cannot run here", "pip install 'fastdiff[bench]'")


def test_help_names_what_there_is(capfd: Capture) -> None:
    from fastdiff.bench.configs import PUBLISHED
    from fastdiff.bench.peers import PEERS
    from fastdiff.config import MODULES

    text = " ".join(run_here(capfd, "bench", "--help").output.split())
    # argparse breaks lines at hyphens
    assert all(name in text.replace("- ", "-") for name in (*PEERS, *PUBLISHED, *MODULES))


def test_compare(capfd: Capture, tmp_path: Path) -> None:
    for index, report in enumerate(reports()):
        save_report(report, tmp_path / f"{index}.json")
    files = [tmp_path / "0.json", tmp_path / "1.json"]
    outcome = run_here(
        capfd, "bench", "--compare", *files, "--json", tmp_path / "all.json", "--html", tmp_path / "all.html"
    )
    assert "[2] CPU B" in outcome.output
    assert len(load_reports([tmp_path / "all.json"])[0].runs) == 2
    assert "Runs side by side" in (tmp_path / "all.html").read_text()


def test_results_of_ours_that_disagree_are_an_error(capfd: Capture, tmp_path: Path) -> None:
    from dataclasses import replace

    run = make_run()
    wrong = replace(run.results[0].measurements[0], status="refused", reason="too far off")
    result = replace(run.results[0], measurements=(wrong,))
    save_report(Report((replace(run, results=(result,)),)), tmp_path / "wrong.json")
    outcome = run_here(capfd, "bench", "--compare", tmp_path / "wrong.json")
    assert outcome.status == 2
    assert "fastdiff:native refused: too far off" in outcome.errors
