"""Everything that is checked and measured on an NVIDIA GPU, in one command and within 8 minutes.

``python benchmarks/gpu_suite.py --out DIR [--quick] [--stages tests,scenes,…]`` runs the stages of
gpu_stages.py, each as a process with a time-out of its own, and writes ``gpu-<name>-<date>.json`` and ``.md``
and ``failures.txt`` into DIR after every stage and every few seconds within one: what one stage does never
loses the results of the others, and whoever ends the suite loses seconds.
Works from a source checkout, without network; gpu_needs.py says what has to be installed, docs/gpu-suite.md
how to go about it. ``python benchmarks/gpu_status.py DIR/gpu-….json`` then brings docs/gpu-status.md up to
date.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import datetime
import functools
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

from gpu_needs import Missing, needs, travel

ROOT = Path(__file__).resolve().parents[1]
_LOG_BYTES = 2_000_000
"""Of a stage's output, from its end."""
_SAVE_SECONDS = 5.0
"""Between two looks at what a running stage has found so far."""


@dataclass(frozen=True)
class Stage:
    """A command that writes JSON to the file ``RESULT`` names in its environment, as often as it likes.

    ``seconds`` is its time-out; ``needs`` says why it cannot run here (empty: it can).
    """

    name: str
    command: tuple[str, ...]
    seconds: float
    needs: str = ""


def stages(quick: bool, folder: Path) -> list[Stage]:
    """All stages in their order: what a full run has, or what ``--quick`` has."""
    seconds = (
        {"build": 100, "tests": 70, "ceilings": 30, "scenes": 60, "sd15": 60}
        if quick
        else {
            "build": 200,  # nothing runs without it
            "tests": 150,
            "ceilings": 30,
            "scenes": 80,
            "sd15": 120,
            "sdxl": 200,
            "compile": 240,
        }
    )
    words = (sys.executable, str(ROOT / "benchmarks" / "gpu_stages.py"))
    flags = ("--quick",) if quick else ()
    return [
        Stage(name, (*words, name, "--keep", str(folder), *flags), budget) for name, budget in seconds.items()
    ]


def run_stage(
    stage: Stage,
    seconds: float,
    log: Path,
    say: Callable[[str], None],
    each: Callable[[dict[str, Any]], None] = lambda outcome: None,
) -> dict[str, Any]:
    """Run one stage; ``status`` (ok, failed, timeout, skipped), ``reason``, ``seconds``, ``result``, ``log``.

    The result is the last complete JSON that the stage wrote, also when it failed or hung. ``each`` gets what
    there is every few seconds while it runs, with the status "running". Nothing is raised.
    """
    if stage.needs:
        return {"status": "skipped", "reason": stage.needs, "seconds": 0.0, "result": None, "log": ""}
    if seconds <= 0:
        return {"status": "skipped", "reason": "no time left", "seconds": 0.0, "result": None, "log": ""}
    started = time.perf_counter()
    result = log.with_suffix(".json")
    environment = {**os.environ, "RESULT": str(result), "PYTHONUNBUFFERED": "1", "SECONDS": str(seconds)}
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    status, reason = "ok", ""
    try:
        process = subprocess.Popen(
            stage.command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=environment,
            cwd=ROOT,
            start_new_session=True,
        )
    except OSError as error:
        return {"status": "failed", "reason": str(error), "seconds": 0.0, "result": None, "log": ""}
    reader = threading.Thread(target=_copy, args=(process.stdout, log, stage.name, say), daemon=True)
    reader.start()
    try:
        code = _wait(process, seconds, lambda: each(_outcome("running", "", started, _result(result)[0], "")))
        if code:
            status, reason = "failed", f"status {code}"
    except subprocess.TimeoutExpired:
        status, reason = "timeout", f"longer than {seconds:.0f} s"
    finally:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)  # also what it left running
        process.wait()
        reader.join(5)
    text = log.read_bytes()[-_LOG_BYTES:].decode("utf-8", "replace") if log.exists() else ""
    if status == "failed" and (lines := text.strip().splitlines()):
        reason = f"{reason}: {lines[-1][:300]}"
    found, problem = _result(result)
    if problem and status == "ok":
        status, reason = "failed", problem
    return _outcome(status, reason, started, found, text)


