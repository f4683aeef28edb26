"""The tiny checkpoint's modules, captured once for all tests of the builder."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest

from fastdiff.build.capture import CapturedModule, capture
from fastdiff.build.checkpoint import Checkpoint, load_checkpoint
from fastdiff.build.modules import module_spec

Captured = Callable[[str], CapturedModule]


@pytest.fixture(scope="session")
def checkpoint(tiny_checkpoint: Path) -> Checkpoint:
    return load_checkpoint(tiny_checkpoint)


@pytest.fixture(scope="session")
def captured(checkpoint: Checkpoint) -> Captured:
    """A function from a module's name to the captured module."""

    @cache
    def get(name: str) -> CapturedModule:
        spec = module_spec(name, checkpoint.spec)
        part = checkpoint.load(spec.part)
        return capture(CapturedModule(spec, spec.wrap(part), part))

    return get
