"""Results as data: one run on one machine, several runs in one report, and the JSON that holds them."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from fastdiff.bench.agreement import Agreement
from fastdiff.bench.case import Case
from fastdiff.bench.ceilings import Ceilings
from fastdiff.bench.measure import Measurement, Spread
from fastdiff.bench.peers import is_peer
from fastdiff.errors import InputError, OutputError

__all__ = [
    "FORMAT_VERSION",
    "Rate",
    "Report",
    "Result",
    "Run",
    "best_peer",
    "check_writable",
    "load_reports",
    "merge",
    "rate",
    "save_report",
    "write_json",
    "write_text",
]

_FORMAT = "fastdiff-bench"
FORMAT_VERSION = 1
"""Version of the JSON that this fastdiff writes and reads."""

_MOST_SAMPLES = 200
"""Samples stored per contestant; of more, evenly spaced ones. The percentiles are of all."""


@dataclass(frozen=True)
class Result:
    """One case and its contestants, fastdiff's first. ``flops``, and in bytes ``weights`` and ``arrays``
    (inputs and outputs), are of one call; 0 for pictures.
    """

    case: Case
    flops: int
    weights: int
    arrays: int
    measurements: tuple[Measurement, ...]


@dataclass(frozen=True)
class Run:
    """What one command measured on one machine: see ``fastdiff.bench.machine`` for the descriptions."""

    date: str
    fastdiff: dict[str, str]
    libraries: dict[str, str]
    machine: dict[str, Any]
    settings: dict[str, Any]
    ceilings: Ceilings
    results: tuple[Result, ...]

    @property
    def title(self) -> str:
        """``AMD EPYC, 2 threads, avx512, 062698b``."""
        machine = self.machine
        threads = machine.get("threads", 0)
        gpu = machine.get("gpu", {})
        parts = [
            *((gpu.get("name"), gpu.get("driver") and f"driver {gpu['driver']}") if gpu else ()),
            machine.get("cpu") or "unknown CPU",
            f"{threads} thread{'' if threads == 1 else 's'}",
            machine.get("isa"),
            _short_commit(self.fastdiff) or f"fastdiff {self.fastdiff.get('version', '')}",
        ]
        return ", ".join(str(part) for part in parts if part)


@dataclass(frozen=True)
class Report:
    """Runs, on one machine or many."""

    runs: tuple[Run, ...]


@dataclass(frozen=True)
class Rate:
    """A contestant's speed against the ceiling that limits the case: the matrix product or the copy.

    ``value`` in GFLOP/s or GB/s of arithmetic or weights and arrays; ``share`` of the ceiling, which
    algorithms that need fewer operations than the count can exceed.
    """

    value: float
    unit: str
    share: float


def rate(run: Run, result: Result, median_ms: float) -> Rate | None:
    """The rate of one call; None for cases that have no count of operations, and for opening."""
    if not result.flops or result.case.kind not in ("run", "step"):
        return None
    moved, seconds = result.weights + result.arrays, median_ms / 1e3
    if result.flops / run.ceilings.gemm >= moved / run.ceilings.copy:
        return Rate(result.flops / seconds / 1e9, "GFLOP/s", result.flops / seconds / run.ceilings.gemm)
    return Rate(moved / seconds / 1e9, "GB/s", moved / seconds / run.ceilings.copy)


def best_peer(result: Result) -> Measurement | None:
    """The fastest peer against the first contestant of its group; None when no peer was timed."""
    peers = [found for found in result.measurements if is_peer(found.name) and found.ratio is not None]
    return min(peers, key=lambda found: found.ratio or 0.0, default=None)


def merge(reports: Iterable[Report]) -> Report:
    """All runs in one report, by date; a run that occurs twice is kept once."""
    runs: list[Run] = []
    for report in reports:
        runs += [run for run in report.runs if run not in runs]
    return Report(tuple(sorted(runs, key=lambda run: run.date)))


def save_report(report: Report, path: str | os.PathLike[str]) -> None:
    """Write the report as JSON. Raises OutputError."""
    write_json(path, {"format": _FORMAT, "version": FORMAT_VERSION, **asdict(_thinned(report))})


def check_writable(path: str | os.PathLike[str]) -> None:
    """Raises OutputError for a file that ``write_text`` could not write, before anything is measured."""
    target = Path(path)
    if target.is_dir():
        raise OutputError(f"{target}: is a folder; give a file")
    if not target.parent.is_dir():
        raise OutputError(f"{target}: folder {target.parent} does not exist; create it first")
    if not os.access(target.parent, os.W_OK):
        raise OutputError(f"{target}: folder {target.parent} cannot be written; give another file")


def write_json(path: str | os.PathLike[str], document: object) -> None:
    """Write a document as JSON, complete or not at all.

    Raises OutputError, and ValueError with its place for NaN or infinity, which JSON does not have.
    """
    if (place := _not_finite(document)) is not None:
        raise ValueError(f"{path}: {place}, which JSON does not have: write None, or what it stands for")
    write_text(path, json.dumps(document, indent=1, allow_nan=False) + "\n")


def _not_finite(value: object, place: str = "the document") -> str | None:
    """Where in a document the first NaN or infinity is, and which; None for none."""
    if isinstance(value, float) and not math.isfinite(value):
        return f"{place} is {value}"
    items: Iterable[tuple[object, object]] = ()
    if isinstance(value, Mapping):
        items = value.items()
    elif isinstance(value, (list, tuple)):
        items = enumerate(value)
    return next((found for key, item in items if (found := _not_finite(item, f"{place}[{key!r}]"))), None)


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write a file that is complete or not there. Raises OutputError."""
    target = Path(path)
    partial = target.with_name(f".{target.name}.partial")
    try:
        partial.write_text(text, encoding="utf-8")
        partial.replace(target)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise OutputError(f"{target}: cannot be written ({error.strerror}); give another file") from error


