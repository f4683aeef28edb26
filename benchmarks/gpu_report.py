"""pytest plugin (``-p gpu_report``): one line of JSON per test in $GPU_REPORT, written as it happens.

A test that was started and has no second line hung or took its process down. With ``GPU_SHARD=1/4`` it
leaves every fourth test, from the second on: processes share a file.
"""

from __future__ import annotations

import json
import os
from typing import Any


def _write(**fields: Any) -> None:
    with open(os.environ["GPU_REPORT"], "a", encoding="utf-8") as file:  # noqa: PTH123 (appended to)
        file.write(json.dumps(fields) + "\n")


def pytest_collection_modifyitems(config: Any, items: list[Any]) -> None:
    place, _, count = os.environ.get("GPU_SHARD", "0/1").partition("/")
    marked = [item for item in items if item.get_closest_marker("gpu") is not None]
    items[:] = marked[int(place) :: int(count)] if int(count) > 1 else items


def pytest_runtest_logstart(nodeid: str, location: Any) -> None:
    _write(test=nodeid, outcome="hung")


def pytest_runtest_logreport(report: Any) -> None:
    """The call decides; a failure while setting up or tearing down does so too."""
    if report.when == "call" or report.outcome != "passed":
        text = report.longreprtext if report.outcome == "failed" else ""
        if report.outcome == "skipped" and isinstance(report.longrepr, tuple):
            text = str(report.longrepr[2])
        _write(test=report.nodeid, outcome=report.outcome, text=text + _captured(report))


def pytest_collectreport(report: Any) -> None:
    if report.failed:
        _write(test=f"{report.nodeid} (collecting)", outcome="failed", text=report.longreprtext)


def _captured(report: Any) -> str:
    return "".join(f"\n--- {name}\n{text}" for name, text in report.sections) if report.failed else ""
