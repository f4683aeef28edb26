"""Fixtures of the full-size tests: one checkpoint and one engine per model, removed before the next one's."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from fastdiff.system_memory import available_memory
from tests.full.models import FULL, FullModel
from tests.full.report import Report
from tests.steps import run


@dataclass(frozen=True)
class Written:
    """A model's checkpoint, and the bytes of its weights in float32."""

    name: str
    full: FullModel
    folder: Path
    weights: int

    @property
    def checkpoint(self) -> Path:
        return self.folder / "checkpoint"


@dataclass(frozen=True)
class Built(Written):
    """Its engine too, and what building it took."""

    found: dict[str, Any]

    @property
    def engine(self) -> Path:
        return self.folder / "engine.fd"


@pytest.fixture(scope="session")
def report(request: pytest.FixtureRequest) -> Iterator[Report]:
    """Where tests put their figures; written at the end where ``--full-report`` asks for it."""
    collected = Report()
    yield collected
    folder = request.config.getoption("--full-report")
    if folder and collected.rows:
        collected.write(Path(folder))


@pytest.fixture(scope="module", params=FULL)
def written(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Written]:
    """A model's checkpoint. Skips one that was not asked for or that the machine is too small for."""
    name = request.param
    full = FULL[name]
    wanted = request.config.getoption("--full-model")
    if unknown := set(wanted) - set(FULL):
        pytest.fail(f"--full-model {', '.join(sorted(unknown))} is unknown: known are {', '.join(FULL)}")
    if wanted and name not in wanted:
        pytest.skip(f"--full-model asks for {', '.join(wanted)}")
    kept = request.config.getoption("--full-folder")
    folder = Path(kept) / name if kept else tmp_path_factory.mktemp("full") / name
    folder.mkdir(parents=True, exist_ok=True)
    _require(name, full, folder)
    try:
        yield _write(name, full, folder)
    finally:
        if not kept:
            shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="module")
def built(written: Written) -> Built:
    """A model's engine."""
    engine = str(written.folder / "engine.fd")
    found = run("build", checkpoint=str(written.checkpoint), output=engine, force=True)
    return Built(written.name, written.full, written.folder, written.weights, found)


def _require(name: str, full: FullModel, folder: Path) -> None:
    """Skip where memory or disk are too small, saying what is needed."""
    memory, disk = (available_memory() or 0) >> 30, shutil.disk_usage(folder).free >> 30
    taken = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) >> 30
    if memory < full.memory:
        pytest.skip(f"{name} needs {full.memory} GiB of memory, {memory} GiB are available")
    if disk + taken < full.disk:
        pytest.skip(f"{name} needs {full.disk} GiB of disk in {folder}, {disk} GiB are free")


def _write(name: str, full: FullModel, folder: Path) -> Written:
    from tests.checkpoints import read_json, write_json

    checkpoint, noted = folder / "checkpoint", folder / "weights.json"
    if not noted.is_file():  # else an earlier run kept it
        shutil.rmtree(checkpoint, ignore_errors=True)
        write_json(noted, run("write", model=name, folder=str(checkpoint)))
    return Written(name, full, folder, read_json(noted)["fp32_bytes"])
