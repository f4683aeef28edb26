"""The engine folder: its file names, and opening it with checks.

::

    scenes.fd/
      engine.json           the manifest: see fastdiff.manifest
      <module>…             the files of each module's target
      tokenizer/            vocab.json, merges.txt, tokenizer_config.json, special_tokens_map.json
      tokenizer_2/          of a second text encoder, where there is one

fastdiff.engine_writer writes it into a hidden folder ``.<name>.<token>.partial`` beside its destination and
renames that, so whatever stands under the destination's name is complete.
"""

from __future__ import annotations

import hashlib
import os
import platform
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from fastdiff.arguments import integer
from fastdiff.devices import Device, check_device, gpu_number
from fastdiff.errors import (
    EngineDamagedError,
    EngineError,
    EngineMismatchError,
    FastdiffError,
    InputError,
)
from fastdiff.manifest import Manifest, ModuleEntry, parse_manifest

if TYPE_CHECKING:
    from fastdiff.targets import Session

__all__ = [
    "MANIFEST_NAME",
    "PARTIAL_SUFFIX",
    "TOKENIZER_FOLDER",
    "Engine",
    "check_engine_machine",
    "file_sha256",
    "open_engine",
]

MANIFEST_NAME = "engine.json"
TOKENIZER_FOLDER = "tokenizer"
PARTIAL_SUFFIX = ".partial"
"""Ending of the folder that an engine is written into; such a folder is never opened."""

_LARGEST_HASHED = 1 << 24
"""Bytes up to which a file is hashed at every opening even though its target checks it as well: 10 ms."""


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
        """The folder with the first tokenizer's files."""
        return self.path / TOKENIZER_FOLDER

    def entry(self, name: str) -> ModuleEntry:
        """The manifest's entry of a module. Raises InputError when the engine has no such module."""
        try:
            return self.manifest.modules[name]
        except KeyError:
            present = ", ".join(self.manifest.modules)
            raise InputError(f"engine {self.path} has no module {name!r}; it has {present}") from None

    def open_module(self, name: str, threads: int | None = None, device: Device | None = None) -> Session:
        """Open a module with the target that it was built for; ``threads`` None means every core.

        ``device`` is one that ``fastdiff.devices.check_device`` lets through, None the target's own choice.
        Raises TargetError when the target cannot run here, EngineDamagedError when it rejects its files.
        """
        from fastdiff.targets import get_target

        entry = self.entry(name)
        if threads is not None:
            threads = integer("threads", threads, minimum=1)
        return get_target(entry.target).open(self.path, name, entry, threads, gpu_number(device))


def open_engine(
    path: str | os.PathLike[str],
    verify_hashes: bool = True,
    check_machine: bool = True,
    all_hashes: bool = False,
    device: Device | None = None,
) -> Engine:
    """Open an engine folder.

    The size of every file is compared with the manifest, and its SHA-256 too, except for a file over 16 MiB
    that its target checks itself (SELF_CHECKING): to hash gigabytes of weights would take longer than to use
    them. ``all_hashes=True`` hashes these as well, as ``fastdiff verify`` does.
    ``verify_hashes=False`` compares sizes only, for processes that open the same engine again and again.
    ``check_machine=False`` also opens an engine that cannot run here, to look at it. ``device`` is what its
    modules shall run on, None leaving that to their targets.
    Raises EngineDamagedError, EngineVersionError or EngineMismatchError, all of them EngineErrors that name
    the reason, and for ``device`` what ``fastdiff.devices.check_device`` raises.
    """
    if not isinstance(path, (str, os.PathLike)):
        raise InputError(f"engine is of type {type(path).__name__}: it must be the name of a folder")
    folder = Path(path)
    try:
        if not folder.is_dir():
            found = "is not a folder" if folder.exists() else "does not exist"
            raise EngineError(f"{folder} {found}: give an engine folder, as fastdiff build writes it")
        if folder.name.endswith(PARTIAL_SUFFIX):
            raise EngineDamagedError(f"{folder} was left by a build that did not finish; build it again")
        manifest = parse_manifest((folder / MANIFEST_NAME).read_bytes())
        _check_files(folder, manifest, verify_hashes, all_hashes)
        if check_machine:
            check_engine_machine(manifest, device)
    except FileNotFoundError as error:
        name = Path(str(error.filename)).name
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


def _check_files(folder: Path, manifest: Manifest, verify_hashes: bool, all_hashes: bool) -> None:
    trusted: set[str] = set()
    for module, entry in manifest.modules.items():
        size = sum(_file_size(folder, name) for name in entry.files)
        if size != entry.bytes:
            raise EngineDamagedError(
                f"files of {module} have {size} bytes, not {entry.bytes}; build it again"
            )
        if not all_hashes:
            trusted |= {name for name in entry.files if name.endswith(_self_checking(entry.target))}
    for name, expected in manifest.all_files().items():
        large = _file_size(folder, name) > _LARGEST_HASHED
        if verify_hashes and not (large and name in trusted) and file_sha256(folder / name) != expected:
            raise EngineDamagedError(
                f"{name} was changed after the build (its SHA-256 differs); build it again"
            )


def _self_checking(target: str) -> tuple[str, ...]:
    """Endings of the files that a target checks whenever it opens them; none for an unknown target."""
    from fastdiff.targets import TARGETS, get_target

    return get_target(target).SELF_CHECKING if target in TARGETS else ()


def _file_size(folder: Path, name: str) -> int:
    path = folder / name
    if not path.is_file():
        raise EngineDamagedError(f"{name} is missing; build the engine again")
    return path.stat().st_size


def check_engine_machine(manifest: Manifest, device: Device | None = None) -> None:
    """Raises EngineMismatchError when a module's target or requirements do not fit this machine.

    With the number of a GPU it is that GPU that must fit, not the one that a target takes by itself.
    """
    from fastdiff.targets import get_target

    for module, entry in manifest.modules.items():
        needed, present = entry.requires.get("architecture"), platform.machine()
        if needed is not None and needed != present:
            raise EngineMismatchError(
                f"{module} was built for {needed}, this machine is {present}; build it here"
            )
        try:
            target = get_target(entry.target)
            availability = target.availability()
        except FastdiffError as error:
            raise EngineMismatchError(f"{module} was built for target {entry.target!r}: {error}") from error
        if not availability.ok:
            raise EngineMismatchError(
                f"{module} was built for target {entry.target!r}, which cannot run here:"
                f" {availability.reason}; {availability.fix}"
            )
        mismatch = getattr(target, "mismatch", None) if gpu_number(device) is None else None
        if mismatch is not None and (reason := mismatch(entry)):
            raise EngineMismatchError(f"{module} was built for {reason}; build it here")
    if device is not None:
        check_device(manifest, device)


def file_sha256(path: Path) -> str:
    """SHA-256 of a file as 64 hexadecimal digits."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
