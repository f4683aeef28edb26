"""Prompts in windows of tokens: where chunks end, what weighs what, and what is dropped."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from fastdiff.errors import InputError
from fastdiff.prompts.chunks import Prompt, read_prompt
from fastdiff.prompts.textual_inversion import Inversion, Inversions
from fastdiff.tokenizer import ClipTokenizer
from tests.checkpoints import WORDS, bpe, read_json, write_json, write_tokenizer

pytestmark = pytest.mark.smoke

VOCABULARY = bpe()[0]
START, END = VOCABULARY["<|startoftext|>"], VOCABULARY["<|endoftext|>"]
WINDOW, ROOM = 10, 8


@pytest.fixture
def tokenizer(tmp_path: Path) -> ClipTokenizer:
    write_tokenizer(tmp_path / "tokenizer", max_tokens=WINDOW)
    return ClipTokenizer(tmp_path / "tokenizer", WINDOW)


def inversion(token: str, count: int, encoder: int = 0) -> Inversion:
    return Inversion(token, Path("x.safetensors"), {encoder: np.ones((count, 4), np.float32)}, token)


def read(prompt: str, tokenizer: ClipTokenizer, *loaded: Inversion, **options: bool) -> Prompt:
    inversions = Inversions()
    for each in loaded:
        inversions.add(each)
    return read_prompt(prompt, tokenizer, inversions, 0, **options)


def bodies(prompt: Prompt) -> list[list[int]]:
    """Ids between start and end, padding left out."""
    found = []
    for chunk in prompt.chunks:
        assert len(chunk.ids) == len(chunk.weights) == WINDOW
        assert chunk.ids[0] == START
        end = chunk.ids.index(END)
        assert set(chunk.ids[end:]) == {END}
        found.append(list(chunk.ids[1:end]))
    return found


def ids(tokenizer: ClipTokenizer, text: str) -> list[int]:
    return [token for word in tokenizer.words(text) for token in word.ids]


@pytest.mark.parametrize(
    "prompt",
    ["", " ", "a red circle", "a b 🎨 é", "A RED  circle.", "null\x00 byte", "&amp; &lt;b&gt;", "e\u0301"],
)
@pytest.mark.parametrize("weighting", [True, False])
def test_a_prompt_without_syntax_is_what_the_tokenizer_gives(
    tokenizer: ClipTokenizer, prompt: str, weighting: bool
) -> None:
    for cut in (True, False) if len(ids(tokenizer, prompt)) <= ROOM else (True,):
        found = read(prompt, tokenizer, weighting=weighting, cut=cut)
        assert [chunk.ids for chunk in found.chunks] == [tokenizer.tokenize(prompt).ids]
        assert not found.chunks[0].weighted


def test_long_prompts_are_chunks_of_a_window(tokenizer: ClipTokenizer) -> None:
    words = tuple(word for word in WORDS if len(ids(tokenizer, word)) == 1)[:11]
    found = bodies(read(" ".join(words * 3), tokenizer))
    assert [len(body) for body in found] == [8, 8, 8, 8, 1]
    assert [token for body in found for token in body] == [VOCABULARY[f"{word}</w>"] for word in words * 3]
    exact = bodies(read(" ".join(words[:ROOM]), tokenizer))
    assert [len(body) for body in exact] == [ROOM]


def test_a_word_is_not_divided(tokenizer: ClipTokenizer) -> None:
    """'xyz' has three tokens: where two are left it begins a chunk."""
    found = bodies(read("a a a a a a xyz a", tokenizer))
    assert [len(body) for body in found] == [6, 4]
    long = bodies(read("a a " + "x" * 20, tokenizer))
    assert [len(body) for body in long] == [8, 8, 6], "but where it fills more than one"


def test_break_ends_a_chunk(tokenizer: ClipTokenizer) -> None:
    a, red = VOCABULARY["a</w>"], VOCABULARY["red</w>"]
    assert bodies(read("a BREAK red red BREAK", tokenizer)) == [[a], [red, red]]
    assert bodies(read("BREAK a", tokenizer)) == [[], [a]]
    assert bodies(read("a BREAK BREAK red", tokenizer)) == [[a], [], [red]]
    assert len(read("a BREAK a", tokenizer, weighting=False).chunks) == 1, "then it is a word"
    with pytest.raises(InputError, match="BREAK, which begins another chunk, but long prompts are cut"):
        read("a BREAK a", tokenizer, cut=True)


def test_weights_stand_with_their_tokens(tokenizer: ClipTokenizer) -> None:
    (chunk,) = read("a (red xy:1.5) [star]", tokenizer).chunks
    assert chunk.weights == pytest.approx((1, 1, 1.5, 1.5, 1.5, 1 / 1.1, 1, 1, 1, 1))
    (plain,) = read("a (red) star", tokenizer, weighting=False).chunks
    assert not plain.weighted
    assert list(plain.ids[1:6]) == ids(tokenizer, "a (red) star")
    first, second = read("a a a a a a a (red star:2)", tokenizer).chunks
    assert (first.weights[8], second.weights[1]) == (2, 2)


@pytest.mark.parametrize("prompt", ["a a a a a a a  Red, (blue:2) star", "a a a a a a (a  xyz) star "])
def test_what_is_cut(tokenizer: ClipTokenizer, prompt: str) -> None:
    found = read(prompt, tokenizer, cut=True)
    assert [len(body) for body in bodies(found)] == [ROOM]
    assert found.dropped == {"R": ", blue star", "(": "xyz star"}[prompt[15 if "Red" in prompt else 12]]


def test_left_padding_and_left_truncation(tokenizer: ClipTokenizer, tmp_path: Path) -> None:
    config = tmp_path / "tokenizer" / "tokenizer_config.json"
    write_json(config, {**read_json(config), "padding_side": "left", "truncation_side": "left"})
    left = ClipTokenizer(tmp_path / "tokenizer", WINDOW)
    (chunk,) = read("a (red:2)", left).chunks
    assert chunk.ids == left.tokenize("a red").ids
    assert chunk.weights[-2:] == (2, 1)
    prompt = "star of a red a red a red a red"
    found = read(prompt, left, cut=True)
    assert found.chunks[0].ids == left.tokenize(prompt).ids
    assert found.dropped == left.tokenize(prompt).dropped == "star of"


def test_vectors_take_the_place_of_a_word(tokenizer: ClipTokenizer) -> None:
    cat, style = inversion("<cat>", 2), inversion("sks", 1)
    (chunk,) = read("(<CAT>:1.5), sks asks", tokenizer, cat, style).chunks
    assert chunk.vectors == ((1, cat, 0), (2, cat, 1), (4, style, 0))
    assert chunk.weights[:5] == (1, 1.5, 1.5, 1, 1)
    assert list(chunk.ids[5:9]) == ids(tokenizer, "asks"), "a part of a word is no match"
    (other,) = read("\u017fks", tokenizer, cat, style).chunks
    assert [vector for _, vector, _ in other.vectors] == [style], "a long s, of which S is the capital letter"
    first, second = read("a a a a a a a <cat>", tokenizer, cat).chunks
    assert (len(first.vectors), len(second.vectors)) == (0, 2), "an embedding is not divided"


def test_an_embedding_of_another_encoder_is_text(tokenizer: ClipTokenizer) -> None:
    (chunk,) = read("<cat>", tokenizer, inversion("<cat>", 2, encoder=1)).chunks
    assert chunk.vectors == ()
    assert list(chunk.ids) == list(tokenizer.tokenize("<cat>").ids)
