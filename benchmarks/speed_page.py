"""The table and the plot of README.md's "How fast", from results of ``fastdiff bench``.

``python benchmarks/speed_page.py benchmarks/results/speed-….json`` after
``python benchmarks/suites.py speed`` has measured them.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from fastdiff.bench.report import Result, Run, load_reports, write_text
from fastdiff.errors import FastdiffError

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "README.md"
PLOT = ROOT / "docs" / "speed-cpu.png"
BEGIN, END = "<!-- measured -->\n", "<!-- end measured -->"

OURS = "fastdiff:native"
PEERS = {
    "openvino": "OpenVINO",
    "onnxruntime": "ONNX Runtime",
    "inductor": "Inductor",
    "torch": "PyTorch",
}
"""Columns beside fastdiff's; PyTorch's is the faster of its two memory formats."""
PYTORCH = ("torch", "torch-channels-last")


@dataclass(frozen=True)
class Row:
    """One work: seconds and ratios to fastdiff's by column, as far as a contestant was timed."""

    work: str
    seconds: float
    ratios: dict[str, float]


def works(run: Run) -> list[Row]:
    """The rows of a run: the results in which fastdiff and a peer were timed."""
    rows = []
    for result in run.results:
        found = {one.name: one for one in result.measurements if one.ratio is not None and one.spread}
        if OURS not in found or result.case.kind not in ("run", "picture"):
            continue
        spread = found[OURS].spread
        assert spread is not None
        ratios: dict[str, float] = {}
        for name in PEERS:
            each = [found[one].ratio for one in (PYTORCH if name == "torch" else (name,)) if one in found]
            if each:
                ratios[name] = min(ratio for ratio in each if ratio is not None)
        if ratios:
            rows.append(Row(_work(result), spread.median / 1e3, ratios))
    return rows


def _work(result: Result) -> str:
    case = result.case
    model = {"sd15-unet": "SD 1.5 U-Net", "sd15-vae-decoder": "SD 1.5 VAE decoder"}.get(case.model)
    size = f"{case.height} x {case.width}"
    if case.kind == "picture":
        return f"`{case.model}`, prompt to picture, 20 steps"
    guided = ", a guided step" if case.module == "unet" and case.batch == 2 else ""
    return f"{model or f'`{case.model}` {case.module}'} at {size}{guided}"


def table(rows: Sequence[Row]) -> list[str]:
    """Lines of Markdown: fastdiff's time, then how many times as long the others take."""
    shown = [name for name in PEERS if any(name in row.ratios for row in rows)]
    lines = [
        "| work | fastdiff | " + " | ".join(PEERS[name] for name in shown) + " |",
        "|---|---:" + "|---:" * len(shown) + "|",
    ]
    for row in rows:
        cells = [f"{row.ratios[name]:.1f} x" if name in row.ratios else "" for name in shown]
        lines.append(f"| {row.work} | {_seconds(row.seconds)} | " + " | ".join(cells) + " |")
    return lines


def _seconds(value: float) -> str:
    return f"{value:.2f} s" if value >= 1 else f"{value * 1e3:.{0 if value >= 0.1 else 1}f} ms"


def write_page(run: Run, rows: Sequence[Row]) -> None:
    """Put the table between the marks of README.md."""
    head, rest = PAGE.read_text(encoding="utf-8").split(BEGIN)
    machine = f"{run.machine['cpu']}, {run.machine['isa']}, {run.machine['threads']} threads, float32"
    versions = ", ".join(
        f"{title} {run.libraries[package]}"
        for package, title in (
            ("openvino", "OpenVINO"),
            ("onnxruntime", "ONNX Runtime"),
            ("torch", "PyTorch"),
        )
        if package in run.libraries
    )
    said = f"\n{machine}; {versions}. Peers: how many times as long.\n\n"
    text = head + BEGIN + said + "\n".join(table(rows)) + "\n\n" + END + rest.split(END)[1]
    write_text(PAGE, text)


def plot(rows: Sequence[Row], path: Path) -> None:
    """Bars of time against fastdiff's, a group for each work."""
    from matplotlib.figure import Figure

    shown = [name for name in PEERS if any(name in row.ratios for row in rows)]
    figure = Figure(figsize=(8, 0.35 * len(rows) * (len(shown) + 2)), layout="constrained")
    axes = figure.subplots()
    names, height = ["fastdiff", *(PEERS[name] for name in shown)], 1 / (len(shown) + 2)
    colours = ["#d1495b", "#30638e", "#6a994e", "#edae49", "#8d99ae"]
    for place, (name, colour) in enumerate(zip(names, colours, strict=False)):
        values = [1.0 if place == 0 else row.ratios.get(shown[place - 1], 0.0) for row in rows]
        at = [index + place * height for index in range(len(rows))]
        bars = axes.barh(at, values, height, color=colour, label=name)
        labels = [
            _seconds(row.seconds * value) if value else "" for row, value in zip(rows, values, strict=True)
        ]
        axes.bar_label(bars, labels, padding=3, fontsize=8)
    middle = height * len(shown) / 2
    axes.set_yticks(
        [index + middle for index in range(len(rows))], [row.work.replace("`", "") for row in rows]
    )
    axes.invert_yaxis()
    axes.set(xlabel="time, as a multiple of fastdiff's")
    axes.margins(x=0.12)
    axes.grid(axis="x", alpha=0.3)
    axes.set_axisbelow(True)
    axes.legend(fontsize=8, loc="lower right")
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("results", type=Path, help="JSON of one run")
    options = parser.parse_args()
    try:
        (report,) = load_reports([options.results])
        if len(report.runs) != 1 or not (rows := works(report.runs[0])):
            raise SystemExit(f"{options.results}: wanted one run with fastdiff and a peer in it")
        write_page(report.runs[0], rows)
        plot(rows, PLOT)
    except FastdiffError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(1) from error


if __name__ == "__main__":
    main()
