"""The README's commands and its program, as they are written there."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from PIL import Image

from tests.cli.run import run_here

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")


def _blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)


def _is_here(words: list[str]) -> bool:
    """Whether a command makes pictures on a machine without GPUs, of an engine that is there."""
    draws = words[0] == "python" or words[1] in ("generate", "img2img", "inpaint")
    return draws and "--devices" not in words


@pytest.fixture
def folder(scenes_native_engine: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder with the engine under the README's name; where the commands run."""
    (tmp_path / "scenes.fd").symlink_to(scenes_native_engine)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_commands_and_program(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """One after the other, as pictures of the first are what others take."""
    lines = [shlex.split(line, comments=True) for block in _blocks("sh") for line in block.splitlines()]
    lines = [words for words in lines if words and _is_here(words)]
    assert len(lines) == 6
    for words in lines:
        if words[:2] == ["python", "-c"]:
            exec(words[2], {})
            continue
        assert words[0] == "fastdiff"
        outcome = run_here(capfd, *words[1:])
        assert (outcome.status, outcome.errors) == (0, "")
    program, *_ = _blocks("python")
    names: dict[str, object] = {}
    exec(program, names)
    pictures = ("out.png", "star.png", "mask.png", "painted.png", "with_metadata.png")
    for name in pictures:
        with Image.open(folder / name) as picture:
            assert picture.size == (64, 64)
    assert names["pixels"].shape == (1, 3, 64, 64)  # type: ignore[attr-defined]
