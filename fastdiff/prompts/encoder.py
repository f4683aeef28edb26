"""The engine's text encoders as a function from texts to inputs of the U-Net."""

from __future__ import annotations

import warnings
from collections import OrderedDict
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from fastdiff.engine_dir import Engine
from fastdiff.errors import FastdiffWarning
from fastdiff.tokenizer import ClipTokenizer

if TYPE_CHECKING:
    from fastdiff.request import Request
    from fastdiff.targets.session import Session

__all__ = ["Branches", "PromptEncoder"]

_CACHED_PROMPTS = 16

Branches = list[dict[str, NDArray[Any]]]
"""Inputs of the U-Net for each branch of guidance: with the prompt; with guidance then without it or, where a
method has three branches, with the empty prompt and with the negative one."""


class PromptEncoder:
    """Tokenizer and text encoder of an engine, with the embeddings of the last prompts."""

    def __init__(self, engine: Engine, modules: Mapping[str, Session]) -> None:
        self.tokenizer = ClipTokenizer(engine.tokenizer_folder, engine.manifest.model.max_tokens)
        self._modules = modules
        self._known: OrderedDict[str, NDArray[np.float32]] = OrderedDict()

    def branches(self, request: Request) -> Branches:
        """``encoder_hidden_states`` [pictures, tokens, hidden] of each branch that the call has.

        Warns (FastdiffWarning) of a text that was cut.
        """
        texts = [("prompt", request.prompts)]
        if request.branches == 3:
            texts.append(("empty prompt", ("",) * len(request.prompts)))
        if request.guided:
            texts.append(("negative prompt", request.negatives))
        found: Branches = []
        for kind, each in texts:
            found.append({"encoder_hidden_states": self._embed(kind, each, request.num)})
        return found

    def forget(self) -> None:
        """Drop the embeddings that were kept."""
        self._known.clear()

    def _embed(self, kind: str, texts: tuple[str, ...], num: int) -> NDArray[np.float32]:
        """[len(texts) · num, tokens, hidden], each text's rows together.

        The encoder runs once per distinct text, one at a time, so that an embedding never depends on what
        else was asked for; the last few are kept.
        """
        rows = []
        for text in texts:
            tokens = self.tokenizer.tokenize(text)
            if tokens.dropped:
                warnings.warn(
                    f"the {kind} is longer than {self.tokenizer.window} tokens; dropped: {tokens.dropped!r}",
                    FastdiffWarning,
                    stacklevel=6,
                )
            if text not in self._known:
                ids = np.array([tokens.ids], dtype=np.int64)
                self._known[text] = self._modules["text_encoder"](input_ids=ids)["last_hidden_state"]
            self._known.move_to_end(text)
            rows.append(self._known[text])
        while len(self._known) > _CACHED_PROMPTS:
            self._known.popitem(last=False)
        return np.repeat(np.concatenate(rows), num, axis=0)
