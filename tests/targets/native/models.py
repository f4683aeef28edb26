"""The models of tests/published.py, lowered once for all tests of the native target."""

from __future__ import annotations

from functools import cache

import pytest

from fastdiff.build import lower
from fastdiff.build.lower.lowering import Lowered
from tests.published import MODELS, VOCABULARY, fused, model, sizes_of

__all__ = ["MODELS", "VOCABULARY", "lowered", "model", "sizes_of"]


@cache
def lowered(name: str) -> Lowered:
    """The native graph of one of MODELS."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lower, "run_passes", lambda program, passes: fused(name))
        return lower.lower_module(model(name))
