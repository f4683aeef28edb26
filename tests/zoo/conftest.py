"""What training changes for its whole process is set back, so that other tests may follow in it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch


@pytest.fixture(autouse=True)
def subnormal_numbers() -> Iterator[None]:
    """The trainer flushes them to zero, which tests of half precision would notice."""
    yield
    torch.set_flush_denormal(False)
