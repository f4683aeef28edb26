"""CLIP's byte-level BPE at generation time, without transformers.

A prompt becomes token ids in five stages, as in Radford et al. 2021 ("Learning Transferable Visual Models
From Natural Language Supervision") and as ``transformers.CLIPTokenizer`` does it:

    NFC, white space runs → one space, lower case
    → words: special tokens, English contractions, letter runs, single digits, symbol runs; no white space
    → bytes, each written as one printable character
    → merges by rank; the last symbol of a word carries the suffix ``</w>``
    → ``<|startoftext|>`` … ``<|endoftext|>``, cut to the window and filled up with the pad token

The files are the checkpoint's own: ``vocab.json``, ``merges.txt`` and ``added_tokens.json``, or the
``tokenizer.json`` that newer versions of transformers write in their place and prefer where both are there;
``tokenizer_config.json`` and ``special_tokens_map.json``.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import AddedToken, Encoding, Regex, Tokenizer, normalizers, pre_tokenizers
from tokenizers.models import BPE

from fastdiff.errors import EngineDamagedError

__all__ = ["ClipTokenizer", "TokenizedPrompt", "Word"]

_SPECIALS = ("bos_token", "eos_token", "unk_token", "pad_token")
_DEFAULTS = {
    "bos_token": "<|startoftext|>",
    "eos_token": "<|endoftext|>",
    "unk_token": "<|endoftext|>",
    "pad_token": "<|endoftext|>",
}
_CONTRACTIONS = "'s|'t|'re|'ve|'m|'ll|'d"
_WORDS = rf"<\|startoftext\|>|<\|endoftext\|>|{_CONTRACTIONS}|[\p{{L}}]+|[\p{{N}}]|[^\s\p{{L}}\p{{N}}]+"


@dataclass(frozen=True)
class TokenizedPrompt:
    """One prompt as the text encoder takes it.

    ``ids``: ``window`` token ids with start, end and padding. ``dropped``: the part of the prompt, in its own
    spelling, that did not fit into the window; empty when everything did.
    """

    ids: tuple[int, ...]
    dropped: str


@dataclass(frozen=True)
class Word:
    """The ids of one word, special token or run of symbols, and where it begins in the text."""

    ids: tuple[int, ...]
    begin: int


class ClipTokenizer:
    """The tokenizer in ``folder``; ``window`` is the number of positions the text encoder has.

    Where ``tokenizer_config.json`` gives a smaller ``model_max_length``, that is the window, as in diffusers.
    Raises ``EngineDamagedError`` when a file is missing or cannot be read as what it should be.
    """

    def __init__(self, folder: str | Path, window: int) -> None:
        folder = Path(folder)
        try:
            config = _read_config(folder)
            whole = _read_json(folder / "tokenizer.json") if (folder / "tokenizer.json").exists() else None
            vocab, merges = _read_vocabulary(folder, whole)
            specials = {key: _added_token(config.get(key) or _DEFAULTS[key]) for key in _SPECIALS}
            added = _read_added_tokens(folder, config, whole, specials)
            tokenizer = _build(vocab, merges, specials, added)
        except EngineDamagedError:
            raise
        except Exception as error:  # wrong types inside the JSON; the library's refusals are bare Exceptions
            reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
            raise EngineDamagedError(
                f"tokenizer files in {folder} do not fit together ({reason}): rebuild the engine"
            ) from error
        declared = config.get("model_max_length")
        self.window = min(window, int(declared)) if isinstance(declared, (int, float)) else window
        if self.window < 3:
            raise EngineDamagedError(
                f"tokenizer window is {self.window} tokens, wanted at least 3 "
                f"(start, one token, end): rebuild the engine from a sound checkpoint"
            )
        self._tokenizer = tokenizer
        self._bos = _id(tokenizer, specials["bos_token"])
        self._eos = _id(tokenizer, specials["eos_token"])
        self._pad = _id(tokenizer, specials["pad_token"])
        self._pad_left = config.get("padding_side", "right") == "left"
        self._cut_left = bool(config.get("truncation_side", "right") == "left")

    @property
    def vocab_size(self) -> int:
        """Number of ids, added tokens included; the text encoder's embedding must have as many rows."""
        return int(self._tokenizer.get_vocab_size(with_added_tokens=True))

    @property
    def room(self) -> int:
        """Tokens between start and end."""
        return self.window - 2

    @property
    def cuts_left(self) -> bool:
        """Whether it is the beginning of a prompt that is cut off."""
        return self._cut_left

    def words(self, text: str) -> list[Word]:
        """The words of a text, however long, without start, end and padding."""
        encoding: Encoding = self._tokenizer.encode(text, add_special_tokens=False)
        found: list[Word] = []
        last: int | None = None
        for index, number in enumerate(encoding.word_ids):
            token = encoding.ids[index]
            if number is not None and number == last:
                found[-1] = Word((*found[-1].ids, token), found[-1].begin)
            else:
                found.append(Word((token,), encoding.offsets[index][0]))
            last = number
        return found

    def frame(self, body: Sequence[int]) -> tuple[tuple[int, ...], int]:
        """A window of ids, and where in it ``body`` begins, which has at most ``room`` ids."""
        ids = (self._bos, *body, self._eos)
        padding = (self._pad,) * (self.window - len(ids))
        return (padding + ids, len(padding) + 1) if self._pad_left else (ids + padding, 1)

    def tokenize(self, prompt: str) -> TokenizedPrompt:
        """Token ids of one prompt, cut and padded to the window, and the text that was cut off."""
        encoding: Encoding = self._tokenizer.encode(prompt, add_special_tokens=False)
        body: list[int] = encoding.ids
        room = self.window - 2
        dropped = ""
        if len(body) > room:
            if self._cut_left:
                cut = len(body) - room
                dropped = prompt[: encoding.offsets[cut - 1][1]].strip()
                body = body[cut:]
            else:
                dropped = prompt[encoding.offsets[room][0] :].strip()
                body = body[:room]
        return TokenizedPrompt(self.frame(body)[0], dropped)

    def __call__(self, prompts: Sequence[str]) -> NDArray[np.int64]:
        """``input_ids`` int64 [len(prompts), window]; what does not fit is cut off silently."""
        return np.array([self.tokenize(prompt).ids for prompt in prompts], dtype=np.int64)


