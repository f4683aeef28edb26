"""The schema of ``engine.json`` and its exact text form.

The text is canonical (sorted keys, fixed indentation) and carries its own SHA-256, so every change of the
file is noticed, a flipped byte in white space too. The format version is checked before anything else: it
promises the rest of the schema.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import re
import types
import typing
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from fastdiff.config import ModelSpec, Precision, SizeRange, TensorSpec
from fastdiff.errors import EngineDamagedError, EngineVersionError

__all__ = [
    "FORMAT_VERSION",
    "Manifest",
    "ModuleEntry",
    "decode",
    "dump_manifest",
    "encode",
    "parse_manifest",
]

FORMAT_VERSION = 1
"""Version of the engine format that this fastdiff writes and reads."""

_DIGEST = "manifest_sha256"
_FILE_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*(/[A-Za-z0-9_][A-Za-z0-9_.-]*)*", re.ASCII)
_SHA256 = re.compile(r"[0-9a-f]{64}", re.ASCII)


@dataclass(frozen=True)
class ModuleEntry:
    """One compiled module.

    ``files`` maps names inside the engine folder to SHA-256 sums and ``bytes`` is their total size.
    ``shapes`` gives the values of each symbolic size. ``error`` holds ``relative_l2`` and ``max_abs``
    against PyTorch, measured at build; ``seconds`` is the time that building took. ``tactics`` is what the
    target chose, ``requires`` what it needs of a machine: ``{"architecture": "x86_64", "isa": "avx2"}``.
    """

    target: str
    precision: Precision
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    shapes: dict[str, SizeRange]
    files: dict[str, str]
    bytes: int
    error: dict[str, float]
    seconds: float
    tactics: dict[str, Any] = field(default_factory=dict)
    requires: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Manifest:
    """The contents of ``engine.json``. ``scheduler`` is the checkpoint's scheduler config."""

    format_version: int
    model: ModelSpec
    scheduler: dict[str, Any]
    modules: dict[str, ModuleEntry]
    tokenizer_files: dict[str, str]
    provenance: dict[str, Any]

    @functools.cached_property
    def digest(self) -> str:
        """SHA-256 of the manifest, which covers every file's hash: the identity of the engine."""
        return _digest(encode(self))

    def all_files(self) -> dict[str, str]:
        """Every file of the engine but the manifest itself, with its SHA-256."""
        files = dict(self.tokenizer_files)
        for entry in self.modules.values():
            files.update(entry.files)
        return files


def dump_manifest(manifest: Manifest) -> str:
    """The text of ``engine.json``."""
    document = encode(manifest)
    return _text({**document, _DIGEST: _digest(document)})


