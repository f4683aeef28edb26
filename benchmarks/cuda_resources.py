"""Registers, shared memory and spills of the CUDA C++ kernels, for results/cuda-resources.{json,md}.

    python benchmarks/cuda_resources.py

Needs nvcc and no GPU.
"""

from __future__ import annotations

import json
import subprocess
from dataclasses import asdict
from pathlib import Path

from fastdiff.kernels.cuda.compiler import digest
from fastdiff.kernels.cuda.resources import Resources, measure, nvcc, ops

RESULTS = Path(__file__).parent / "results"


def main() -> None:
    version = subprocess.run([str(nvcc()), "--version"], capture_output=True, text=True, check=True).stdout
    compiler = version.strip().splitlines()[-2]
    rows = [row for op in ops() for row in measure(op)]
    about = {"compiler": compiler, "sources": {op: digest(op) for op in ops()}}
    lines = ",\n".join(f"  {json.dumps(asdict(row))}" for row in rows)
    text = f'{{"about": {json.dumps(about)},\n"kernels": [\n{lines}\n]}}\n'
    (RESULTS / "cuda-resources.json").write_text(text)
    (RESULTS / "cuda-resources.md").write_text(table(compiler, rows))


def table(compiler: str, rows: list[Resources]) -> str:
    """One line per kernel, one column per architecture."""
    arches = list(dict.fromkeys(row.arch.rstrip("af") for row in rows))
    lines = [
        "# Resources of the CUDA C++ kernels",
        "",
        f"Registers per thread, then bytes of static shared memory (s) and of spills (!). {compiler}.",
        "",
        f"| kernel | {' | '.join(f'sm_{arch}' for arch in arches)} |",
        f"|---|{'---:|' * len(arches)}",
    ]
    kernels: dict[str, dict[str, str]] = {}
    for row in rows:
        shared = f" {row.shared}s" if row.shared else ""
        spills = f" {row.spills}!" if row.spills else ""
        kernels.setdefault(row.kernel, {})[row.arch.rstrip("af")] = f"{row.registers}{shared}{spills}"
    for kernel, cells in kernels.items():
        lines.append(f"| `{kernel}` | {' | '.join(cells.get(arch, '') for arch in arches)} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
