"""Prompts as windows of tokens: each of up to 75 words' tokens between a start and an end of its own.

::

    prompt ─weights─▶ spans ─vectors of textual inversion─▶ texts and vectors ─tokenizer─▶ words ─▶ chunks

A text encoder reads one window at a time, and the U-Net attends to the hidden states of all, one after the
other. A word is not divided between two chunks unless it fills more than one.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from fastdiff.errors import InputError
from fastdiff.prompts.textual_inversion import Inversion, Inversions
from fastdiff.prompts.weighting import BREAK, Span, read_weights
from fastdiff.tokenizer import ClipTokenizer

__all__ = ["Chunk", "Prompt", "read_prompt"]


@dataclass(frozen=True)
class Chunk:
    """One window of the text encoder.

    ``ids`` and ``weights`` have an entry for each token of the window, start, end and padding included, whose
    weights are 1. ``vectors`` are those of textual inversion: position in the window, where ids hold 0,
    embedding and which of its vectors.
    """

    ids: tuple[int, ...]
    weights: tuple[float, ...]
    vectors: tuple[tuple[int, Inversion, int], ...] = ()

    @property
    def weighted(self) -> bool:
        """Whether any token counts for more or less than another."""
        return any(weight != 1.0 for weight in self.weights)


@dataclass(frozen=True)
class Prompt:
    """A prompt as one encoder reads it; ``dropped`` is the text that was cut off."""

    chunks: tuple[Chunk, ...]
    dropped: str = ""


@dataclass(frozen=True)
class _Token:
    id: int
    weight: float
    inversion: Inversion | None = None
    vector: int = 0


@dataclass(frozen=True)
class _Word:
    """Tokens that stay together, and where the word begins: in which span, at which character."""

    tokens: tuple[_Token, ...]
    span: int
    begin: int


@dataclass
class _Chunks:
    """Words put into rows of at most ``room`` tokens."""

    room: int
    rows: list[list[_Token]] = field(default_factory=lambda: [[]])

    def add(self, tokens: Sequence[_Token]) -> None:
        if len(self.rows[-1]) + len(tokens) > self.room and len(tokens) <= self.room:
            self.rows.append([])
        for token in tokens:
            if len(self.rows[-1]) == self.room:
                self.rows.append([])
            self.rows[-1].append(token)


def read_prompt(
    prompt: str,
    tokenizer: ClipTokenizer,
    inversions: Inversions,
    encoder: int,
    *,
    weighting: bool = True,
    cut: bool = False,
) -> Prompt:
    """The chunks of a prompt, at least one.

    ``encoder`` is the number of the text encoder that the tokenizer belongs to. With ``cut`` what does not
    fit into one window is dropped, on the side on which the tokenizer drops it. Raises InputError for
    unusable weights, and for BREAK where the prompt is to be cut.
    """
    spans = read_weights(prompt) if weighting else [Span(prompt)]
    if cut and BREAK in spans:
        raise InputError(
            "prompt holds BREAK, which begins another chunk, but long prompts are cut: leave BREAK out, or "
            "let long prompts be read in chunks"
        )
    if cut:
        return _cut(spans, tokenizer, list(_words(spans, tokenizer, inversions, encoder)))
    chunks = _Chunks(tokenizer.room)
    for item in _words(spans, tokenizer, inversions, encoder):
        if item is None:
            chunks.rows.append([])
        else:
            chunks.add(item.tokens)
    rows = chunks.rows
    if len(rows) > 1 and not rows[-1]:  # BREAK at the end
        rows.pop()
    return Prompt(tuple(_chunk(row, tokenizer) for row in rows))


def _words(
    spans: Sequence[Span], tokenizer: ClipTokenizer, inversions: Inversions, encoder: int
) -> Iterator[_Word | None]:
    """The words of all spans; None where a chunk ends."""
    for index, span in enumerate(spans):
        if span is BREAK:
            yield None
            continue
        for begin, part in inversions.split(span.text, encoder):
            if isinstance(part, Inversion):
                count = range(part.count)
                tokens = tuple(_Token(0, span.weight, part, number) for number in count)
                yield _Word(tokens, index, begin)
                continue
            for word in tokenizer.words(part):
                tokens = tuple(_Token(token, span.weight) for token in word.ids)
                yield _Word(tokens, index, begin + word.begin)


def _cut(spans: Sequence[Span], tokenizer: ClipTokenizer, words: Sequence[_Word | None]) -> Prompt:
    """One window with the first tokens, or the last."""
    flat = [(token, word) for word in words if word is not None for token in word.tokens]
    over = len(flat) - tokenizer.room
    kept, dropped = flat, ""
    if over > 0:
        kept = flat[over:] if tokenizer.cuts_left else flat[: tokenizer.room]
        edge = kept[0][1] if tokenizer.cuts_left else flat[tokenizer.room][1]
        before = "".join(span.text for span in spans[: edge.span]) + spans[edge.span].text[: edge.begin]
        whole = "".join(span.text for span in spans)
        dropped = before if tokenizer.cuts_left else whole[len(before) :]
    return Prompt((_chunk([token for token, _ in kept], tokenizer),), dropped.strip())


def _chunk(tokens: Sequence[_Token], tokenizer: ClipTokenizer) -> Chunk:
    ids, begin = tokenizer.frame([token.id for token in tokens])
    weights = [1.0] * len(ids)
    weights[begin : begin + len(tokens)] = [token.weight for token in tokens]
    vectors = tuple(
        (begin + position, token.inversion, token.vector)
        for position, token in enumerate(tokens)
        if token.inversion is not None
    )
    return Chunk(ids, tuple(weights), vectors)
