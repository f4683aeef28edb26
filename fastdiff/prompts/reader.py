"""The texts of a call as chunks of tokens, one list for each text encoder of an engine."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fastdiff.config import ModelSpec, TensorSpec, TextEncoderSpec
from fastdiff.engine_dir import TOKENIZER_FOLDER, Engine
from fastdiff.errors import InputError
from fastdiff.prompts.chunks import Chunk, Prompt, read_prompt
from fastdiff.prompts.options import TextOptions
from fastdiff.prompts.textual_inversion import Inversion, Inversions, read_inversion
from fastdiff.tokenizer import ClipTokenizer
from fastdiff.warn import warn

if TYPE_CHECKING:
    from fastdiff.request import Request

__all__ = ["PromptReader", "Text", "takes_vectors", "text_encoders", "texts_of"]


@dataclass(frozen=True)
class Text:
    """One text of a call: what it is, and what each encoder reads."""

    kind: str
    texts: tuple[str, ...]

    @property
    def empty(self) -> bool:
        """Whether there is nothing to read."""
        return not any(self.texts)


def text_encoders(model: ModelSpec) -> tuple[TextEncoderSpec, ...]:
    """The text encoders of a model; of an engine that names none the one that it has."""
    if model.text_encoders:
        return model.text_encoders
    return (TextEncoderSpec("text_encoder", TOKENIZER_FOLDER, model.max_tokens, model.hidden_size),)


def takes_vectors(encoder: TextEncoderSpec, inputs: Iterable[TensorSpec]) -> bool:
    """Whether an encoder with these inputs takes vectors of textual inversion."""
    return encoder.vocabulary > 0 and any(spec.name == "added_embeds" for spec in inputs)


def texts_of(request: Request, encoders: int) -> list[Text]:
    """All texts that a call's branches of guidance need, branch by branch."""
    options = request.text
    prompts, negatives = request.prompts, request.negatives
    found = _texts("prompt", encoders, prompts, options.prompts_2)
    if request.branches == 3:
        found += _texts("empty prompt", encoders, ("",) * len(prompts), None)
    if request.guided:
        found += _texts("negative prompt", encoders, negatives, options.negatives_2)
    return found


def _texts(kind: str, encoders: int, first: tuple[str, ...], second: tuple[str, ...] | None) -> list[Text]:
    pairs = zip(first, first if second is None else second, strict=True)
    return [Text(kind, pair[:encoders]) for pair in pairs]


class PromptReader:
    """The tokenizers of an engine and the embeddings of textual inversion that are loaded."""

    def __init__(self, engine: Engine) -> None:
        self.encoders = text_encoders(engine.manifest.model)
        self.inversions = Inversions()
        self._engine = engine
        folder = engine.tokenizer_folder.parent
        self.tokenizers = [ClipTokenizer(folder / each.tokenizer, each.window) for each in self.encoders]

    def read(self, text: Text, options: TextOptions) -> list[Prompt]:
        """A text as each encoder reads it. Raises InputError."""
        return [
            read_prompt(
                each,
                tokenizer,
                self.inversions,
                number,
                weighting=options.weighting,
                cut=options.long_prompts == "cut",
            )
            for number, (each, tokenizer) in enumerate(zip(text.texts, self.tokenizers, strict=True))
        ]

    def empty(self, encoder: int) -> Chunk:
        """The chunk of the empty text."""
        ids, _ = self.tokenizers[encoder].frame(())
        return Chunk(ids, (1.0,) * len(ids))

    def chunks(self, request: Request) -> int:
        """How many chunks the longest text of a call has. Raises InputError."""
        texts = texts_of(request, len(self.encoders))
        read = [prompt for text in texts for prompt in self.read(text, request.text)]
        return max(request.text.chunks, *(len(prompt.chunks) for prompt in read))

    def load(self, path: str | os.PathLike[str], token: str | None) -> Inversion:
        """Read an embedding's file, to be found in texts from now on.

        Warns (FastdiffWarning) of one that is not for all text encoders. Raises InputError.
        """
        for encoder in self.encoders:
            if not takes_vectors(encoder, self._engine.entry(encoder.module).inputs):
                raise InputError(
                    f"{encoder.module} of this engine takes no embeddings of textual inversion: build it "
                    "again"
                )
        inversion = read_inversion(path, token, [encoder.hidden_size for encoder in self.encoders])
        self.inversions.add(inversion)
        if len(inversion.vectors) < len(self.encoders):
            (number,) = inversion.vectors
            warn(
                f"embedding {os.fspath(path)} has vectors for text encoder {number + 1} of "
                f"{len(self.encoders)} alone: the other reads {inversion.token!r} as text"
            )
        return inversion
