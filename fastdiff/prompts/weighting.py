r"""Weights in prompts: which words count for more, in the syntax of AUTOMATIC1111's web UI.

::

    (red)        1.1 times      ((red)) 1.21 times
    (red:1.3)    1.3 times
    [red]        1 / 1.1 times
    \( \) \[ \]  the characters themselves; \\ a backslash
    BREAK        ends a chunk of 75 tokens

Weights multiply where brackets are nested. A bracket that is not closed reaches to the end, one that was not
opened is a character.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

from fastdiff.errors import InputError

__all__ = ["BREAK", "Span", "read_weights", "unclosed"]

_ROUND, _SQUARE = 1.1, 1 / 1.1
_LARGEST = 100.0
_PIECES = re.compile(
    r"""\\(?P<escaped>[()\[\]\\])
    |:\s*(?P<weight>[+-]?(?:[.,\d]+(?:e[+-]?\d+)?|nan|inf(?:inity)?))\s*\)
    |(?P<bracket>[()\[\]])
    |(?P<text>[^\\()\[\]:]+|.)""",
    re.VERBOSE | re.DOTALL | re.IGNORECASE,
)
_BREAK = re.compile(r"\s*\bBREAK\b\s*")


@dataclass(frozen=True)
class Span:
    """A part of a prompt with one weight, in the prompt's spelling but for escapes."""

    text: str
    weight: float = 1.0


BREAK = Span("BREAK", math.nan)
"""Where a chunk ends."""


def read_weights(prompt: str) -> list[Span]:
    """The spans of a prompt in their order; neighbours differ in weight.

    A prompt without any syntax is one span, itself. Raises InputError for a weight that is no number, beyond
    ±100, or given to nothing.
    """
    spans: list[Span] = []
    opened: dict[str, list[int]] = {"(": [], "[": []}

    def multiply(begin: int, factor: float) -> None:
        for index in range(begin, len(spans)):
            if spans[index] is not BREAK:
                spans[index] = Span(spans[index].text, spans[index].weight * factor)

    for piece in _PIECES.finditer(prompt):
        text, bracket = piece["escaped"] or piece["text"] or piece[0], piece["bracket"]
        if bracket in opened:
            opened[bracket].append(len(spans))
        elif piece["weight"] is not None and opened["("]:
            begin = opened["("].pop()
            _check_words(spans[begin:], piece["weight"])
            multiply(begin, _number(piece["weight"]))
        elif bracket == ")" and opened["("]:
            multiply(opened["("].pop(), _ROUND)
        elif bracket == "]" and opened["["]:
            multiply(opened["["].pop(), _SQUARE)
        elif piece["escaped"]:
            spans.append(Span(text))
        else:
            first, *others = _BREAK.split(text)
            spans.append(Span(first))
            for other in others:
                spans += [BREAK, Span(other)]
    for begin in opened["("]:
        multiply(begin, _ROUND)
    for begin in opened["["]:
        multiply(begin, _SQUARE)
    for span in spans:
        if span is not BREAK and not abs(span.weight) <= _LARGEST:
            raise InputError(
                f"prompt gives {span.text!r} a weight of {span.weight:g}: it must be from -{_LARGEST:g} to "
                f"{_LARGEST:g}"
            )
    return _merged(spans) or [Span("")]


def unclosed(prompt: str) -> str:
    """What a prompt has from the first bracket on that is not closed; empty where all are."""
    opened: dict[str, list[int]] = {"(": [], "[": []}
    for piece in _PIECES.finditer(prompt):
        bracket = piece["bracket"]
        closes = "[" if bracket == "]" else "(" if bracket == ")" or piece["weight"] is not None else ""
        if bracket in opened:
            opened[bracket].append(piece.start())
        elif opened.get(closes):
            opened[closes].pop()
    return prompt[min((*opened["("], *opened["["]), default=len(prompt)) :]


def _check_words(spans: Sequence[Span], weight: str) -> None:
    if not any(span is not BREAK and span.text.strip() for span in spans):
        raise InputError(
            f"prompt gives nothing a weight of {weight}: write words before ':{weight})', or take it out"
        )


def _number(text: str) -> float:
    try:
        weight = float(text)
    except ValueError:
        weight = math.nan
    if math.isnan(weight):
        raise InputError(
            f"prompt holds ':{text})', whose weight is no number: write one such as (word:1.3), escape the "
            r"brackets as \( and \), or switch weighting off"
        )
    return weight


def _merged(spans: list[Span]) -> list[Span]:
    """Neighbours of one weight as one span, empty ones left out."""
    found: list[Span] = []
    for span in spans:
        if span is BREAK:
            found.append(span)
        elif found and found[-1] is not BREAK and found[-1].weight == span.weight:
            found[-1] = Span(found[-1].text + span.text, span.weight)
        elif span.text:
            found.append(span)
    return found
