"""What each shipped Triton kernel takes of each GPU: registers, shared memory, spills. Needs no GPU.

``python benchmarks/kernel_resources.py [--out FOLDER]`` writes triton-resources.json and .md there.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path

import torch
import triton
from machine import commit

from fastdiff.kernels.triton import aot


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    folder = parser.parse_args().out
    folder.mkdir(parents=True, exist_ok=True)

    rows = []
    for op in aot.op_names():
        for arch in aot.ARCHITECTURES:
            for build in aot.op_builds(op, torch.float16, arch):
                found = aot.resources(aot.compile_build(build, arch), arch)
                rows.append(
                    {"op": op, "build": build.name, "arch": arch}
                    | {"config": build.config.to_json(), **asdict(found)}
                )
                print(rows[-1])
    versions = {"triton": triton.__version__, "commit": commit(), "dtype": "float16"}
    text = json.dumps({**versions, "rows": rows}, indent=1)
    (folder / "triton-resources.json").write_text(text + "\n", encoding="utf-8")
    (folder / "triton-resources.md").write_text(markdown(versions, rows), encoding="utf-8")


def markdown(versions: dict[str, str], rows: list[dict[str, object]]) -> str:
    """One row per build: registers and KiB of shared memory on each architecture, bytes spilled in all."""
    found = {(row["op"], row["build"], row["arch"]): row for row in rows}
    names = list(dict.fromkeys((row["op"], row["build"]) for row in rows))
    architectures = sorted({int(str(row["arch"])) for row in rows})
    lines = [
        "# Triton kernels ahead of time",
        "",
        f"Registers per thread / KiB of shared memory per block of the default tiling, fp16, Triton "
        f"{versions['triton']}, commit {versions['commit']}; written by benchmarks/kernel_resources.py.",
        "",
        "| kernel | " + " | ".join(f"sm_{arch}" for arch in architectures) + " | spilled bytes |",
        "| --- |" + " --- |" * (len(architectures) + 1),
    ]
    for name in names:
        cells, spilled = [], 0
        for arch in architectures:
            row = found.get((*name, arch))
            cells.append(
                "–" if row is None else f"{row['registers']} / {int(str(row['shared_bytes'])) / 1024:.0f}"
            )
            spilled += 0 if row is None else int(str(row["spill_bytes"]))
        lines.append(f"| {name[1]} | " + " | ".join(cells) + f" | {spilled} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
