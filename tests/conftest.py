"""Fixtures that every test file shares."""

from __future__ import annotations

import os

import numpy as np
import pytest

from fastdiff import _C

# Before transformers or diffusers are imported: no test may reach for the network.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRANSFORMERS_OFFLINE", "1")


@pytest.fixture(params=_C.available_isas())
def isa(request: pytest.FixtureRequest) -> str:
    """Each instruction set that this machine runs, fastest first."""
    return str(request.param)


@pytest.fixture
def rng() -> np.random.Generator:
    """Seeded per test: a test's data does not depend on which tests ran before."""
    return np.random.default_rng(0)
