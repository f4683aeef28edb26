"""A report as text: per case a table of its contestants, and several runs side by side."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from fastdiff.bench.case import KINDS
from fastdiff.bench.measure import Measurement
from fastdiff.bench.report import Report, Result, Run, best_peer, rate

__all__ = ["compare_lines", "heading", "report_lines", "verdict"]

_COLUMNS = (
    "contestant",
    "ms",
    "p10",
    "p90",
    "rate",
    "of peak",
    "ratio",
    "peak MB",
    "load s",
    "cold s",
    "error",
)


def report_lines(report: Report) -> Iterator[str]:
    """Every run with its machine, ceilings and cases."""
    for run in report.runs:
        yield run.title
        gemm, copy = run.ceilings.gemm / 1e9, run.ceilings.copy / 1e9
        yield f"matrix product {gemm:.0f} GFLOP/s, copy {copy:.1f} GB/s, measured in the same run"
        for result in run.results:
            yield ""
            yield heading(result)
            yield from _table([_COLUMNS, *(_row(run, result, m) for m in result.measurements if m.spread)])
            for found in result.measurements:
                if found.status != "ok":
                    yield f"{found.name} {found.status}: {found.reason}"
            if line := verdict(result):
                yield line
        yield ""


def heading(result: Result) -> str:
    """The case and what it takes: ``scenes unet 64x64 batch 2: 1.6 GFLOP, 44 MB of weights``."""
    if not result.flops:
        return f"{result.case.label}: {KINDS[result.case.kind]}"
    counts = f"{result.flops / 1e9:.3g} GFLOP, {result.weights / 1e6:.0f} MB of weights"
    about = f"{KINDS[result.case.kind]}, " if result.case.kind != "run" else ""
    return f"{result.case.label}: {about}{counts}"


def verdict(result: Result) -> str:
    """How the first contestant does against the fastest peer; empty when there is no such pair."""
    best = best_peer(result)
    if best is None or best.ratio is None or best.base == best.name:
        return ""
    return f"{best.base} is {best.ratio:.2f} x as fast as the fastest peer, {best.name}"


def compare_lines(report: Report) -> Iterator[str]:
    """Medians in milliseconds of all runs side by side; ``÷`` is a column's share of the first run's time."""
    runs = report.runs
    for index, run in enumerate(runs):
        yield f"[{index + 1}] {run.title}, {run.date}"
    for label, results in _by_case(runs).items():
        yield ""
        yield label
        names = list(dict.fromkeys(m.name for result in results if result for m in result.measurements))
        header = ["contestant"]
        for index in range(len(runs)):
            header += [f"[{index + 1}] ms", *([f"÷ [{1}]"] if index else [])]
        rows = [tuple(header)]
        for name in names:
            medians = [_median(result, name) for result in results]
            row = [name]
            for index, median in enumerate(medians):
                row.append(_number(median))
                if index:
                    row.append(f"{median / medians[0]:.2f}" if median and medians[0] else "–")
            rows.append(tuple(row))
        yield from _table(rows)


def _by_case(runs: Sequence[Run]) -> dict[str, list[Result | None]]:
    """For each case of any run, its result in every run."""
    labels = dict.fromkeys(result.case.label for run in runs for result in run.results)
    return {
        label: [next((r for r in run.results if r.case.label == label), None) for run in runs]
        for label in labels
    }


def _median(result: Result | None, name: str) -> float | None:
    found = next((m for m in result.measurements if m.name == name), None) if result else None
    return found.spread.median if found and found.spread else None


def _row(run: Run, result: Result, found: Measurement) -> tuple[str, ...]:
    assert found.spread is not None
    speed = rate(run, result, found.spread.median)
    return (
        found.name,
        *(_number(value) for value in (found.spread.median, found.spread.p10, found.spread.p90)),
        f"{speed.value:.3g} {speed.unit}" if speed else "–",
        f"{speed.share:.0%}" if speed else "–",
        f"{found.ratio:.2f}" if found.ratio is not None else "–",
        f"{found.peak_rss / 1e6:.0f}" if found.peak_rss else "–",
        f"{found.load_s:.2f}" if found.load_s is not None else "–",
        f"{found.cold_s:.2f}" if found.cold_s is not None else "–",
        _error(found),
    )


def _error(found: Measurement) -> str:
    if found.agreement is None:
        return "–"
    if found.agreement.measure == "psnr":
        return f"{found.agreement.value:.0f} dB"
    return f"{found.agreement.value:.1e}"


def _number(value: float | None) -> str:
    if value is None:
        return "–"
    return f"{value:.0f}" if value >= 1000 else f"{value:.4g}"


def _table(rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """Columns as wide as their widest cell, the first one to the left; nothing for a header alone."""
    if len(rows) < 2:
        return
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        cells = [row[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True))]
        yield "  ".join(cells).rstrip()
