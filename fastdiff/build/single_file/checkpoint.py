"""A checkpoint in one file, opened like any other."""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fastdiff.build.configs import described, read_json, read_source
from fastdiff.build.families.shared import TOKENIZERS
from fastdiff.build.opened import Checkpoint, modules_of
from fastdiff.build.single_file.layout import KINDS, SingleFile, kind_of
from fastdiff.build.single_file.vocabulary import find_tokenizers
from fastdiff.build.single_file.weights import load_converted
from fastdiff.build.tokenizers import check_tokenizer
from fastdiff.engine_dir import file_sha256
from fastdiff.errors import CheckpointError
from fastdiff.published import config_files

__all__ = ["FileCheckpoint", "load_file"]


@dataclass(frozen=True)
class FileCheckpoint(Checkpoint):
    """A checkpoint in one file, with the documents that stand for its configs and its tokenizers' files."""

    documents: Mapping[str, dict[str, Any]] = field(default_factory=dict)
    vocabularies: Mapping[str, dict[str, bytes]] = field(default_factory=dict)
    ema: bool = False

    def load_own(self, part: str) -> Any:
        """A part as a float32 torch module in evaluation mode. Raises CheckpointError."""
        return load_converted(SingleFile(self.path, self.ema), part, self.classes[part], self.configs[part])

    def tokenizer_files(self, folder: str = "tokenizer") -> dict[str, bytes]:
        """The contents of a tokenizer's files by name."""
        return dict(self.vocabularies[folder])

    def sha256(self) -> str:
        """Hash over the file, the configs and the tokenizers that a build reads."""
        total = hashlib.sha256(f"{file_sha256(self.path)} {self.ema}\n".encode())
        for name in sorted(self.documents):
            total.update(f"{name} {json.dumps(self.documents[name], sort_keys=True)}\n".encode())
        for folder, files in sorted(self.vocabularies.items()):
            for name, contents in sorted(files.items()):
                total.update(f"{folder}/{name} {hashlib.sha256(contents).hexdigest()}\n".encode())
        return total.hexdigest()


def load_file(
    path: Path, config: str | Path | None, tokenizer: str | Path | None, ema: bool
) -> FileCheckpoint:
    """Open a checkpoint in one file; arguments are those of ``load_checkpoint``. Raises CheckpointError."""
    file = SingleFile(path, ema)
    documents: dict[str, dict[str, Any]] = {}
    if config is None:
        published = config_files(KINDS[kind_of(file)])
        origin, read_document = path, published.__getitem__
    else:
        origin = Path(config)
        if not origin.is_dir():
            raise CheckpointError(f"config folder {origin} does not exist: give a diffusers folder")

        def read_document(name: str) -> dict[str, Any]:
            return read_json(origin, name)

    def read(name: str) -> dict[str, Any]:
        documents[name] = read_document(name)
        return documents[name]

    source, family, tokenizers = read_source(origin, read, lambda *_: 0)
    spec = described(source, family)
    for part in source.classes:
        file.of(part)
    padding = {
        TOKENIZERS[part]: "<|endoftext|>" if file.of(part).endswith("transformer.") else "!"
        for part in source.classes
        if part in TOKENIZERS
    }
    given = None if tokenizer is None else Path(tokenizer)
    vocabularies = find_tokenizers(path, given, padding) if padding else {}
    for part, folder in ((part, TOKENIZERS[part]) for part in source.classes if part in TOKENIZERS):
        with tempfile.TemporaryDirectory() as scratch:
            for name, contents in vocabularies[folder].items():
                Path(scratch, name).write_bytes(contents)
            vocabulary = int(source.configs[part]["vocab_size"])
            check_tokenizer(Path(scratch), vocabularies[folder], vocabulary, spec.max_tokens)
    return FileCheckpoint(
        path,
        path.stem,
        False,
        {part: dict(document) for part, document in source.configs.items()},
        spec,
        source.classes,
        modules_of(source.classes),
        tokenizers,
        family.folders,
        documents=documents,
        vocabularies=vocabularies,
        ema=ema,
    )
