"""Writing an engine folder atomically.

The files go into a hidden folder ``.<name>.<token>.partial`` beside the destination, are flushed to disk,
and the folder is renamed. A build that is killed leaves only such a folder; the next build of the same
engine removes it.
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
import secrets
import shutil
import time
from pathlib import Path
from types import TracebackType

from fastdiff.engine_dir import MANIFEST_NAME, PARTIAL_SUFFIX, TOKENIZER_FOLDER, file_sha256
from fastdiff.errors import OutputError
from fastdiff.manifest import Manifest, dump_manifest

__all__ = ["EngineWriter"]

_REPLACED_SUFFIX = ".replaced"
_STALE_SECONDS = 60.0
_LEAST_FREE = 1 << 16
"""Free bytes under which a failure is put down to the full disk, for libraries that do not say."""


class EngineWriter:
    """Writes an engine atomically: ``with EngineWriter(path) as writer: …; writer.finish(manifest)``.

    Files go into ``writer.folder``. Leaving the block without ``finish``, or by any exception, removes
    everything that was written. Raises OutputError for a destination that exists (``force`` replaces an
    engine, and nothing but an engine, once the new one is complete), cannot be written, or runs out of space.
    """

    def __init__(self, path: str | os.PathLike[str], force: bool = False) -> None:
        self.path = Path(os.path.realpath(path))
        self._shown = os.fspath(path)
        self._force = force
        self._finished = False
        self._lock: int | None = None
        self.folder = self.path.parent / f".{self.path.name}.{secrets.token_hex(6)}{PARTIAL_SUFFIX}"

    def __enter__(self) -> EngineWriter:
        self._check_destination()
        try:
            self.folder.mkdir()
            self._lock = os.open(self.folder, os.O_RDONLY)
            fcntl.flock(self._lock, fcntl.LOCK_EX)
            (self.folder / TOKENIZER_FOLDER).mkdir()
            self._remove_stale()
        except OSError as error:
            self._remove()
            raise self._output_error(error) from error
        except BaseException:
            self._remove()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None and self._finished:
            self._unlock()
            return
        full = _free_bytes(self.folder) < _LEAST_FREE
        self._remove()
        if not isinstance(error, Exception) or isinstance(error, OutputError):
            return
        if full or _is_full(error):
            raise OutputError(
                f"{self._shown}: no space left on the disk; free some or give another output folder"
            ) from error
        if isinstance(error, OSError) and str(error.filename).startswith(str(self.folder)):
            raise self._output_error(error) from error

    def hash_files(self, names: list[str] | tuple[str, ...]) -> tuple[dict[str, str], int]:
        """SHA-256 of each named file of the new engine, and their total size in bytes."""
        hashes = {name: file_sha256(self.folder / name) for name in names}
        return hashes, sum((self.folder / name).stat().st_size for name in names)

    def finish(self, manifest: Manifest) -> None:
        """Write the manifest, flush everything to disk and move the folder to its destination."""
        (self.folder / MANIFEST_NAME).write_bytes(dump_manifest(manifest).encode("utf-8"))
        mode = (self.folder / MANIFEST_NAME).stat().st_mode & 0o777
        for parent, _, names in os.walk(self.folder):
            for name in names:
                Path(parent, name).chmod(mode)  # some libraries write files that only their owner may read
                _flush(Path(parent, name))
            _flush(parent)
        self._check_destination()
        _replace(self.folder, self.path)
        self._finished = True
        _flush(self.path.parent)

    def _check_destination(self) -> None:
        if not self.path.parent.is_dir():
            raise OutputError(f"{self._shown}: folder {self.path.parent} does not exist; create it first")
        if not os.path.lexists(self.path):
            return
        if not self.path.is_dir():
            raise OutputError(f"{self._shown} exists and is a file; give another output folder")
        if not self._force:
            raise OutputError(f"{self._shown} exists; give another output folder or --force to replace it")
        if not (self.path / MANIFEST_NAME).is_file() and any(self.path.iterdir()):
            raise OutputError(
                f"{self._shown} exists and is not an engine; it is not replaced, give another folder"
            )

    def _unlock(self) -> None:
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def _remove(self) -> None:
        self._unlock()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _remove_stale(self) -> None:
        """Remove what killed builds of the same engine left: nobody holds the lock of their folder."""
        pattern = re.compile(re.escape(f".{self.path.name}.") + r"[0-9a-f]{12}" + re.escape(PARTIAL_SUFFIX))
        for folder in self.path.parent.iterdir():
            if folder == self.folder or not pattern.fullmatch(folder.name):
                continue
            try:
                if time.time() - folder.stat().st_mtime < _STALE_SECONDS:
                    continue
                lock = os.open(folder, os.O_RDONLY)
            except OSError:
                continue
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(folder, ignore_errors=True)
            except OSError:
                pass
            finally:
                os.close(lock)

    def _output_error(self, error: OSError) -> OutputError:
        reason = error.strerror or str(error)
        return OutputError(f"{self._shown}: cannot be written ({reason}); give another output folder")


def _replace(source: Path, destination: Path) -> None:
    """Rename ``source`` to ``destination``; what was there is removed once the new folder is in place."""
    if not os.path.lexists(destination):
        source.rename(destination)
        return
    old = source.with_name(source.name.removesuffix(PARTIAL_SUFFIX) + _REPLACED_SUFFIX)
    destination.rename(old)
    try:
        source.rename(destination)
    except BaseException:
        old.rename(destination)
        raise
    shutil.rmtree(old, ignore_errors=True)


def _flush(path: str | Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _free_bytes(folder: Path) -> int:
    try:
        return shutil.disk_usage(folder).free
    except OSError:
        return _LEAST_FREE


_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_FULL_TEXTS = tuple(os.strerror(number) for number in _FULL)


def _is_full(error: BaseException) -> bool:
    """Whether an exception, or one that it came from, says that the disk is full.

    Libraries wrap the system's error in types of their own and keep only its text.
    """
    while True:
        if isinstance(error, OSError) and error.errno in _FULL:
            return True
        if any(text in str(error) for text in _FULL_TEXTS):
            return True
        cause = error.__cause__ or error.__context__
        if cause is None:
            return False
        error = cause