def load_reports(paths: Sequence[str | os.PathLike[str]]) -> list[Report]:
    """Read reports. Raises InputError for a file that is missing or none, or of another version."""
    return [_load(Path(path)) for path in paths]


def _load(path: Path) -> Report:
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); give a file of --json") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: is not valid JSON ({error}); give a file of --json") from error
    if not isinstance(document, dict) or document.get("format") != _FORMAT:
        raise InputError(f"{path}: is no report of fastdiff bench; give a file of --json")
    if (version := document.get("version")) != FORMAT_VERSION:
        raise InputError(
            f"{path}: is a report of version {version!r}, {FORMAT_VERSION} is read here: measure again"
        )
    try:
        return Report(tuple(_run(item) for item in document["runs"]))
    except (KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{path}: is damaged ({type(error).__name__}: {error}); measure again") from error


def _run(item: dict[str, Any]) -> Run:
    results = tuple(_result(result) for result in item["results"])
    return Run(**{**item, "ceilings": Ceilings(**item["ceilings"]), "results": results})


def _result(item: dict[str, Any]) -> Result:
    measurements = tuple(_measurement(found) for found in item["measurements"])
    return Result(**{**item, "case": Case(**item["case"]), "measurements": measurements})


def _measurement(item: dict[str, Any]) -> Measurement:
    changes: dict[str, Any] = {"samples_ms": tuple(item["samples_ms"])}
    if item["agreement"] is not None:
        changes["agreement"] = Agreement(**item["agreement"])
    if item["spread"] is not None:
        changes["spread"] = Spread(**item["spread"])
    return Measurement(**{**item, **changes})


def _thinned(report: Report) -> Report:
    """The report with fewer samples, rounded to microseconds."""

    def thin(found: Measurement) -> Measurement:
        step = max(1, -(-len(found.samples_ms) // _MOST_SAMPLES))
        return replace(found, samples_ms=tuple(round(value, 3) for value in found.samples_ms[::step]))

    def thin_result(result: Result) -> Result:
        return replace(result, measurements=tuple(thin(found) for found in result.measurements))

    return Report(
        tuple(
            replace(run, results=tuple(thin_result(result) for result in run.results)) for run in report.runs
        )
    )


def _short_commit(software: dict[str, str]) -> str:
    """Seven digits and the mark of changed files."""
    commit = software.get("commit", "")
    return commit[:7] + ("+" if commit.endswith("+") else "")
