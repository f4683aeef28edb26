"""The table and the plot of README.md's "How fast", from results of ``fastdiff bench``.

``python benchmarks/speed_page.py [RESULTS.json …]``: those of one machine, by default the committed ones;
``python benchmarks/suites.py cpu`` measures such.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from fastdiff.bench.report import Result, Run, load_reports, write_text
from fastdiff.errors import FastdiffError

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "README.md"
PLOT = ROOT / "docs" / "speed-cpu.png"
RESULTS = tuple(
    ROOT / "benchmarks" / "results" / name
    for name in ("sd15-unet.json", "sd15-vae-decoder.json", "scenes-unet.json")
)
BEGIN, END = "<!-- measured -->\n", "<!-- end measured -->"

OURS = "fastdiff:native"
PEERS = {
    "openvino": "OpenVINO",
    "onnxruntime": "ONNX Runtime",
    "inductor": "Inductor",
    "torch": "PyTorch",
}
"""Columns beside fastdiff's; PyTorch's is the faster of its two memory formats."""
COLOURS = dict(
    zip(("fastdiff", *PEERS.values()), ("#d1495b", "#30638e", "#6a994e", "#edae49", "#8d99ae"), strict=True)
)
PYTORCH = ("torch", "torch-channels-last")


@dataclass(frozen=True)
class Row:
    """One work: seconds and ratios to fastdiff's by column, as far as a contestant was timed."""

    work: str
    seconds: float
    ratios: dict[str, float]


def one_run(files: Sequence[Path]) -> Run:
    """The runs of some files as one. Raises SystemExit unless machine, threads and libraries are the same."""
    first, *others = (run for report in load_reports(list(files)) for run in report.runs)
    for other in others:
        for what in ("machine", "libraries"):
            if (found := getattr(other, what)) != (wanted := getattr(first, what)):
                raise SystemExit(
                    f"results of different {what}, {found} and {wanted}: give those of one alone"
                )
    return replace(first, results=tuple(result for run in (first, *others) for result in run.results))


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


def page(text: str, run: Run, rows: Sequence[Row]) -> str:
    """README.md with the table of a run between its marks."""
    head, rest = text.split(BEGIN)
    machine = f"{run.machine['cpu']}, {run.machine['isa']}, {run.machine['threads']} threads, float32"
    versions = ", ".join(
        f"{title} {run.libraries[name]}" for name, title in PEERS.items() if name in run.libraries
    )
    said = f"\n{machine}; {versions}. Of the others, how many times as long:\n\n"
    return head + BEGIN + said + "\n".join(table(rows)) + "\n\n" + END + rest.split(END)[1]


def plot(rows: Sequence[Row], path: Path) -> None:
    """Bars of time against fastdiff's, a group for each work."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 0.25 * sum(len(row.ratios) + 2 for row in rows)), layout="constrained")
    axes = figure.subplots()
    middles, top = [], 0
    for row in rows:
        bars = [("fastdiff", 1.0), *((PEERS[name], row.ratios[name]) for name in PEERS if name in row.ratios)]
        for place, (name, ratio) in enumerate(bars, top):
            bar = axes.barh(place, ratio, 1.0, color=COLOURS[name])
            axes.bar_label(bar, [f"{name} {_seconds(row.seconds * ratio)}"], padding=3, fontsize=8)
        middles.append(top + (len(bars) - 1) / 2)
        top += len(bars) + 1
    axes.set_yticks(middles, [row.work.replace("`", "").replace(", ", ",\n") for row in rows])
    axes.invert_yaxis()
    axes.set(xlabel="time, as a multiple of fastdiff's")
    axes.margins(x=0.28, y=0.02)
    axes.grid(axis="x", alpha=0.3)
    axes.set_axisbelow(True)
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("results", type=Path, nargs="*", default=RESULTS, help="JSON of fastdiff bench")
    options = parser.parse_args()
    try:
        run = one_run(options.results)
        if not (rows := works(run)):
            raise SystemExit("no result in which fastdiff and a peer were timed: give others")
        write_text(PAGE, page(PAGE.read_text(encoding="utf-8"), run, rows))
        plot(rows, PLOT)
    except FastdiffError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(1) from error


if __name__ == "__main__":
    main()
