"""A machine with a GPU and TensorRT, both stand-ins."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from fastdiff.targets.gpu import Gpu
from fastdiff.targets.tensorrt import backend
from tests.builds import build_captured
from tests.targets.tensorrt.fake import FakeApi, FakeDevice

H200 = Gpu(0, "NVIDIA H200", "9.0")
VERSION = "10.16.1.11"


@dataclass
class Machine:
    """What tests may change of it."""

    device: FakeDevice = field(default_factory=FakeDevice)
    gpus: tuple[Gpu, ...] = (H200,)
    version: str = VERSION
    missing: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.api = FakeApi(self.device)

    def install(self, patch: pytest.MonkeyPatch) -> Machine:
        patch.setattr(backend, "api", lambda: self.api)
        patch.setattr(backend, "device", lambda index: self.device)
        patch.setattr(backend, "gpus", lambda: (self.gpus, "" if self.gpus else "there is no NVIDIA GPU"))
        patch.setattr(backend, "version", lambda: self.version)
        patch.setattr(backend, "missing_packages", lambda: self.missing)
        return self


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    return Machine().install(monkeypatch)


@dataclass(frozen=True)
class Built:
    """An engine of the tiny checkpoint, the machine that built it and the stages that it announced."""

    path: Path
    machine: Machine
    stages: list[Any]


@pytest.fixture(scope="session")
def built(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Built:
    """In fp16 and refittable. Tests copy it before they change it."""
    stages: list[Any] = []
    folder = tmp_path_factory.mktemp("tensorrt")
    with pytest.MonkeyPatch.context() as patch:
        machine = Machine().install(patch)
        path = build_captured(
            tiny_checkpoint,
            folder / "tiny.fd",
            target="tensorrt",
            precision="fp16",
            refit=True,
            progress=stages.append,
        )
    return Built(path, machine, stages)
