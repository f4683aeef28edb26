"""``fastdiff doctor``: what this machine can run."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from fastdiff.cli.values import byte_size

if TYPE_CHECKING:
    from fastdiff.doctor import Report

SUMMARY = "show what this machine can run, and why not the rest"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument("--json", action="store_true", help="the report as JSON")


def run(arguments: argparse.Namespace) -> None:
    """Print the report as text or JSON."""
    from fastdiff.doctor import examine

    report = examine()
    if arguments.json:
        import json

        print(json.dumps(report.as_json(), indent=2))
    else:
        print("\n".join(_lines(report)))


def _lines(report: Report) -> list[str]:
    cpu, memory, temporary = report.cpu, report.memory, report.temporary_folder
    kernels = cpu.get("kernels", {})
    chosen = f"{kernels['chosen']} of {', '.join(kernels['available'])}" if kernels else "not usable"
    if "override" in kernels:
        chosen += f" (FASTDIFF_ISA={kernels['override']})"
    rows = {
        "fastdiff": report.fastdiff,
        "python": report.python,
        "system": report.system,
        "cpu": f"{cpu['name']}, {cpu['usable_cores']} of {cpu['cores']} cores",
        "instruction sets": " ".join(cpu["instruction_sets"]) or "unknown",
        "kernels": chosen,
        "memory": " of ".join(byte_size(memory[key]) for key in ("available", "total") if key in memory)
        or "unknown",
    }
    for index, gpu in enumerate(report.gpus):
        capability = f"compute capability {gpu.compute_capability}" if gpu.compute_capability else ""
        driver = f"driver {gpu.driver}" if gpu.driver else ""
        rows[f"gpu {index}"] = ", ".join(filter(None, (gpu.name, gpu.memory, capability, driver)))
    if report.gpu_note:
        rows["gpu"] = report.gpu_note
    free = f"{byte_size(temporary['free'])} free" if temporary["writable"] else "cannot be written"
    rows["temporary files"] = f"{temporary['path']}, {free}"
    lines = [f"{key:<18}{value}" for key, value in rows.items()]
    for heading, parts, good in (
        ("for GPUs", report.gpu_software, "there"),
        ("targets", report.targets, "works"),
    ):
        lines += ["", heading]
        for name, part in parts.items():
            state = good if part["ok"] else "no"
            fix = f"; {part['fix']}" if part["fix"] and not part["ok"] else ""
            lines.append(f"  {name:<14}  {state:<6} {part['reason']}{fix}")
    lines += ["", "libraries"]
    for purpose, versions in report.libraries.items():
        listed = ", ".join(f"{name} {version or '—'}" for name, version in versions.items())
        lines.append(f"  {purpose:<15} {listed}")
    lines += ["", *(f"problem: {problem}" for problem in report.problems)] if report.problems else []
    return lines