def _outcome(status: str, reason: str, started: float, result: Any, log: str) -> dict[str, Any]:
    passed = round(time.perf_counter() - started, 1)
    return {"status": status, "reason": reason, "seconds": passed, "result": result, "log": log}


def _wait(process: subprocess.Popen[bytes], seconds: float, meanwhile: Callable[[], None]) -> int:
    """The status with which it ends. Raises TimeoutExpired."""
    end = time.perf_counter() + seconds
    while (left := end - time.perf_counter()) > _SAVE_SECONDS:
        with contextlib.suppress(subprocess.TimeoutExpired):
            return process.wait(_SAVE_SECONDS)
        meanwhile()
    return process.wait(max(left, 0.0))


def _copy(stream: Any, log: Path, name: str, say: Callable[[str], None]) -> None:
    with stream, log.open("wb") as file:
        for line in iter(stream.readline, b""):
            file.write(line)
            file.flush()
            say(f"[{name}] {line.decode('utf-8', 'replace').rstrip()[:200]}")


def _result(path: Path) -> tuple[Any, str]:
    """What the stage wrote, and what is wrong with it."""
    try:
        return json.loads(path.read_text(encoding="utf-8")), ""
    except OSError:
        return None, "it wrote no result"
    except ValueError:
        return None, "its result is no JSON"


def run_stages(
    chosen: Sequence[Stage],
    total: float,
    save: Callable[[dict[str, Any]], None],
    say: Callable[[str], None] = print,
    in_vain: Callable[[Stage], str] = lambda stage: "",
) -> dict[str, Any]:
    """Run stages within ``total`` seconds, one after another; ``save`` gets all results after each and now
    and then. ``in_vain`` is asked before a stage begins why it would find nothing; empty: it would.
    """
    begin = time.perf_counter()
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="fastdiff-gpu-suite-") as folder:
        for index, stage in enumerate(chosen):
            left = total - (time.perf_counter() - begin)
            say(f"== {stage.name} ({index + 1} of {len(chosen)}, {left:.0f} s left)")
            log = Path(folder) / f"{index}.log"
            if reason := stage.needs or in_vain(stage):
                stage = dataclasses.replace(stage, needs=reason)

            def running(outcome: dict[str, Any], name: str = stage.name) -> None:
                save({**found, name: outcome})

            found[stage.name] = run_stage(stage, min(stage.seconds, left), log, say, running)
            outcome = found[stage.name]
            say(f"== {stage.name}: {outcome['status']} {outcome['reason']} ({outcome['seconds']} s)")
            save(found)
    return found


def gpu() -> dict[str, str]:
    """The first GPU; empty where there is none."""
    from dataclasses import asdict

    sys.path.insert(0, str(ROOT))
    from fastdiff.doctor import find_gpus

    gpus = find_gpus()[0]
    return asdict(gpus[0]) if gpus else {}


def commit() -> str:
    """The commit of the checkout, or what FASTDIFF_COMMIT says where it came without its history."""
    command = ["git", "-C", str(ROOT), "rev-parse", "HEAD"]
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    return os.environ.get("FASTDIFF_COMMIT", "unknown")


def useless(stage: Stage) -> str:
    """Why a stage other than ``build`` would only fail; empty: it would not."""
    if stage.name == "build":
        return ""
    if reason := _refusal("import fastdiff._C"):
        return f"fastdiff is not compiled for this Python ({reason}): the stage build comes first"
    if reason := _refusal("import torch; torch.zeros(1, device='cuda')"):
        return f"PyTorch cannot use the GPU: {reason}"
    return ""


