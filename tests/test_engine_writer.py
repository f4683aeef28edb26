"""Writing an engine: complete or not there at all."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from fastdiff import engine_writer
from fastdiff.engine_dir import MANIFEST_NAME, open_engine
from fastdiff.engine_writer import EngineWriter
from fastdiff.errors import EngineDamagedError, EngineError, OutputError, VerificationError
from tests.engines import fill, write_engine

ROOT = Path(__file__).parent.parent


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def fail_with(error: BaseException, path: Path, force: bool = False) -> None:
    """A build that ends in ``error`` after it has written files."""
    with EngineWriter(path, force) as writer:
        fill(writer)
        raise error


def test_appears_only_when_finished(tmp_path: Path) -> None:
    path = tmp_path / "tiny.fd"
    with EngineWriter(path) as writer:
        manifest = fill(writer)
        assert not path.exists()
        writer.finish(manifest)
        assert open_engine(path).manifest == manifest
    assert names(tmp_path) == ["tiny.fd"]


def test_without_finish_nothing_remains(tmp_path: Path) -> None:
    with EngineWriter(tmp_path / "tiny.fd") as writer:
        fill(writer)
    assert names(tmp_path) == []


@pytest.mark.parametrize("error", [VerificationError("too large"), KeyboardInterrupt(), RuntimeError("bug")])
def test_exceptions_pass_and_nothing_remains(tmp_path: Path, error: BaseException) -> None:
    with pytest.raises(type(error)):
        fail_with(error, tmp_path / "tiny.fd")
    assert names(tmp_path) == []


def test_existing_output_is_kept_without_force(tmp_path: Path) -> None:
    path = write_engine(tmp_path / "tiny.fd")
    before = open_engine(path).engine_hash
    with (
        pytest.raises(OutputError, match="exists; give another output folder or --force"),
        EngineWriter(path),
    ):
        pass
    assert open_engine(path).engine_hash == before


def test_force_replaces_an_engine_once_the_new_one_is_complete(tmp_path: Path) -> None:
    path = write_engine(tmp_path / "tiny.fd")
    before = open_engine(path).engine_hash
    with pytest.raises(VerificationError):
        fail_with(VerificationError("too large"), path, force=True)
    assert open_engine(path).engine_hash == before
    write_engine(path, force=True, seconds=2.0)
    assert open_engine(path).engine_hash != before
    assert names(tmp_path) == ["tiny.fd"]


def test_failed_rename_restores_the_old_engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_engine(tmp_path / "tiny.fd")
    before = open_engine(path).engine_hash
    rename = Path.rename

    def fail_once(source: Path, target: Path) -> Path:
        if source.name.endswith(".partial"):
            raise OSError(errno.EIO, "broken disk", str(source))
        return rename(source, target)

    monkeypatch.setattr(Path, "rename", fail_once)
    with pytest.raises(OutputError, match="broken disk"):
        write_engine(path, force=True, seconds=2.0)
    assert open_engine(path).engine_hash == before
    assert names(tmp_path) == ["tiny.fd"]


def test_force_replaces_nothing_but_an_engine(tmp_path: Path) -> None:
    folder = tmp_path / "thesis"
    folder.mkdir()
    (folder / "chapter1.txt").write_text("years of work")
    with pytest.raises(OutputError, match="not an engine"), EngineWriter(folder, force=True):
        pass
    assert names(folder) == ["chapter1.txt"]


def test_force_fills_an_empty_folder(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert open_engine(write_engine(tmp_path / "empty", force=True))


@pytest.mark.parametrize("force", [False, True])
def test_output_that_is_a_file(tmp_path: Path, force: bool) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(OutputError, match="is a file"), EngineWriter(tmp_path / "file", force):
        pass
    assert (tmp_path / "file").read_text() == "x"


def test_missing_parent(tmp_path: Path) -> None:
    with (
        pytest.raises(OutputError, match="does not exist; create it first"),
        EngineWriter(tmp_path / "a" / "b"),
    ):
        pass
    assert names(tmp_path) == []


def test_parent_that_cannot_be_written() -> None:
    with pytest.raises(OutputError, match="cannot be written"), EngineWriter("/proc/tiny.fd"):
        pass


def test_files_get_the_usual_permissions(tmp_path: Path) -> None:
    """Some libraries write files that only their owner may read."""
    path = tmp_path / "tiny.fd"
    with EngineWriter(path) as writer:
        manifest = fill(writer)
        (writer.folder / "text_encoder.onnx").chmod(0o600)
        writer.finish(manifest)
    reference = tmp_path / "reference"
    reference.write_text("x")
    assert (path / "text_encoder.onnx").stat().st_mode == reference.stat().st_mode


def test_symbolic_link_is_followed(tmp_path: Path) -> None:
    path = write_engine(tmp_path / "real.fd")
    (tmp_path / "link.fd").symlink_to(path)
    write_engine(tmp_path / "link.fd", force=True, seconds=3.0)
    assert (tmp_path / "link.fd").is_symlink()
    assert open_engine(path).entry("text_encoder").seconds == 3.0


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
def test_full_disk_is_an_output_error(tmp_path: Path, number: int) -> None:
    with pytest.raises(OutputError, match="no space left"):
        fail_with(OSError(number, os.strerror(number)), tmp_path / "tiny.fd")
    assert names(tmp_path) == []


def test_full_disk_told_only_in_words(tmp_path: Path) -> None:
    """safetensors and ONNX Runtime raise types of their own around the system's message."""
    with pytest.raises(OutputError, match="no space left"):
        fail_with(RuntimeError("I/O error: No space left on device (os error 28)"), tmp_path / "tiny.fd")
    assert names(tmp_path) == []