def parse_manifest(raw: bytes) -> Manifest:
    """Read the bytes of ``engine.json``.

    Raises EngineVersionError for another format version and EngineDamagedError for anything that
    ``dump_manifest`` cannot have written. The messages name no path; the caller knows it.
    """
    try:
        document = json.loads(raw.decode("utf-8"), parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise EngineDamagedError(f"engine.json is not valid JSON ({_brief(error)})") from error
    if not isinstance(document, dict):
        raise EngineDamagedError("engine.json does not hold an object")
    version = document.get("format_version")
    if isinstance(version, bool) or not isinstance(version, int):
        raise EngineDamagedError("engine.json has no format_version")
    if version != FORMAT_VERSION:
        newer = version > FORMAT_VERSION
        raise EngineVersionError(
            f"engine has format version {_brief(version)}, {'newer' if newer else 'older'} than the"
            f" {FORMAT_VERSION} that is read here; {'update fastdiff or ' if newer else ''}build it again"
        )
    digest = document.pop(_DIGEST, None)
    try:
        intact = _digest(document) == digest and _text({**document, _DIGEST: digest}).encode("utf-8") == raw
    except (ValueError, RecursionError) as error:
        raise EngineDamagedError(f"engine.json cannot be read back ({_brief(error)})") from error
    if not intact:
        raise EngineDamagedError("engine.json was changed after the build (its SHA-256 differs)")
    try:
        manifest: Manifest = decode(Manifest, document, "engine.json")
    except _SchemaError as error:
        raise EngineDamagedError(str(error)) from error
    _check(manifest)
    return manifest


def _check(manifest: Manifest) -> None:
    """What the types do not say: file names stay inside the folder, hashes are hashes, sizes are sizes."""
    for name, digest in manifest.all_files().items():
        if not _FILE_NAME.fullmatch(name):
            raise EngineDamagedError(f"engine.json names a file outside the engine folder: {_brief(name)}")
        if not _SHA256.fullmatch(digest):
            raise EngineDamagedError(f"engine.json has no valid SHA-256 for {name}")
    for module, entry in manifest.modules.items():
        for tensor in (*entry.inputs, *entry.outputs):
            try:
                symbols = {symbol for _, symbol in tensor.factors() if symbol is not None}
            except ValueError as error:
                raise EngineDamagedError(f"engine.json: {module}.{tensor.name}: {_brief(error)}") from error
            if missing := symbols - entry.shapes.keys():
                names = ", ".join(sorted(missing))
                raise EngineDamagedError(f"engine.json gives no range for {names} of {module}")
        if any(size.multiple_of < 1 or size.minimum < 1 for size in entry.shapes.values()):
            raise EngineDamagedError(f"engine.json has an impossible shape range for {module}")


def _text(document: dict[str, Any]) -> str:
    return json.dumps(document, indent=2, sort_keys=True, allow_nan=False) + "\n"


def _digest(document: dict[str, Any]) -> str:
    return hashlib.sha256(_text(document).encode("utf-8")).hexdigest()


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON number")


def _brief(value: object) -> str:
    text = " ".join(str(value).split())
    return text if len(text) <= 80 else text[:77] + "..."


def encode(value: Any) -> Any:
    """Dataclasses, enums and tuples as plain JSON values."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {
            item.name: encode(getattr(value, item.name))
            for item in dataclasses.fields(value)
            if not (item.metadata.get("optional") and getattr(value, item.name) == item.default)
        }
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, dict):
        return {str(key): encode(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [encode(item) for item in value]
    return value


class _SchemaError(ValueError):
    pass


_hints = functools.cache(typing.get_type_hints)


def decode(kind: Any, value: Any, where: str) -> Any:
    """``value``, parsed from JSON, as an instance of ``kind``; raises ValueError naming ``where``."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if kind is Any:
        return value
    if dataclasses.is_dataclass(kind) and isinstance(kind, type):
        if not isinstance(value, dict):
            raise _SchemaError(f"{where} is not an object")
        hints = _hints(kind)
        optional = {item.name for item in dataclasses.fields(kind) if item.metadata.get("optional")}
        if difference := (hints.keys() ^ value.keys()) - (optional - value.keys()):
            raise _SchemaError(
                f"{where} has missing or unknown keys: {_brief(', '.join(sorted(difference)))}"
            )
        return kind(**{name: decode(hints[name], item, f"{where}: {name}") for name, item in value.items()})
    if origin is dict and isinstance(value, dict):
        return {key: decode(arguments[1], item, f"{where}: {_brief(key)}") for key, item in value.items()}
    if origin is tuple and isinstance(value, list):
        return tuple(decode(arguments[0], item, where) for item in value)
    if origin in (types.UnionType, typing.Union):
        for option in arguments:
            try:
                return decode(option, value, where)
            except _SchemaError:
                continue
    elif isinstance(kind, type) and issubclass(kind, Enum):
        try:
            return kind(value)
        except ValueError:
            raise _SchemaError(
                f"{where} is {_brief(repr(value))}, which this fastdiff does not know"
            ) from None
    elif kind is float and isinstance(value, (int, float)) and not isinstance(value, bool):
        try:
            return float(value)
        except OverflowError:
            raise _SchemaError(f"{where} is too large") from None
    elif isinstance(kind, type) and origin is None and type(value) is kind:
        return value
    raise _SchemaError(f"{where} is {_brief(repr(value))}, which has the wrong type")
