"""Fixtures that every test file shares."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from fastdiff import _C
from fastdiff.zoo import resolve
from tests import schedule
from tests.builds import build_captured, build_native
from tests.schedule import pytest_xdist_make_scheduler

__all__ = ["pytest_xdist_make_scheduler"]

# Before PyTorch is imported.
schedule.share_cores()

# Before transformers or diffusers are imported: no test may reach for the network.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRANSFORMERS_OFFLINE", "1")


def pytest_addoption(parser: pytest.Parser) -> None:
    """Options of the tests marked ``full``, which ``make test-full`` runs."""
    group = parser.getgroup("full", "models of the published size")
    group.addoption("--full-model", action="append", default=[], help="this model alone; may be repeated")
    group.addoption("--full-folder", help="keep checkpoints, engines and results of PyTorch here")
    group.addoption("--full-report", help="write what was measured into this folder, as JSON and Markdown")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip tests marked ``gpu`` where there is no GPU: the one place that decides it.

    PyTorch is only imported when such a test was collected.
    """
    marked = [item for item in items if item.get_closest_marker("gpu") is not None]
    if marked and not _has_gpu():
        for item in marked:
            item.add_marker(pytest.mark.skip(reason="needs an NVIDIA GPU"))


def _has_gpu() -> bool:
    import torch

    # a build for AMD answers through torch.cuda too
    return bool(torch.cuda.is_available()) and torch.version.hip is None


@pytest.fixture(scope="module", autouse=True)
def garbage_stays(request: pytest.FixtureRequest) -> Iterator[None]:
    """Let builds leave the garbage of tiny models: to look for it takes most of their time in a process that
    holds a thousand tests. Not where memory is what is tested.
    """
    with pytest.MonkeyPatch.context() as patch:
        if request.path.name not in ("test_memory.py", "test_release.py"):
            from fastdiff.build import memory

            patch.setattr(memory, "gc", SimpleNamespace(collect=lambda: 0))
        yield


@pytest.fixture(params=_C.available_isas())
def isa(request: pytest.FixtureRequest) -> str:
    """Each instruction set that this machine runs, fastest first."""
    return str(request.param)


@pytest.fixture
def rng() -> np.random.Generator:
    """Seeded per test: a test's data does not depend on which tests ran before."""
    return np.random.default_rng(0)


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny random checkpoint of tests/checkpoints.py. Tests copy it before they change it."""
    from tests.checkpoints import make_checkpoint

    return make_checkpoint(tmp_path_factory.mktemp("tiny") / "checkpoint")


@pytest.fixture(scope="session")
def tiny_engine(tiny_checkpoint: Path) -> Path:
    """An engine of it for ONNX Runtime, built once for all tests. Tests copy it before they change it."""
    from fastdiff.build.build import build_engine

    return build_engine(tiny_checkpoint, tiny_checkpoint.with_name("tiny.fd"), target="onnxruntime").path


@pytest.fixture(scope="session")
def tiny_native_engine(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An engine of it as ``auto`` builds it, for the native target, with every layer measured once."""
    from fastdiff.targets.native import compiler

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compiler, "_ROUNDS", 1)
        patch.setattr(compiler, "_SECONDS", 1e-5)
        return build_captured(tiny_checkpoint, tmp_path_factory.mktemp("native") / "tiny.fd")


@pytest.fixture(scope="session")
def scenes_checkpoint() -> Path:
    """The checkpoint that ships with the package."""
    return resolve("scenes")


@pytest.fixture(scope="session")
def scenes_engine(scenes_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An engine of ``scenes`` for ONNX Runtime, built once for all tests."""
    return build_captured("scenes", tmp_path_factory.mktemp("scenes") / "scenes.fd", target="onnxruntime")


@pytest.fixture(scope="session")
def scenes_native_engine(scenes_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An engine of it for the native target."""
    return build_native("scenes", tmp_path_factory.mktemp("native") / "scenes.fd")
