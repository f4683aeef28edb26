"""Engines built without what other tests do already: capturing a checkpoint, measuring every layer."""

from __future__ import annotations

import dataclasses
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from fastdiff.build.capture import CapturedModule

__all__ = ["build_captured", "build_mixed", "build_native", "targets_of"]


def build_native(checkpoint: str | Path, output: Path, **options: Any) -> Path:
    """An engine whose tactics follow made-up times, the same ones in every run.

    Chosen, packed and recorded is as in any build. Which algorithm computes a layer is left to chance, where
    measuring might leave one of them out: all must give the same results. That real times arrive is asserted
    of the engine that test_target.py measures.
    """
    from fastdiff.targets.native import compiler

    def made_up(work: object, algorithm: str) -> float:
        return (1 + zlib.crc32(f"{work} {algorithm}".encode()) % 1000) * 1e-6

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compiler, "_measure", lambda options: made_up)
        return build_captured(checkpoint, output, target="native", **options)


def build_captured(checkpoint: str | Path, output: Path, **options: Any) -> Path:
    """An engine of graphs that other tests share. What captures them in a build is the same function."""
    from fastdiff.build import build
    from fastdiff.build.capture import capture as captured
    from tests.published import captured_part

    def capture(module: CapturedModule) -> CapturedModule:
        if module.spec.options not in ({}, {"any_sides": True}):
            return captured(module)
        program = captured_part(checkpoint, module.name, bool(module.spec.options)).program
        assert program is not None
        return module.with_program(program)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(build, "capture", capture)
        return build.build_engine(checkpoint, output, **options).path


@contextmanager
def targets_of(modules: Mapping[str, str]) -> Iterator[None]:
    """Builds make each of ``modules`` for the target named there, and all others for PyTorch, which costs no
    capture.
    """
    from fastdiff.build import build

    whole = build._Builder.build

    def chosen(self: Any, name: str) -> Any:
        return whole(dataclasses.replace(self, target=modules.get(name, "torch")), name)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(build._Builder, "build", chosen)
        yield


def build_mixed(checkpoint: Path, output: Path, modules: Mapping[str, str]) -> Path:
    """As `build_native`, with the targets of `targets_of`."""
    with targets_of(modules):
        return build_native(checkpoint, output)
