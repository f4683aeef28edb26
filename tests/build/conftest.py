"""The tiny checkpoint's modules, captured once for all tests of the builder."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from fastdiff.build.capture import CapturedModule
from fastdiff.build.checkpoint import Checkpoint, load_checkpoint
from tests.published import captured_part

Captured = Callable[[str], CapturedModule]


@pytest.fixture(scope="session")
def checkpoint(tiny_checkpoint: Path) -> Checkpoint:
    return load_checkpoint(tiny_checkpoint)


@pytest.fixture(scope="session")
def captured(tiny_checkpoint: Path) -> Captured:
    """A function from a module's name to the captured module."""

    return lambda name: captured_part(tiny_checkpoint, name)
