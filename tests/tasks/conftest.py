"""Engines that several files of tasks share."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def tiny_torch_engine(tiny_checkpoint: Path) -> Path:
    """The tiny checkpoint on the reference target."""
    from fastdiff.build.build import build_engine

    return build_engine(tiny_checkpoint, tiny_checkpoint.with_name("torch.fd"), target="torch").path
