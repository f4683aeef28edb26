from pathlib import Path

import pytest

from fastdiff.errors import CheckpointError
from fastdiff.zoo import SHIPPED, resolve


def test_names_resolve_to_their_folders() -> None:
    for name, folder in SHIPPED.items():
        assert resolve(name) == folder


def test_unknown_name_says_what_is_near() -> None:
    with pytest.raises(CheckpointError, match=r"'scene'.*did you mean 'scenes'"):
        resolve("scene")
    with pytest.raises(CheckpointError, match="shipped are: scenes"):
        resolve("zzz")


def test_missing_files_are_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(SHIPPED, "scenes", tmp_path)
    with pytest.raises(CheckpointError, match="reinstall fastdiff"):
        resolve("scenes")