@functools.cache
def _refusal(program: str) -> str:
    """The last line of what a Python program says when it fails, empty when it does not."""
    command = [sys.executable, "-c", program]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if run.returncode == 0:
        return ""
    return (run.stderr.strip().splitlines() or [f"status {run.returncode}"])[-1][:200]


def writer(
    out: Path, device: dict[str, str], quick: bool, missing: Sequence[Missing] = ()
) -> Callable[[dict[str, Any]], None]:
    """A function that writes all files; each is complete or as it was."""
    from gpu_table import failures, markdown

    date = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    name = re.sub(r"[^a-z0-9]+", "-", device.get("name", "none").lower()).strip("-")
    stem = f"gpu-{name}-{date[:10]}"
    head = {"format": "fastdiff-gpu-suite", "date": date, "commit": commit(), "gpu": device, "quick": quick}
    head["missing"] = [dataclasses.asdict(each) for each in missing]

    def save(found: dict[str, Any]) -> None:
        document = {**head, "stages": {key: {**value, "log": ""} for key, value in found.items()}}
        _write(out / f"{stem}.json", json.dumps(document, indent=1) + "\n")
        _write(out / f"{stem}.md", markdown(document))
        _write(out / "failures.txt", failures(found))

    return save


def _write(path: Path, text: str) -> None:
    partial = path.with_name(f"{path.name}.partial")
    partial.write_text(text, encoding="utf-8")
    partial.replace(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--out", type=Path, required=True, help="folder for the results")
    parser.add_argument("--quick", action="store_true", help="tests, scenes and SD 1.5's U-Net alone")
    parser.add_argument("--stages", help="names with commas between them (default: all)")
    parser.add_argument(
        "--seconds",
        type=float,
        help="for everything (default: 470, with --quick 175); each stage's limit grows with it",
    )
    parser.add_argument("--keep", type=Path, help="folder for weights and engines, for a later run")
    options = parser.parse_args()
    device = gpu()
    if not device:
        raise SystemExit("gpu_suite: no NVIDIA GPU found (nvidia-smi names none); nothing was run")
    missing = needs()
    for each in missing:
        print(f"gpu_suite: {each.what}; without it: {each.lost or 'nothing runs'}", flush=True)
    if packages := [each for each in missing if each.package]:
        print(f"gpu_suite: {travel(packages)}", flush=True)
    if first := [each.what for each in missing if not each.lost]:
        raise SystemExit(f"gpu_suite: nothing was run: {'; '.join(first)}")
    with contextlib.ExitStack() as stack:
        keep = options.keep
        if keep is None:
            keep = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="fastdiff-gpu-keep-")))
        keep.mkdir(parents=True, exist_ok=True)
        known = stages(options.quick, keep.resolve())
        wanted = options.stages.split(",") if options.stages else [stage.name for stage in known]
        if unknown := set(wanted) - {stage.name for stage in known}:
            names = ", ".join(stage.name for stage in known)
            raise SystemExit(f"gpu_suite: unknown stage {', '.join(sorted(unknown))}: known are {names}")
        options.out.mkdir(parents=True, exist_ok=True)
        save = writer(options.out, device, options.quick, missing)
        usual = 175 if options.quick else 470
        seconds = options.seconds or usual
        scale = max(1.0, seconds / usual * len(known) / len(wanted))
        chosen = [
            dataclasses.replace(stage, seconds=scale * stage.seconds)
            for stage in known
            if stage.name in wanted
        ]
        found = run_stages(chosen, seconds, save, lambda line: print(line, flush=True), useless)
    print()
    print(max(options.out.glob("gpu-*.md"), key=os.path.getmtime).read_text(encoding="utf-8"))
    raise SystemExit(any(outcome["status"] not in ("ok", "skipped") for outcome in found.values()))


if __name__ == "__main__":
    main()
