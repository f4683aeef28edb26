"""What the full-size tests measured, as JSON and as a table in Markdown."""

from __future__ import annotations

import math
import os
import platform
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path

from fastdiff.bench.report import write_json

__all__ = ["Report", "Row"]

_LIBRARIES = ("fastdiff", "torch", "diffusers", "transformers")


@dataclass(frozen=True)
class Row:
    """One figure: of which model, what, its value and unit, and the bar that it was held to, if any.

    Infinite is the PSNR of equal pictures.
    """

    model: str
    what: str
    value: float
    unit: str = ""
    bar: str = ""

    def __str__(self) -> str:
        if self.value == math.inf:
            return "equal"
        text = f"{self.value:.2e}" if 0 < self.value < 1e-2 else f"{self.value:.4g}"
        return f"{text} {self.unit}".strip()


@dataclass
class Report:
    """The rows of a run, in their order."""

    rows: list[Row] = field(default_factory=list)

    def add(self, model: str, what: str, value: float, unit: str = "", bar: str = "") -> None:
        """Append a figure."""
        self.rows.append(Row(model, what, value, unit, bar))

    def write(self, folder: Path) -> None:
        """Write ``full.json`` and ``full.md``."""
        folder.mkdir(parents=True, exist_ok=True)
        machine = {
            "processor": platform.machine(),
            "cores": len(os.sched_getaffinity(0)),
            "python": platform.python_version(),
            "libraries": {name: version(name) for name in _LIBRARIES},
        }
        write_json(folder / "full.json", {"machine": machine, "rows": [_jsonable(row) for row in self.rows]})
        libraries = ", ".join(f"{name} {number}" for name, number in machine["libraries"].items())
        lines = [
            "# Models of the published size, with random weights",
            "",
            f"`make test-full` on {machine['cores']} cores ({machine['processor']}), {libraries}.",
            "",
            "| model | figure | value | wanted |",
            "|---|---|---|---|",
            *(f"| {row.model} | {row.what} | {row} | {row.bar} |" for row in self.rows),
        ]
        (folder / "full.md").write_text("\n".join(lines) + "\n", encoding="utf-8")


def _jsonable(row: Row) -> dict[str, object]:
    """The row in JSON values: the PSNR of equal pictures, which is infinite, is null."""
    return {**asdict(row), "value": None if row.value == math.inf else row.value}
