"""Engines for the native target, built without the seconds that measuring every layer well would take."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

__all__ = ["build_native"]


def build_native(checkpoint: str | Path, output: Path, **options: Any) -> Path:
    """An engine whose layers were measured once each, for a moment.

    What is measured, chosen and packed is as in any build; only which of the algorithms wins is closer to
    chance, and all of them must give the same results.
    """
    from fastdiff.build.build import build_engine
    from fastdiff.targets.native import compiler

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compiler, "_ROUNDS", 1)
        patch.setattr(compiler, "_SECONDS", 1e-5)
        return build_engine(checkpoint, output, target="native", **options).path
