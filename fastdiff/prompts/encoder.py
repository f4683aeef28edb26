"""The engine's text encoders as a function from texts to inputs of the U-Net."""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from fastdiff.arguments import show
from fastdiff.config import TextEncoderSpec
from fastdiff.engine_dir import Engine
from fastdiff.errors import InputError
from fastdiff.prompts.chunks import Chunk, Prompt
from fastdiff.prompts.reader import PromptReader, Text, texts_of
from fastdiff.prompts.textual_inversion import Inversion, Inversions
from fastdiff.prompts.weighting import unclosed
from fastdiff.tokenizer import ClipTokenizer
from fastdiff.warn import warn

if TYPE_CHECKING:
    from fastdiff.request import Request
    from fastdiff.targets.session import Session

__all__ = ["Branches", "PromptEncoder"]

_CACHED_CHUNKS = 32
_SMALL_MEAN = 1e-3
"""Share of the root mean square up to which a mean is near 0."""

Array = NDArray[np.float32]
Branches = list[dict[str, NDArray[Any]]]
"""Inputs of the U-Net for each branch of guidance: with the prompt; with guidance then without it or, where a
method has three branches, with the empty prompt and with the negative one."""
_Encoded = tuple[Array, Array | None]
"""Hidden states [1, tokens, hidden] and the embedding of the whole text [1, pooled], if there is one."""


