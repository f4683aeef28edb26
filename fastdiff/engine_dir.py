"""The engine folder: file names, reading with checks, atomic writing.

::

    scenes.fd/
      engine.json           the manifest: see fastdiff.manifest
      <module>…             the files of each module's target
      tokenizer/            vocab.json, merges.txt, tokenizer_config.json, special_tokens_map.json

An engine is written into a hidden folder ``.<name>.<token>.partial`` beside its destination, flushed to disk
and renamed, so whatever stands under the destination's name is complete.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import platform
import re
import secrets
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

from fastdiff.errors import (
    EngineDamagedError,
    EngineError,
    EngineMismatchError,
    FastdiffError,
    InputError,
    OutputError,
)
from fastdiff.manifest import Manifest, ModuleEntry, dump_manifest, parse_manifest

if TYPE_CHECKING:
    from fastdiff.targets import Session

__all__ = ["MANIFEST_NAME", "TOKENIZER_FOLDER", "Engine", "EngineWriter", "file_sha256", "open_engine"]

MANIFEST_NAME = "engine.json"
TOKENIZER_FOLDER = "tokenizer"
_PARTIAL, _REPLACED = ".partial", ".replaced"
_STALE_SECONDS = 60.0


@dataclass(frozen=True)
class Engine:
    """An engine folder whose manifest, and whose files unless told otherwise, have been checked."""

    path: Path
    manifest: Manifest

    @property
    def engine_hash(self) -> str:
        """SHA-256 over the manifest, as 64 hexadecimal digits."""
        return self.manifest.digest

    @property
    def tokenizer_folder(self) -> Path:
        return self.path / TOKENIZER_FOLDER

    def entry(self, name: str) -> ModuleEntry:
        """The manifest's entry of a module. Raises InputError when the engine has no such module."""
        try:
            return self.manifest.modules[name]
        except KeyError:
            present = ", ".join(self.manifest.modules)
            raise InputError(f"engine {self.path} has no module {name!r}; it has {present}") from None

    def open_module(self, name: str, threads: int | None = None) -> Session:
        """Open a module with the target that it was built for; ``threads`` None means every core.

        Raises TargetError when the target cannot run here, EngineDamagedError when it rejects its files.
        """
        from fastdiff.targets import get_target

        entry = self.entry(name)
        if threads is not None and threads < 1:
            raise InputError(f"threads is {threads}: give 1 or more")
        return get_target(entry.target).open(self.path, name, entry, threads)


def open_engine(
    path: str | os.PathLike[str], verify_hashes: bool = True, check_machine: bool = True
) -> Engine:
    """Open an engine folder.

    ``verify_hashes=False`` compares sizes only, for processes that open the same engine again and again.
    ``check_machine=False`` also opens an engine that cannot run here, to look at it.
    Raises EngineDamagedError, EngineVersionError or EngineMismatchError, all of them EngineErrors that name
    the reason.
    """
    folder = Path(path)
    try:
        if not folder.is_dir():
            found = "is not a folder" if folder.exists() else "does not exist"
            raise EngineError(f"{folder} {found}: give an engine folder, as fastdiff build writes it")
        if folder.name.endswith(_PARTIAL):
            raise EngineDamagedError(f"{folder} was left by a build that did not finish; build it again")
        manifest = parse_manifest((folder / MANIFEST_NAME).read_bytes())
        _check_files(folder, manifest, verify_hashes)
        if check_machine:
            check_engine_machine(manifest)
    except FileNotFoundError as error:
        name = os.path.basename(str(error.filename))
        raise EngineDamagedError(f"{folder}: {name} is missing; it is no engine or was damaged") from error
    except (OSError, ValueError) as error:
        if isinstance(error, FastdiffError):
            raise
        reason = getattr(error, "strerror", None) or error
        raise EngineDamagedError(f"{folder}: cannot be read ({reason})") from error
    except EngineError as error:
        if str(error).startswith(str(folder)):
            raise
        raise type(error)(f"{folder}: {error}") from error
    return Engine(folder, manifest)


def _check_files(folder: Path, manifest: Manifest, verify_hashes: bool) -> None:
    for module, entry in manifest.modules.items():
        size = sum(_file_size(folder, name) for name in entry.files)
        if size != entry.bytes:
            raise EngineDamagedError(
                f"files of {module} have {size} bytes, not {entry.bytes}; build it again"
            )
    for name, expected in manifest.all_files().items():
        _file_size(folder, name)
        if verify_hashes and file_sha256(folder / name) != expected:
            raise EngineDamagedError(
                f"{name} was changed after the build (its SHA-256 differs); build it again"
            )


