"""The suites of suites.toml: the same requests on every machine, with results to commit.

``python benchmarks/suites.py cpu --threads 2`` measures and writes ``<suite>-<cpu>-<threads>t.json`` and
``.html`` into ``results/``; ``fastdiff bench --compare`` puts files of several machines side by side.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
import tomllib
from pathlib import Path
from typing import Any

from fastdiff.bench import Request, run_suite, save_report
from fastdiff.bench.html import page
from fastdiff.bench.measure import Pace
from fastdiff.bench.report import write_text
from fastdiff.bench.table import report_lines
from fastdiff.errors import FastdiffError

HERE = Path(__file__).resolve().parent
NAMES = {"measure": "kinds"}
"""Options of the command that are called otherwise in a Request."""


def requests(name: str, threads: int, pace: Pace) -> list[Request]:
    """The requests of a suite. Raises SystemExit for an unknown name or key."""
    suites: dict[str, list[dict[str, Any]]] = tomllib.loads((HERE / "suites.toml").read_text())
    if name not in suites:
        raise SystemExit(f"unknown suite {name!r}: known are {', '.join(suites)}")
    made = []
    for table in suites[name]:
        options = {
            NAMES.get(key, key): tuple(value) if isinstance(value, list) else value
            for key, value in table.items()
        }
        if "sizes" in options:
            options["sizes"] = tuple(tuple(map(int, size.split("x"))) for size in options["sizes"])
        made.append(Request(**options, threads=threads, pace=pace))
    return made


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("suite")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--output", type=Path, default=HERE / "results", help="folder (benchmarks/results)")
    options = parser.parse_args()
    made = requests(options.suite, options.threads, Pace(options.rounds, options.seconds))
    try:
        report = run_suite(made, lambda what, done, total: print(f"[{done}/{total}] {what}", file=sys.stderr))
        options.output.mkdir(parents=True, exist_ok=True)
        cpu = re.sub(r"[^a-z0-9]+", "-", str(report.runs[0].machine["cpu"]).lower()).strip("-")
        stem = options.output / f"{options.suite}-{cpu}-{options.threads}t"
        save_report(report, f"{stem}.json")
        write_text(f"{stem}.html", page(report))
    except FastdiffError as error:
        raise SystemExit(f"error: {error}") from error
    print("\n".join(report_lines(report)))
    print(f"{stem}.json, {stem}.html")


if __name__ == "__main__":
    main()
