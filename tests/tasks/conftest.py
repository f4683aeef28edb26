"""Engines that several files of tasks share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest


@pytest.fixture(scope="module", autouse=True)
def garbage_stays() -> Iterator[None]:
    """Let builds leave the garbage of tiny models: to look for it takes most of their time here."""
    from fastdiff.build import memory

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(memory, "gc", SimpleNamespace(collect=lambda: 0))
        yield


@pytest.fixture(scope="session")
def tiny_torch_engine(tiny_checkpoint: Path) -> Path:
    """The tiny checkpoint on the reference target."""
    from fastdiff.build.build import build_engine

    return build_engine(tiny_checkpoint, tiny_checkpoint.with_name("torch.fd"), target="torch").path
