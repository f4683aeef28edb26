"""CLIP's tokenizer for a checkpoint that comes without one.

Its vocabulary is too large to ship and nothing is downloaded. It is looked for, in this order, in the folder
that the caller gives, in a folder ``tokenizer`` beside the file, in the local cache of Hugging Face, and in
the installed package ``open_clip``, which is not imported.
"""

from __future__ import annotations

import gzip
import importlib.util
import json
import os
from collections.abc import Iterator
from pathlib import Path

from fastdiff.build.tokenizers import read_tokenizer
from fastdiff.errors import CheckpointError

__all__ = ["find_tokenizers"]

_MODEL = "openai/clip-vit-large-patch14"
_START, _END = "<|startoftext|>", "<|endoftext|>"
_OPEN_CLIP = "bpe_simple_vocab_16e6.txt.gz"
_MERGES = 49_152 - 256 - 2
"""Merges of CLIP's vocabulary; the file goes on after them."""
_WINDOW = 77

Files = dict[str, bytes]


def find_tokenizers(checkpoint: Path, given: Path | None, padding: dict[str, str]) -> dict[str, Files]:
    """The files of each tokenizer by folder, by name.

    ``padding`` names the folders, each with the token that the model pads prompts with: OpenCLIP's encoders
    pad with ``!``, which is token 0. Raises CheckpointError where no vocabulary is found.
    """
    if given is not None:
        if not given.is_dir():
            raise CheckpointError(
                f"tokenizer folder {given} does not exist: give one with vocab.json and merges.txt"
            )
        return _of_folder(given, padding)
    beside = checkpoint.parent / "tokenizer"
    if beside.is_dir():
        return _of_folder(checkpoint.parent, padding)
    vocabulary = _cached() or _of_open_clip()
    if vocabulary is None:
        raise CheckpointError(
            f"{checkpoint} has no tokenizer: give one as --tokenizer FOLDER, put a folder tokenizer beside"
            f" it, download {_MODEL} with huggingface-cli, or install open_clip_torch"
        )
    return {folder: {**vocabulary, **_settings(pad)} for folder, pad in padding.items()}


def _of_folder(root: Path, padding: dict[str, str]) -> dict[str, Files]:
    """Tokenizers of a folder: one for each of ``padding`` below it, or else ``tokenizer`` or the folder
    itself, which has the vocabulary of all and is given the padding of the others.
    """
    main = root / "tokenizer" if (root / "tokenizer").is_dir() else root
    found = {}
    for index, (folder, pad) in enumerate(padding.items()):
        own = root / folder
        if own.is_dir():
            found[folder] = read_tokenizer(own)
        else:
            found[folder] = read_tokenizer(main)
            if index or folder != "tokenizer":
                found[folder].update(_settings(pad))
    return found


def _settings(pad: str) -> Files:
    """What CLIP's tokenizers say beside their vocabulary."""
    special = {"bos_token": _START, "eos_token": _END, "unk_token": _END, "pad_token": pad}
    config = {"tokenizer_class": "CLIPTokenizer", "model_max_length": _WINDOW, "do_lower_case": True}
    return {
        "tokenizer_config.json": json.dumps({**config, **special}).encode(),
        "special_tokens_map.json": json.dumps(special).encode(),
    }


def _cached() -> Files | None:
    """Vocabulary and merges out of the cache of ``huggingface_hub``, without that package."""
    for folder in _snapshots():
        if (folder / "vocab.json").is_file() and (folder / "merges.txt").is_file():
            return {name: (folder / name).read_bytes() for name in ("vocab.json", "merges.txt")}
    return None


def _snapshots() -> Iterator[Path]:
    """The cached versions of the model, the current one first."""
    home = Path(os.environ.get("HF_HOME") or Path.home() / ".cache" / "huggingface")
    hub = Path(os.environ.get("HF_HUB_CACHE") or home / "hub")
    model = hub / f"models--{_MODEL.replace('/', '--')}"
    main = model / "refs" / "main"
    if main.is_file():
        yield model / "snapshots" / main.read_text(encoding="utf-8").strip()
    if (model / "snapshots").is_dir():
        yield from sorted((model / "snapshots").iterdir())


def _of_open_clip() -> Files | None:
    """Vocabulary and merges as ``open_clip`` makes them of its file."""
    found = importlib.util.find_spec("open_clip")  # of a package alone: this imports nothing
    if found is None or found.origin is None:
        return None
    file = Path(found.origin).parent / _OPEN_CLIP
    if not file.is_file():
        return None
    try:
        lines = gzip.decompress(file.read_bytes()).decode("utf-8").split("\n")
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{file} cannot be read ({error}): install open_clip_torch again") from error
    merges = [line for line in lines[1 : _MERGES + 1] if line.strip()]
    letters = _letters()
    joined = ("".join(merge.split()) for merge in merges)
    tokens = [*letters, *(f"{letter}</w>" for letter in letters), *joined, _START, _END]
    vocabulary = {token: number for number, token in enumerate(tokens)}
    return {
        "vocab.json": json.dumps(vocabulary, ensure_ascii=False).encode("utf-8"),
        "merges.txt": ("\n".join(["#version: 0.2", *merges]) + "\n").encode("utf-8"),
    }


def _letters() -> list[str]:
    """The characters that stand for bytes, in CLIP's order: those that can be printed, then the others."""
    printable = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return [*map(chr, printable), *(chr(256 + index) for index in range(len(others)))]
