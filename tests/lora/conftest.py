"""An engine for the target ``torch``, beside those that all tests share."""

from __future__ import annotations

from pathlib import Path

import pytest

from fastdiff.build.build import build_engine


@pytest.fixture(scope="session")
def torch_engine(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_engine(tiny_checkpoint, tmp_path_factory.mktemp("torch") / "tiny.fd", target="torch").path
