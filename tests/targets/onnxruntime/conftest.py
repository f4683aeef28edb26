"""Modules compiled for CUDA once for all tests."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest

from fastdiff.build.passes import run_passes
from fastdiff.config import Precision
from fastdiff.targets import Compiled, CompileOptions
from fastdiff.targets import onnxruntime as target
from tests.published import model


@pytest.fixture(scope="session")
def compiled_for_cuda(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[Path, Compiled]]:
    """One of tests/published.py as a build compiles it: its folder, in which nobody may write, and files."""

    @cache
    def compiled(name: str) -> tuple[Path, Compiled]:
        module, folder = model(name), tmp_path_factory.mktemp(name)
        assert module.program is not None
        prepared = module.with_program(run_passes(module.program))
        return folder, target.compile(prepared, folder, CompileOptions(Precision.FP16, device="cuda"))

    return compiled
