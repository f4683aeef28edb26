"""The models that the native target is tested with, each normalised and lowered once for all tests."""

from __future__ import annotations

from functools import cache

from fastdiff.build.capture import CapturedModule
from fastdiff.build.passes import run_passes
from fastdiff.config import MODULES
from fastdiff.targets.native.compiler import lower_module
from fastdiff.targets.native.lower import Lowered
from tests.published import PUBLISHED, VOCABULARY, captured_part, published, sizes_of

__all__ = ["MODELS", "VOCABULARY", "lowered", "model", "sizes_of"]

MODELS = (*PUBLISHED, *(f"scenes_{name}" for name in MODULES))


@cache
def model(name: str) -> CapturedModule:
    """One of MODELS, as a build hands it to a target."""
    shipped = name.startswith("scenes_")
    module = captured_part("scenes", name.removeprefix("scenes_")) if shipped else published(name)
    assert module.program is not None
    return module.with_program(run_passes(module.program))


@cache
def lowered(name: str) -> Lowered:
    """Its native graph."""
    return lower_module(model(name))
