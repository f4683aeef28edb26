"""What gpu_suite.py found as Markdown, and the output of what failed."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

__all__ = ["failures", "markdown"]

GOALS = {
    "sd15-unet step 512x512 batch 2 cuda fp16": 5.0,
    "sdxl-unet step 1024x1024 batch 2 cuda fp16": 30.0,
    "sdxl-vae-decoder 1024x1024 batch 1 cuda fp16": 30.0,
    "scenes picture 64x64 batch 1 cuda fp16": 15.0,
}
"""Milliseconds to reach, by the case's label."""

FASTER_THAN_COMPILE = 1.3


def markdown(document: dict[str, Any]) -> str:
    """The summary: machine, stages, tests, and one table of every case."""
    gpu = document["gpu"]
    lines = [
        f"# {gpu.get('name', 'no GPU')}, {document['date'][:10]}",
        "",
        f"Driver {gpu.get('driver', '?')}, compute capability {gpu.get('compute_capability', '?')}, commit "
        f"{document['commit'][:12]}.",
        "",
        "| stage | status | seconds | |",
        "|---|---|---|---|",
    ]
    for name, outcome in document["stages"].items():
        reason = " ".join(str(outcome["reason"]).split()).replace("|", "/")
        lines.append(f"| {name} | {outcome['status']} | {outcome['seconds']} | {reason} |")
    lines += ["", *_tests(document["stages"].get("tests")), "", *_cases(document)]
    return "\n".join(lines).rstrip() + "\n"


def _tests(outcome: dict[str, Any] | None) -> Iterator[str]:
    tests = ((outcome or {}).get("result") or {}).get("tests", {})
    if tests:
        counts = dict.fromkeys(("passed", "failed", "skipped", "hung"), 0)
        for test in tests.values():
            counts[test["outcome"]] = counts.get(test["outcome"], 0) + 1
        yield "Tests: " + ", ".join(f"{count} {kind}" for kind, count in counts.items()) + "."
        for name, test in tests.items():
            if test["outcome"] not in ("passed", "skipped"):
                yield f"- {name}: {test['outcome']}"


def _cases(document: dict[str, Any]) -> Iterator[str]:
    """Of each case and contestant the median, and its share of the GEMM ceiling."""
    found = (outcome.get("result") or {} for outcome in document["stages"].values())
    runs = [run for result in found for report in result.get("reports", ()) for run in report["runs"]]
    if not runs:
        return
    gemm = max(run["ceilings"]["gemm"] for run in runs)
    copy = max(run["ceilings"]["copy"] for run in runs)
    yield f"fp16 product {gemm / 1e12:.0f} TFLOP/s, copy {copy / 1e9:.0f} GB/s."
    yield ""
    yield "| case | contestant | ms | p10–p90 | of GEMM peak | error | memory GB | goal |"
    yield "|---|---|---|---|---|---|---|---|"
    for run in runs:
        for result in run["results"]:
            yield from _rows(result, gemm)


def _rows(result: dict[str, Any], gemm: float) -> Iterator[str]:
    label = _label(result["case"])
    medians = {m["name"]: m["spread"]["median"] for m in result["measurements"] if m["spread"]}
    for found in result["measurements"]:
        name, spread = found["name"], found["spread"]
        if not spread:
            reason = " ".join(found["reason"].split()).replace("|", "/")
            yield f"| {label} | {name} | {found['status']}: {reason} | | | | | |"
            continue
        share = result["flops"] / gemm / (spread["median"] / 1e3)
        kind = result["case"]["kind"]
        agreement = found["agreement"] or {"value": float("nan"), "measure": ""}
        error = (
            f"{agreement['value']:.1f} dB" if agreement["measure"] == "psnr" else f"{agreement['value']:.1e}"
        )
        yield (
            f"| {label} | {name} | {spread['median']:.4g} | {spread['p10']:.4g}–{spread['p90']:.4g} | "
            f"{f'{share:.0%}' if kind in ('run', 'step') and result['flops'] else '–'} | {error} | "
            f"{(found['peak_rss'] or 0) / 1e9:.1f} | {_goal(label, name, spread['median'], medians)} |"
        )


def _goal(label: str, name: str, median: float, medians: dict[str, float]) -> str:
    if not name.startswith("fastdiff:"):
        return ""
    parts = []
    if goal := GOALS.get(label):
        parts.append(f"≤ {goal:g} ms: {'reached' if median <= goal else 'missed'}")
    if compiled := medians.get("inductor"):
        ratio = compiled / median
        verdict = "reached" if ratio >= FASTER_THAN_COMPILE else "missed"
        parts.append(f"≥ {FASTER_THAN_COMPILE} × torch.compile: {ratio:.2f}, {verdict}")
    return "; ".join(parts)


def _label(case: dict[str, Any]) -> str:
    from fastdiff.bench.case import Case

    return Case(**case).label


def failures(found: dict[str, Any]) -> str:
    """Tracebacks of failed tests, then the ends of the logs of stages that did not end well."""
    parts = []
    for outcome in found.values():
        for test, result in ((outcome.get("result") or {}).get("tests") or {}).items():
            if result["outcome"] not in ("passed", "skipped"):
                parts.append(f"=== {test}: {result['outcome']}\n{result.get('text', '')}\n")
    for name, outcome in found.items():
        if outcome["status"] not in ("ok", "skipped"):
            parts.append(f"=== stage {name}: {outcome['status']} {outcome['reason']}\n{outcome['log']}\n")
    return "\n".join(parts)[-12_000_000:]