class PromptEncoder:
    """Tokenizers and text encoders of an engine, with the embeddings of the last chunks of prompts."""

    def __init__(self, engine: Engine, modules: Mapping[str, Session]) -> None:
        self._engine = engine
        self._model = engine.manifest.model
        self._modules = modules
        self.reader = PromptReader(engine)
        self._encoders = self.reader.encoders
        self._known: OrderedDict[tuple[Any, ...], _Encoded] = OrderedDict()
        self._lock = threading.Lock()

    @property
    def tokenizer(self) -> ClipTokenizer:
        """The tokenizer of the first text encoder."""
        return self.reader.tokenizers[0]

    @property
    def inversions(self) -> Inversions:
        """The embeddings of textual inversion that are loaded."""
        return self.reader.inversions

    def load(self, path: str | os.PathLike[str], token: str | None) -> Inversion:
        """Read an embedding's file, to be found in texts from now on. Raises InputError."""
        return self.reader.load(path, token)

    def branches(self, request: Request) -> Branches:
        """The U-Net's inputs of each branch that the call has, for all pictures: ``encoder_hidden_states``
        [pictures, tokens, hidden] and, where the U-Net has them, ``text_embeds`` and ``time_ids``.

        Warns (FastdiffWarning) of a text that was cut, and of brackets that are not closed. Raises InputError
        for weights that cannot be used and for more tokens than the U-Net was built for.
        """
        texts = texts_of(request, len(self._encoders))
        read = [self.reader.read(text, request.text) for text in texts]
        if request.text.weighting:
            _warn_of_brackets(texts)
        for text, prompts in zip(texts, read, strict=True):
            for prompt in prompts:
                if prompt.dropped:
                    window = self.tokenizer.window
                    warn(f"the {text.kind} is longer than {window} tokens; dropped: {prompt.dropped!r}")
        chunks = max(request.text.chunks, *(len(prompt.chunks) for prompts in read for prompt in prompts))
        self._check_tokens(chunks)
        inputs = {spec.name for spec in self._engine.entry("unet").inputs}
        sizes = request.sizes.time_ids(self._model.time_ids, request.height, request.width)
        found: dict[str, list[dict[str, Array]]] = {}
        for text, prompts in zip(texts, read, strict=True):
            row = self._encode(text, prompts, chunks, request.text.clip_skip)
            row["time_ids"] = sizes[0 if text.kind == "prompt" else 1][None]
            found.setdefault(text.kind, []).append(row)
        with self._lock:
            while len(self._known) > _CACHED_CHUNKS:
                self._known.popitem(last=False)
        return [
            {
                name: np.repeat(np.concatenate([row[name] for row in rows]), request.num, axis=0)
                for name in rows[0]
                if name in inputs
            }
            for rows in found.values()
        ]

    def forget(self) -> None:
        """Drop the embeddings that were kept."""
        with self._lock:
            self._known.clear()

    def _check_tokens(self, chunks: int) -> None:
        tokens = chunks * self.tokenizer.window
        allowed = self._engine.entry("unet").shapes.get("tokens")
        if allowed is not None and tokens not in allowed:
            raise InputError(
                f"a prompt of {chunks} chunks has {tokens} tokens: unet of this engine takes {allowed}; use "
                "a shorter prompt, or let long prompts be cut"
            )

    def _encode(self, text: Text, prompts: list[Prompt], chunks: int, clip_skip: int) -> dict[str, Array]:
        """One row of each input for a text, padded with empty chunks to ``chunks``.

        The hidden states of several encoders stand side by side; the embedding of the whole is of the last
        encoder that gives one, and of the first chunk.
        """
        skip = clip_skip if text.kind == "prompt" else 0  # diffusers skips for the prompt alone
        states, pooled = [], None
        for number, (encoder, prompt) in enumerate(zip(self._encoders, prompts, strict=True)):
            empty = (self.reader.empty(number),) * (chunks - len(prompt.chunks))
            encoded = [self._run(number, chunk, skip) for chunk in (*prompt.chunks, *empty)]
            weighted = [
                _weighted(each[0], chunk, keep_mean=not encoder.penultimate)
                for each, chunk in zip(encoded, (*prompt.chunks, *empty), strict=True)
            ]
            states.append(np.concatenate(weighted, axis=1))
            pooled = encoded[0][1] if encoded[0][1] is not None else pooled
        row = {"encoder_hidden_states": np.concatenate(states, axis=2)}
        if pooled is not None:
            row["text_embeds"] = pooled
        return {name: np.zeros_like(array) for name, array in row.items()} if self._zeros(text) else row

    def _zeros(self, text: Text) -> bool:
        """Whether zeros stand for the text: in models that learnt nothing else for none at all."""
        return text.kind != "prompt" and text.empty and self._model.zeros_for_empty_prompt

    def _run(self, number: int, chunk: Chunk, clip_skip: int) -> _Encoded:
        """What an encoder gives for a chunk. It runs once per distinct chunk, one at a time, so that an
        embedding never depends on what else was asked for; the last few are kept.
        """
        vectors = tuple((position, each.digest, index) for position, each, index in chunk.vectors)
        key = (number, chunk.ids, vectors, clip_skip)
        found = self._known.get(key)
        if found is None:
            found = self._compute(number, chunk, clip_skip)
        with self._lock:  # calls of several threads share what is kept
            self._known[key] = found
            self._known.move_to_end(key)
        return found

    def _compute(self, number: int, chunk: Chunk, clip_skip: int) -> _Encoded:
        encoder = self._encoders[number]
        session = self._modules[encoder.module]
        ids = np.array([chunk.ids], dtype=np.int64)
        arrays: dict[str, NDArray[Any]] = {"input_ids": ids}
        if any(spec.name == "added_embeds" for spec in session.inputs):
            added = np.zeros((*ids.shape, encoder.hidden_size), np.float32)
            for position, inversion, index in chunk.vectors:
                added[0, position] = inversion.vectors[number][index]
            arrays["added_embeds"] = added
        if chunk.vectors:
            self._mark(ids, chunk, encoder)
        outputs = session(**arrays)
        states = outputs["hidden_states"][:, clip_skip] if clip_skip else outputs["last_hidden_state"]
        return np.ascontiguousarray(states), outputs.get("text_embeds")

    def _mark(self, ids: NDArray[np.int64], chunk: Chunk, encoder: TextEncoderSpec) -> None:
        """Put the ids of the embedding table's rows of zeros where vectors stand.

        The last vector of the embedding that was loaded last gets the larger of the two ids: the one that
        diffusers would give the largest, where models with an old configuration pool.
        """
        order = {inversion.digest: index for index, inversion in enumerate(self.inversions)}
        for position, _, _ in chunk.vectors:
            ids[0, position] = encoder.vocabulary
        last = max((order[each.digest], index, -position) for position, each, index in chunk.vectors)
        ids[0, -last[2]] = encoder.vocabulary + 1


def _warn_of_brackets(texts: list[Text]) -> None:
    for kind, text in dict.fromkeys((each.kind, text) for each in texts for text in each.texts):
        if end := unclosed(text):
            warn(
                f"the {kind} has a bracket that is not closed, in {show(end)}: it weighs all that follows; "
                f"close it, or write \\{end[0]} for the character"
            )


def _weighted(states: Array, chunk: Chunk, keep_mean: bool) -> Array:
    """Hidden states [1, tokens, hidden] times the weights of their tokens.

    With ``keep_mean`` all are scaled so that their mean is as before, as in AUTOMATIC1111's web UI. Not so
    where the mean is near 0 and says nothing of their size, as it is without a final norm.
    """
    if not chunk.weighted:
        return states
    weights = np.array(chunk.weights, np.float32)[None, :, None]
    found: Array = states * weights
    before, after = float(states.mean(dtype=np.float64)), float(found.mean(dtype=np.float64))
    size = float(np.sqrt(np.mean(np.square(found), dtype=np.float64)))
    if keep_mean and min(abs(before), abs(after)) > _SMALL_MEAN * size:
        found *= np.float32(before / after)
    return found
