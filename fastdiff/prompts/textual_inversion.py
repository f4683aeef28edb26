"""Embeddings of textual inversion: files with vectors that stand for a word of their own.

Gal et al. 2022 ("An Image is Worth One Word"): one or several vectors, learnt in the place of token
embeddings. Layouts that are read, all safetensors:

    {token: [hidden] or [n, hidden]}           diffusers
    {"emb_params": [n, hidden]}                AUTOMATIC1111 and kohya, for one text encoder
    {"clip_l": [n, 768], "clip_g": [n, 1280]}  both encoders of SDXL
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, deserialize

from fastdiff.arguments import show
from fastdiff.errors import InputError
from fastdiff.tensors import DTYPES, to_float32

__all__ = ["Inversion", "Inversions", "read_inversion"]

Array = NDArray[np.float32]

_BOTH = ("clip_l", "clip_g")
_UNNAMED = "emb_params"
_MOST = 75
_SYNTAX = re.compile(r"[()\[\]\\]|\bBREAK\b")
"""What has a meaning of its own in prompts, so that such a word would not be found."""
_PICKLES = (".pt", ".bin", ".ckpt", ".pth")


@dataclass(frozen=True, eq=False)
class Inversion:
    """What one file holds. ``vectors`` are float32 [n, hidden] for each text encoder that it is for, by the
    encoder's number; ``digest`` tells embeddings with other vectors apart.
    """

    token: str
    path: Path
    vectors: Mapping[int, Array]
    digest: str

    @property
    def count(self) -> int:
        """Number of vectors."""
        return len(next(iter(self.vectors.values())))


class Inversions:
    """The embeddings that are loaded, by token, found in texts as whole words in any case."""

    def __init__(self) -> None:
        self._loaded: dict[str, Inversion] = {}
        self._patterns: dict[int, tuple[re.Pattern[str], list[Inversion]]] = {}

    def __iter__(self) -> Iterator[Inversion]:
        return iter(self._loaded.values())

    def __len__(self) -> int:
        return len(self._loaded)

    def add(self, inversion: Inversion) -> None:
        """Load one. Raises InputError for a token that is loaded already."""
        key = inversion.token.lower()
        if key in self._loaded:
            raise InputError(
                f"embedding token {inversion.token!r} is loaded already, from {self._loaded[key].path}: "
                "unload it first, or give this one another token"
            )
        self._loaded[key] = inversion
        self._patterns.clear()

    def remove(self, token: str | None = None) -> None:
        """Unload one, or all. Raises InputError for a token that is not loaded."""
        if token is None:
            self._loaded.clear()
        elif not isinstance(token, str) or token.lower() not in self._loaded:
            known = ", ".join(each.token for each in self) or "none"
            raise InputError(f"embedding token {show(token)} is not loaded: loaded are {known}")
        else:
            del self._loaded[token.lower()]
        self._patterns.clear()

    def split(self, text: str, encoder: int) -> Iterator[tuple[int, str | Inversion]]:
        """A text's parts, each with where it begins: plain text, and embeddings where their tokens stand.

        ``encoder``: the number of the text encoder, for which those that have no vectors are plain text.
        """
        if encoder not in self._patterns:
            self._patterns[encoder] = self._compile(encoder)
        (pattern, found), end = self._patterns[encoder], 0
        for match in pattern.finditer(text) if found else ():
            if match.start() > end:
                yield end, text[end : match.start()]
            yield match.start(), found[(match.lastindex or 0) - 1]
            end = match.end()
        if end < len(text):
            yield end, text[end:]

    @staticmethod
    def holds(token: str, texts: Sequence[str]) -> bool:
        """Whether a word stands in any of the texts."""
        return any(re.search(_whole(token), text, re.IGNORECASE) for text in texts)

    def _compile(self, encoder: int) -> tuple[re.Pattern[str], list[Inversion]]:
        """A pattern with a group for each embedding of the encoder, and the embeddings in their order."""
        found = [each for each in self if encoder in each.vectors]
        found.sort(key=lambda each: len(each.token), reverse=True)
        groups = (f"({_whole(each.token)})" for each in found)
        return re.compile("|".join(groups), re.IGNORECASE), found


def _whole(token: str) -> str:
    """A pattern for the token where no letter goes on before or after it."""
    before = r"(?<!\w)" if re.match(r"\w", token) else ""
    after = r"(?!\w)" if re.search(r"\w\Z", token) else ""
    return f"{before}{re.escape(token)}{after}"


def read_inversion(path: str | os.PathLike[str], token: str | None, widths: Sequence[int]) -> Inversion:
    """The embedding in a file; ``widths`` are those of the engine's text encoders.

    ``token`` None is what the file names, else its own name. Raises InputError for a file that cannot be
    read, vectors of another width or not finite, and a token that cannot be one.
    """
    if not isinstance(path, (str, os.PathLike)):
        raise InputError(f"embedding is {show(path)}: it must be the name of a .safetensors file")
    file = Path(path)
    tensors = _tensors(file)
    if set(tensors) & set(_BOTH):
        own, vectors = file.stem, _of_both(file, tensors, widths)
    elif len(tensors) == 1:
        ((name, array),) = tensors.items()
        own = file.stem if name == _UNNAMED else name
        vectors = {_encoder_of(file, array, widths): array}
    else:
        names = ", ".join(sorted(tensors)[:4]) or "no tensors"
        raise InputError(
            f"embedding {file} holds {names}: an embedding has one tensor, or clip_l and clip_g; give a file "
            "of textual inversion"
        )
    word = own if token is None else token
    if not isinstance(word, str) or not word.strip() or word != word.strip() or _SYNTAX.search(word):
        raise InputError(
            f"embedding token {show(word)} of {file}: it must be a word without brackets, such as '<cat>'; "
            "give it another token"
        )
    digest = hashlib.sha256()
    for number in sorted(vectors):
        digest.update(f"{number} ".encode() + vectors[number].tobytes())
    return Inversion(word, file, vectors, digest.hexdigest())


def _tensors(file: Path) -> dict[str, Array]:
    """All tensors as float32 [n, hidden]."""
    if not file.is_file():
        problem = "is not a file" if file.exists() else "does not exist"
        raise InputError(f"embedding {file} {problem}: give a .safetensors file")
    if file.suffix.lower() in _PICKLES:
        raise InputError(
            f"embedding {file} is a pickle, which can run code when it is loaded: if you trust it, write its "
            "vectors with safetensors.torch.save_file({'emb_params': vectors}, 'name.safetensors')"
        )
    found = {}
    for name, array in _arrays(file).items():
        rows = array.reshape(1, -1) if array.ndim == 1 else array
        if rows.ndim != 2 or not rows.size or len(rows) > _MOST:
            raise InputError(
                f"embedding {file}: {name} has shape {list(array.shape)}, wanted [hidden] or [n, hidden] "
                f"with up to {_MOST} vectors; give a file of textual inversion"
            )
        if not np.isfinite(rows).all():
            raise InputError(f"embedding {file}: {name} holds NaN or infinity; download it again")
        found[name] = rows
    return found


def _arrays(file: Path) -> dict[str, Array]:
    """The tensors of a safetensors file."""
    try:
        tensors = deserialize(file.read_bytes())  # type: ignore[no-untyped-call]
    except (SafetensorError, OSError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(
            f"embedding {file} is no safetensors file, or damaged ({reason}): give a .safetensors file, or "
            "download it again"
        ) from error
    found = {}
    for name, tensor in tensors:
        if tensor["dtype"] not in DTYPES:
            raise InputError(
                f"embedding {file}: {name} has dtype {tensor['dtype']}, wanted {', '.join(DTYPES)}; give a "
                "file of textual inversion"
            )
        found[name] = to_float32(tensor)
    return found


def _of_both(file: Path, tensors: Mapping[str, Array], widths: Sequence[int]) -> dict[int, Array]:
    """For SDXL. A refiner has the second encoder alone and takes its part."""
    if set(tensors) != set(_BOTH) or len(tensors["clip_l"]) != len(tensors["clip_g"]):
        shapes = ", ".join(f"{name} {list(array.shape)}" for name, array in sorted(tensors.items()))
        raise InputError(
            f"embedding {file} holds {shapes}: it must have as many vectors in clip_l as in clip_g"
        )
    names = _BOTH if len(widths) == 2 else _BOTH[1:]
    vectors = {}
    for number, (name, width) in enumerate(zip(names, widths, strict=False)):
        found = tensors[name].shape[1]
        if found != width:
            raise InputError(
                f"embedding {file}: {name} has vectors of {found}, text encoder {number + 1} of this engine "
                f"takes {width}: use an embedding of the same kind of model"
            )
        vectors[number] = tensors[name]
    return vectors


def _encoder_of(file: Path, array: Array, widths: Sequence[int]) -> int:
    """The encoder of the vectors' width."""
    width = array.shape[1]
    if width not in widths:
        wanted = " or ".join(map(str, widths))
        raise InputError(
            f"embedding {file} has vectors of {width}, this engine's text encoder takes {wanted}: use an "
            "embedding of the same kind of model"
        )
    return list(widths).index(width)
