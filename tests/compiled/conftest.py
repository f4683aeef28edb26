"""Engines of the tiny pipelines, each built once for all tests."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from tests.compiled.pipelines import compiled, original


@pytest.fixture(scope="session")
def engines(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that keeps them."""
    return tmp_path_factory.mktemp("compiled")


@pytest.fixture(scope="session")
def twins(engines: Path) -> Callable[[str], tuple[Any, Any]]:
    """A pipeline of PIPELINES and its compiled twin."""

    @cache
    def make(name: str) -> tuple[Any, Any]:
        pipe = original(name)
        return pipe, compiled(pipe, engines)

    return make
