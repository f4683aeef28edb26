"""The way back from the shipped checkpoint to a run folder, and forth again."""

from pathlib import Path

import pytest
from safetensors.numpy import load_file

from fastdiff.zoo import resolve
from fastdiff.zoo.training.assemble import assemble, restore
from tests.compare import assert_close


def test_restored_and_assembled_weights_are_the_same(tmp_path: Path) -> None:
    restore(resolve("scenes"), tmp_path / "run")
    size = assemble(tmp_path / "run", tmp_path / "again")
    assert size <= 40e6
    for file in sorted(resolve("scenes").rglob("*.safetensors")):
        found = load_file(tmp_path / "again" / file.relative_to(resolve("scenes")))
        for name, value in load_file(file).items():
            assert_close(found[name], value, max_abs=0.0, label=f"{file.parent.name}/{name}")
    for config in (tmp_path / "again").rglob("*.json"):
        assert str(tmp_path) not in config.read_text(), f"{config} names the folder it was made in"
    for name in ("vocab.json", "merges.txt", "tokenizer.json"):
        assert (tmp_path / "again" / "tokenizer" / name).is_file(), name


def test_restoring_over_weights_is_refused(tmp_path: Path) -> None:
    (tmp_path / "vae").mkdir()
    with pytest.raises(FileExistsError, match="holds no weights yet"):
        restore(resolve("scenes"), tmp_path)