def test_unexplained_failure_on_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_writer, "_free_bytes", lambda folder: 0)
    with pytest.raises(OutputError, match="no space left"):
        fail_with(RuntimeError("could not serialise"), tmp_path / "tiny.fd")
    assert names(tmp_path) == []


def test_failure_to_read_something_else_is_not_an_output_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), EngineWriter(tmp_path / "tiny.fd"):
        (tmp_path / "checkpoint").read_bytes()
    assert names(tmp_path) == []


def test_failure_to_flush_is_an_output_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(handle: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OutputError, match="no space left"):
        write_engine(tmp_path / "tiny.fd")
    assert names(tmp_path) == []


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 128 KiB; skipped where this user may not mount one."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = shutil.which("mount")
    command = [mount or "mount", "-t", "tmpfs", "-o", "size=128k", "tmpfs", str(folder)]
    if mount is None or subprocess.run(command, capture_output=True).returncode != 0:
        pytest.skip("mounting a small file system is not permitted")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def fill_up(path: Path) -> None:
    with EngineWriter(path) as writer:
        fill(writer)
        (writer.folder / "weights").write_bytes(bytes(1 << 18))


def test_really_full_disk(small_disk: Path) -> None:
    path = small_disk / "tiny.fd"
    with pytest.raises(OutputError, match="no space left"):
        fill_up(path)
    assert names(small_disk) == []
    assert open_engine(write_engine(path))


KILLED = """
import sys, time
from fastdiff.engine_writer import EngineWriter
from tests.engines import fill
with EngineWriter(sys.argv[1]) as writer:
    fill(writer)
    print("writing", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def killed_build(tmp_path: Path) -> Path:
    """What a build that was killed left behind."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", KILLED, str(tmp_path / "tiny.fd")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"writing\n"
        process.send_signal(signal.SIGKILL)
    (left,) = tmp_path.iterdir()
    return left


def test_killed_build_leaves_nothing_that_looks_finished(killed_build: Path, tmp_path: Path) -> None:
    with pytest.raises(EngineError, match="does not exist"):
        open_engine(tmp_path / "tiny.fd")
    with pytest.raises(EngineDamagedError, match="did not finish"):
        open_engine(killed_build)
    assert not (killed_build / MANIFEST_NAME).exists()


def test_next_build_removes_what_a_killed_one_left(killed_build: Path, tmp_path: Path) -> None:
    write_engine(tmp_path / "tiny.fd")
    assert killed_build.exists(), "a folder that is younger than a minute may still be starting"
    old = time.time() - 3600
    os.utime(killed_build, (old, old))
    with EngineWriter(tmp_path / "other.fd"):
        assert killed_build.exists(), "builds of other engines leave it alone"
    write_engine(tmp_path / "tiny.fd", force=True)
    assert names(tmp_path) == ["tiny.fd"]


def test_running_build_keeps_its_folder(tmp_path: Path) -> None:
    with EngineWriter(tmp_path / "tiny.fd") as running:
        manifest = fill(running)
        old = time.time() - 3600
        os.utime(running.folder, (old, old))
        write_engine(tmp_path / "tiny.fd")
        assert running.folder.exists()
        with pytest.raises(OutputError, match="exists"):
            running.finish(manifest)
    assert open_engine(tmp_path / "tiny.fd")
