"""Builds an engine in a process of its own and prints, as JSON, what each stage held in memory.

``python -m tests.build_memory CHECKPOINT OUTPUT WARM_CHECKPOINT [OPTION=VALUE …]``. An engine of
WARM_CHECKPOINT, a tiny one, is built first: what the process holds after it (libraries, their caches) is no
matter of the model, and is given as ``base``. All figures are bytes.
"""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.memory import Peak, Watch, resident

__all__ = ["BuildMemory", "build_in_process"]


@dataclass(frozen=True)
class BuildMemory:
    """``base`` and the peaks above nothing, by ``module stage``; errors and bytes of the engine by module."""

    base: Peak
    stages: dict[str, Peak]
    errors: dict[str, float]
    bytes: dict[str, int]
    seconds: float

    @property
    def peak(self) -> Peak:
        """The largest of all stages."""
        peaks = self.stages.values()
        return Peak(max(p.resident for p in peaks), max(p.anonymous for p in peaks))

    def above_base(self, stage: str) -> Peak:
        """What a stage held beyond the fixed cost of the libraries."""
        peak = self.stages[stage]
        return Peak(peak.resident - self.base.resident, peak.anonymous - self.base.anonymous)


def build_in_process(
    checkpoint: Path, output: Path, warm: Path, timeout: float = 600, **options: Any
) -> BuildMemory:
    """Build with the options of ``build_engine``, and ``tune=False`` for measuring every layer once."""
    arguments = [f"{key}={json.dumps(value)}" for key, value in options.items()]
    command = [sys.executable, "-m", "tests.build_memory", str(checkpoint), str(output), str(warm), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=timeout, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    found = json.loads(done.stdout.splitlines()[-1])
    return BuildMemory(
        Peak(**found["base"]),
        {stage: Peak(**peak) for stage, peak in found["stages"].items()},
        found["errors"],
        found["bytes"],
        found["seconds"],
    )


def main(checkpoint: str, output: str, warm: str, *arguments: str) -> None:
    from fastdiff.build.build import Stage, build_engine
    from fastdiff.build.memory import release

    options = {key: json.loads(value) for key, _, value in (item.partition("=") for item in arguments)}
    if "modules" in options:
        options["modules"] = tuple(options["modules"])
    if not options.pop("tune", True):
        from fastdiff.targets.native import compiler

        compiler._ROUNDS, compiler._SECONDS = 1, 1e-6
    with tempfile.TemporaryDirectory() as folder:
        build_engine(warm, f"{folder}/warm.fd", **{**options, "height": None, "width": None})
    release()
    base = resident()
    watch = Watch().start()

    def progress(stage: Stage) -> None:
        if stage.fraction == 0:
            watch.enter(f"{stage.module} {stage.stage}")
            print(f"{stage.module} {stage.stage}", file=sys.stderr, flush=True)

    summary = build_engine(checkpoint, output, progress=progress, **options)
    stages = watch.stop()
    found = {
        "base": dataclasses.asdict(base),
        "stages": {stage: dataclasses.asdict(peak) for stage, peak in stages.items()},
        "errors": {module.name: module.relative_l2 for module in summary.modules},
        "bytes": {module.name: module.bytes for module in summary.modules},
        "seconds": summary.seconds,
    }
    print(json.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:])
