"""A report as one HTML page: tables and inline SVG plots, no scripts, nothing loaded from elsewhere.

The page is well-formed XML as well, so that anything can read it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from html import escape

from fastdiff.bench.measure import Measurement
from fastdiff.bench.peers import PEERS, is_peer
from fastdiff.bench.report import Report, Result, Run, rate
from fastdiff.bench.table import heading, verdict

__all__ = ["page"]

_STYLE = """
:root { color-scheme: light dark; --ours: #2f6fde; --theirs: #9aa3ad; --line: #8885; --muted: #7a828c; }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.15rem; margin-top: 2.5rem; }
h3 { font-size: 1rem; margin: 1.8rem 0 .3rem; }
p { margin: .3rem 0; } .muted { color: var(--muted); }
table { border-collapse: collapse; width: 100%; font-size: .85rem; font-variant-numeric: tabular-nums; }
th, td { text-align: right; padding: .2rem .5rem; border-bottom: 1px solid var(--line); }
td { white-space: nowrap; }
th { font-weight: 600; } th:first-child, td:first-child { text-align: left; }
.scroll { overflow-x: auto; }
svg { width: 100%; height: auto; display: block; margin: .4rem 0; }
svg text { font: 12px system-ui, sans-serif; fill: currentColor; }
"""
_WIDTH, _ROW, _LABEL, _VALUE = 800, 26, 210, 150


def page(report: Report) -> str:
    """The whole page as text."""
    body = [f"<h1>fastdiff bench</h1><p class='muted'>{_legend()}</p>"]
    if len(report.runs) > 1:
        body += _comparison(report.runs)
    for run in report.runs:
        body += _run(run)
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"/>'
        '<meta name="viewport" content="width=device-width, initial-scale=1"/>'
        f"<title>fastdiff bench</title><style>{_STYLE}</style></head>\n<body>\n"
        + "\n".join(body)
        + "\n</body></html>\n"
    )


def _legend() -> str:
    return escape(
        "Bars are medians in milliseconds, whiskers the 10th and 90th percentile, dots single calls; shorter "
        "is faster. All contestants ran in turns on the same weights and inputs, and their outputs agree. "
        "Ratio: median over that of the first row. Of peak: share of the matrix product or the copy, "
        "whichever limits the case; operations are those of direct convolutions: Winograd can exceed 100 %."
    )


def _run(run: Run) -> Iterator[str]:
    """One machine: what it is, then its cases."""
    versions = ", ".join(f"{name} {version}" for name, version in sorted(run.libraries.items()))
    machine = run.machine
    facts = [
        f"fastdiff {run.fastdiff.get('version', '')}, commit {run.fastdiff.get('commit') or 'unknown'}",
        f"{machine.get('cores', '?')} cores, {machine.get('memory', 0) / 1e9:.0f} GB, "
        f"{machine.get('system', '')} {machine.get('architecture', '')}, Python {machine.get('python', '')}",
        f"matrix product {run.ceilings.gemm / 1e9:.0f} GFLOP/s, copy {run.ceilings.copy / 1e9:.1f} GB/s",
        versions,
    ]
    yield f"<h2>{escape(run.title)}</h2><p>{escape(run.date)}</p>"
    yield from (f"<p class='muted'>{escape(fact)}</p>" for fact in facts)
    for result in run.results:
        yield f"<h3>{escape(heading(result))}</h3>"
        if line := verdict(result):
            yield f"<p>{escape(line)}</p>"
        timed = [found for found in result.measurements if found.spread]
        if timed:
            yield _bars(result.case.label, [(m.name, m, not is_peer(m.name)) for m in timed])
            yield _results_table(run, result, timed)
        for found in result.measurements:
            if found.status != "ok":
                yield f"<p class='muted'>{escape(f'{found.name} {found.status}: {found.reason}')}</p>"


def _comparison(runs: Sequence[Run]) -> Iterator[str]:
    """Per case, the contestants of every run on one scale."""
    yield "<h2>Runs side by side</h2>"
    for index, run in enumerate(runs):
        yield f"<p class='muted'>{escape(f'[{index + 1}] {run.title}, {run.date}')}</p>"
    for label in dict.fromkeys(result.case.label for run in runs for result in run.results):
        rows = [
            (f"[{index + 1}] {found.name}", found, not is_peer(found.name))
            for index, run in enumerate(runs)
            for result in run.results
            if result.case.label == label
            for found in result.measurements
            if found.spread
        ]
        if rows:
            yield f"<h3>{escape(label)}</h3>"
            yield _bars(label, rows)


def _bars(title: str, rows: Sequence[tuple[str, Measurement, bool]]) -> str:
    """A horizontal bar per row with whiskers and the calls as dots."""
    longest = max(found.spread.p90 for _, found, _ in rows if found.spread)
    scale = (_WIDTH - _LABEL - _VALUE) / max(longest, 1e-9)
    height = _ROW * len(rows) + 4
    parts = [f'<svg viewBox="0 0 {_WIDTH} {height}" role="img"><title>{escape(title)}</title>']
    for index, (name, found, ours) in enumerate(rows):
        assert found.spread is not None
        top = index * _ROW + 4
        middle = top + (_ROW - 8) / 2
        low, high = (_LABEL + scale * value for value in (found.spread.p10, found.spread.p90))
        color = "var(--ours)" if ours else "var(--theirs)"
        width = max(scale * found.spread.median, 1.0)
        parts.append(
            f'<text x="{_LABEL - 8}" y="{middle + 4:.1f}" text-anchor="end">{escape(name)}</text>'
            f'<rect x="{_LABEL}" y="{top}" width="{width:.1f}" height="{_ROW - 8}" fill="{color}" rx="2"/>'
        )
        # calls beyond the whiskers may be far out: they would leave the drawing
        dots = [value for value in found.samples_ms if value <= longest]
        parts += [
            f'<circle cx="{_LABEL + scale * value:.1f}" cy="{middle:.1f}" r="1.6" fill="currentColor" '
            'fill-opacity="0.35"/>'
            for value in dots[:: max(1, len(dots) // 40)]
        ]
        parts.append(
            f'<path d="M{low:.1f} {middle:.1f}H{high:.1f}M{low:.1f} {middle - 4:.1f}v8M{high:.1f} '
            f'{middle - 4:.1f}v8" stroke="currentColor" fill="none"/>'
            f'<text x="{max(high, _LABEL + width) + 8:.1f}" y="{middle + 4:.1f}">{_value(found)}</text>'
        )
    return "".join(parts) + "</svg>"


def _value(found: Measurement) -> str:
    assert found.spread is not None
    ratio = f" · {found.ratio:.2f} ×" if found.ratio is not None and found.base != found.name else ""
    return escape(f"{found.spread.median:.4g} ms{ratio}")


def _results_table(run: Run, result: Result, timed: Sequence[Measurement]) -> str:
    header = (
        *("contestant", "median ms", "p10", "p90", "calls", "rate", "of peak", "ratio"),
        *("peak memory", "load", "first call", "cold start", "error"),
    )
    rows = ["".join(f"<th>{escape(name)}</th>" for name in header)]
    for found in timed:
        assert found.spread is not None
        speed = rate(run, result, found.spread.median)
        cells = (
            f"{found.name} {found.version}".strip(),
            *(f"{value:.4g}" for value in (found.spread.median, found.spread.p10, found.spread.p90)),
            str(found.spread.calls),
            f"{speed.value:.4g} {speed.unit}" if speed else "–",
            f"{speed.share:.0%}" if speed else "–",
            f"{found.ratio:.2f}" if found.ratio is not None else "–",
            f"{found.peak_rss / 1e6:.0f} MB" if found.peak_rss else "–",
            *(
                f"{value:.2f} s" if value is not None else "–"
                for value in (found.load_s, found.first_s, found.cold_s)
            ),
            _agreement(found),
        )
        about = PEERS[found.name].about if found.name in PEERS else "fastdiff"
        first, *rest = (escape(cell) for cell in cells)
        rows.append(
            f"<td title='{escape(about)}'>{first}</td>" + "".join(f"<td>{cell}</td>" for cell in rest)
        )
    return f"<div class='scroll'><table>{''.join(f'<tr>{row}</tr>' for row in rows)}</table></div>"


def _agreement(found: Measurement) -> str:
    if found.agreement is None:
        return "–"
    if found.agreement.measure == "psnr":
        return f"{found.agreement.value:.1f} dB"
    return f"{found.agreement.value:.1e}"