def _file_size(folder: Path, name: str) -> int:
    path = folder / name
    if not path.is_file():
        raise EngineDamagedError(f"{name} is missing; build the engine again")
    return path.stat().st_size


def check_engine_machine(manifest: Manifest) -> None:
    """Raises EngineMismatchError when a module's target or requirements do not fit this machine."""
    from fastdiff.targets import get_target

    for module, entry in manifest.modules.items():
        needed, present = entry.requires.get("architecture"), platform.machine()
        if needed is not None and needed != present:
            raise EngineMismatchError(
                f"{module} was built for {needed}, this machine is {present}; build it here"
            )
        try:
            availability = get_target(entry.target).availability()
        except FastdiffError as error:
            raise EngineMismatchError(f"{module} was built for target {entry.target!r}: {error}") from error
        if not availability.ok:
            raise EngineMismatchError(
                f"{module} was built for target {entry.target!r}, which cannot run here:"
                f" {availability.reason}; {availability.fix}"
            )


def file_sha256(path: Path) -> str:
    """SHA-256 of a file as 64 hexadecimal digits."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


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
        self.folder = self.path.with_name(f".{self.path.name or 'engine'}.{secrets.token_hex(6)}{_PARTIAL}")

    def __enter__(self) -> EngineWriter:
        self._check_destination()
        try:
            self.folder.mkdir()
            self._lock = os.open(self.folder, os.O_RDONLY)
            fcntl.flock(self._lock, fcntl.LOCK_EX)
            (self.folder / TOKENIZER_FOLDER).mkdir()
        except OSError as error:
            self._remove()
            raise self._output_error(error) from error
        self._remove_stale()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None
        if error is None and self._finished:
            return
        self._remove()
        if isinstance(error, Exception) and not isinstance(error, OutputError) and self._is_mine(error):
            raise self._output_error(error) from error

    def hash_files(self, names: list[str] | tuple[str, ...]) -> tuple[dict[str, str], int]:
        """SHA-256 of each named file of the new engine, and their total size in bytes."""
        hashes = {name: file_sha256(self.folder / name) for name in names}
        return hashes, sum((self.folder / name).stat().st_size for name in names)

    def finish(self, manifest: Manifest) -> None:
        """Write the manifest, flush everything to disk and move the folder to its destination."""
        (self.folder / MANIFEST_NAME).write_bytes(dump_manifest(manifest).encode("utf-8"))
        for parent, _, names in os.walk(self.folder):
            for name in names:
                _flush(os.path.join(parent, name))
            _flush(parent)
        self._check_destination()
        _replace(self.folder, self.path)
        self._finished = True
        _flush(self.path.parent)

    def _check_destination(self) -> None:
        if not os.path.isdir(self.path.parent):
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

    def _remove(self) -> None:
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None
        shutil.rmtree(self.folder, ignore_errors=True)

    def _remove_stale(self) -> None:
        """Remove what killed builds of the same engine left: nobody holds the lock of their folder."""
        pattern = re.compile(re.escape(f".{self.path.name}.") + r"[0-9a-f]{12}" + re.escape(_PARTIAL))
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

    def _is_mine(self, error: Exception) -> bool:
        """Whether writing this engine failed, rather than something that happened meanwhile."""
        written = isinstance(error, OSError) and str(error.filename).startswith(str(self.folder))
        return written or _is_full(error)

    def _output_error(self, error: BaseException) -> OutputError:
        if _is_full(error):
            return OutputError(
                f"{self._shown}: no space left on the disk; free some or give another output folder"
            )
        reason = getattr(error, "strerror", None) or str(error)
        return OutputError(f"{self._shown}: cannot be written ({reason}); give another output folder")


def _replace(source: Path, destination: Path) -> None:
    """Rename ``source`` to ``destination``; what was there is removed once the new folder is in place."""
    if not os.path.lexists(destination):
        os.rename(source, destination)
        return
    old = source.with_name(source.name.removesuffix(_PARTIAL) + _REPLACED)
    os.rename(destination, old)
    try:
        os.rename(source, destination)
    except BaseException:
        os.rename(old, destination)
        raise
    shutil.rmtree(old, ignore_errors=True)


def _flush(path: str | Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


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