def _build(
    vocab: dict[str, int],
    merges: list[tuple[str, str]],
    specials: dict[str, AddedToken],
    added: list[AddedToken],
) -> Tokenizer:
    """The pipeline of the module docstring as one object of the tokenizers library."""
    model = BPE(
        vocab=vocab,
        merges=merges,
        continuing_subword_prefix="",
        end_of_word_suffix="</w>",
        fuse_unk=False,
        unk_token=specials["unk_token"].content,
    )
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_WORDS), behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    listed = {token.content for token in added}
    # of several special tokens with one text the last decides how it is matched, as in transformers: Stable
    # Diffusion 1 gives the end token as an object that matches lower-cased text and as plain pad token
    tokenizer.add_tokens([*added, *(token for token in specials.values() if token.content not in listed)])
    return tokenizer


def _id(tokenizer: Tokenizer, token: AddedToken) -> int:
    index = tokenizer.token_to_id(token.content)
    if index is None:
        raise EngineDamagedError(f"token {token.content!r} is not in the vocabulary: rebuild the engine")
    return int(index)


def _added_token(value: Any) -> AddedToken:
    """A token of ``tokenizer_config.json``: a string, or an object with content and matching flags."""
    if isinstance(value, AddedToken):
        return value
    if isinstance(value, str):
        return AddedToken(value, special=True)
    flags = ("lstrip", "rstrip", "single_word", "normalized", "special")
    return AddedToken(str(value["content"]), **{flag: bool(value[flag]) for flag in flags if flag in value})


def _read_config(folder: Path) -> dict[str, Any]:
    """``tokenizer_config.json``; special tokens of an older ``special_tokens_map.json`` win."""
    path = folder / "tokenizer_config.json"
    config: dict[str, Any] = _read_json(path) if path.exists() else {}
    legacy = folder / "special_tokens_map.json"
    if "added_tokens_decoder" not in config and legacy.exists():
        config.update({key: value for key, value in _read_json(legacy).items() if key in _SPECIALS})
    return config


def _read_added_tokens(
    folder: Path, config: dict[str, Any], whole: Any, specials: dict[str, AddedToken]
) -> list[AddedToken]:
    """Tokens beside the BPE vocabulary by id: special ones and those of textual inversion."""
    if "added_tokens_decoder" in config:
        listed = {int(index): _added_token(token) for index, token in config["added_tokens_decoder"].items()}
    elif whole is not None:
        listed = {int(token["id"]): _added_token(token) for token in whole.get("added_tokens") or []}
    elif (folder / "added_tokens.json").exists():
        special = {token.content for token in specials.values()}
        listed = {
            int(index): AddedToken(text, normalized=text not in special, special=text in special)
            for text, index in _read_json(folder / "added_tokens.json").items()
        }
    else:
        listed = {}
    return [listed[index] for index in sorted(listed)]


def _read_vocabulary(folder: Path, whole: Any) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Ids by symbol, and merges by rank; ``whole`` is the contents of ``tokenizer.json`` or None."""
    if whole is not None:
        vocab, lines = whole["model"]["vocab"], whole["model"]["merges"]
    else:
        vocab = _read_json(folder / "vocab.json")
        lines = [line.strip() for line in _read_text(folder / "merges.txt").split("\n")]
        lines = [line for line in lines if line and not line.startswith("#version")]
    if not isinstance(vocab, dict) or not isinstance(lines, list):
        raise EngineDamagedError(
            f"tokenizer in {folder} has no BPE vocabulary with merges: rebuild the engine"
        )
    merges = [tuple(line.split(" ")) if isinstance(line, str) else tuple(line) for line in lines]
    for number, merge in enumerate(merges, 1):  # the library panics on merges that it cannot apply
        if len(merge) != 2:
            raise EngineDamagedError(
                f"tokenizer in {folder}: merge {number} is {' '.join(merge)!r}, wanted two symbols: "
                f"rebuild the engine"
            )
        if not {*merge, "".join(merge)} <= vocab.keys():
            raise EngineDamagedError(
                f"tokenizer in {folder}: merge {number}, {' '.join(merge)!r}, is of symbols that are not in "
                f"the vocabulary of {len(vocab)}: rebuild the engine"
            )
    return vocab, [(left, right) for left, right in merges]


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise EngineDamagedError(f"{path} cannot be read ({error}): rebuild the engine") from error


def _read_json(path: Path) -> Any:
    try:
        return json.loads(_read_text(path))
    except json.JSONDecodeError as error:
        raise EngineDamagedError(f"{path} is not JSON ({error}): rebuild the engine") from error
