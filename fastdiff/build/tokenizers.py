"""The files of a checkpoint's tokenizer: reading them in both layouts, and checking what they hold."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from fastdiff.errors import CheckpointError, EngineDamagedError
from fastdiff.tokenizer import ClipTokenizer

__all__ = ["TOKENIZER_FILES", "check_tokenizer", "read_tokenizer"]

TOKENIZER_FILES = (
    "vocab.json",
    "merges.txt",
    "tokenizer_config.json",
    "special_tokens_map.json",
    # words that were added after training, by textual inversion
    "added_tokens.json",
    "tokenizer.json",
)


def read_tokenizer(folder: Path) -> dict[str, bytes]:
    """The contents of the tokenizer's files by name. Raises CheckpointError."""
    contents = {name: (folder / name).read_bytes() for name in TOKENIZER_FILES if (folder / name).is_file()}
    if "vocab.json" not in contents or "merges.txt" not in contents:
        contents.update(_from_tokenizer_json(folder))
    return contents


def check_tokenizer(folder: Path, files: Mapping[str, bytes], vocab_size: int, window: int) -> None:
    """Raises CheckpointError for files that are damaged, or have tokens without an embedding."""
    _check_vocabulary(folder, files["vocab.json"], vocab_size)
    try:
        ClipTokenizer(folder, window)
    except EngineDamagedError as error:
        reason = str(error).partition(": rebuild the engine")[0]
        raise CheckpointError(f"{reason}: download the checkpoint again") from error


def _from_tokenizer_json(folder: Path) -> dict[str, bytes]:
    """Vocabulary and merges out of ``tokenizer.json``, which newer libraries write instead of two files."""
    file = folder / "tokenizer.json"
    if not file.is_file():
        raise CheckpointError(
            f"{folder}: vocab.json and merges.txt are missing: give a complete diffusers folder"
        )
    try:
        document = json.loads(file.read_text(encoding="utf-8"))
        model = document["model"]
        pairs = [pair if isinstance(pair, str) else " ".join(pair) for pair in model["merges"]]
        added = {token["content"]: token["id"] for token in document.get("added_tokens") or ()}
        vocabulary = json.dumps({**model["vocab"], **added}, ensure_ascii=False)
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise CheckpointError(f"{file} holds no readable BPE model: download the checkpoint again") from error
    merges = "\n".join(["#version: 0.2", *pairs]) + "\n"
    return {"vocab.json": vocabulary.encode("utf-8"), "merges.txt": merges.encode("utf-8")}


def _check_vocabulary(folder: Path, raw: bytes, vocab_size: int) -> None:
    try:
        vocabulary = json.loads(raw.decode("utf-8"))
        largest = max(vocabulary.values())
    except (ValueError, AttributeError, TypeError, RecursionError) as error:
        raise CheckpointError(
            f"{folder / 'vocab.json'} is no vocabulary: download the checkpoint again"
        ) from error
    if largest >= vocab_size:
        raise CheckpointError(
            f"{folder}: the tokenizer has token {largest}, the text encoder only {vocab_size} embeddings"
        )
