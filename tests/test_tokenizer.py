"""ClipTokenizer against transformers' CLIPTokenizer, on large and tiny vocabularies."""

from __future__ import annotations

import argparse
import inspect
import json
import re
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Regex, Tokenizer, normalizers, pre_tokenizers
from tokenizers.models import BPE
from tokenizers.trainers import BpeTrainer

from fastdiff.errors import EngineDamagedError
from fastdiff.tokenizer import ClipTokenizer

WINDOW = 77
START, END = "<|startoftext|>", "<|endoftext|>"

PROMPTS = [
    "",
    " ",
    "\n\t \r\n",
    "a red circle left of a blue square",
    "A RED Circle",
    "  leading,   repeated\tand trailing white space \n",
    "no-break\u00a0space, thin\u2009space, ideographic\u3000space, zero\u200bwidth",
    "don't can't I'm they're we've she'll he'd it's 'sup IT'S",
    "1234 3.14 v2.0 10% $5 #1 50/50 1e-4 ½ ² Ⅷ",
    'hello!!! what??? (yes) [no] {maybe} <tag> a&b @home ~x^y_z `code` \\ | "quoted"',
    "!",
    "a ! b!c !! d",
    "crème brûlée naïve façade Ångström ÀÉÎÕÜ",
    "cafe\u0301 decomposed e\u0301 n\u0303 A\u030a",
    "straße İstanbul ŒUVRE ﬁne ǅ",
    "東京の夜景 서울 Москва Αθήνα עברית العربية हिन्दी ไทย",
    "emoji 🎨🚀 flag 🇫🇷 family 👨‍👩‍👧 skin 👍🏽",
    "𝔊𝔬𝔱𝔥𝔦𝔠 𝟙𝟚𝟛",
    f"special {START} inside {END} the prompt",
    f"{START}{END}",
    f"shouted {START.upper()} and {END.upper()}",
    "<|startoftext| broken <|endoftext",
    "snake_case CamelCase kebab-case",
    "null\x00byte and \x07bell \x7f",
    "word" * 60,
    "a " * 200,
    "a quick brown fox jumps over the lazy dog, " * 12,
    "x" * 5000,
    "漢" * 100,
    "🎨" * 50,
    "a\u0300\u0301\u0302\u0327 Z\u0351\u036b\u0343\u036a stacked marks \u0301 alone",
    "한글 \u1112\u1161\u11ab\u1100\u1173\u11af jamo",
    "&amp; &lt;b&gt; &#233; &quot;x&quot; <b>bold</b> <br/> <a href='x'>&nbsp;</a>",
    "\x00\x01\x1b[31mred\x1b[0m\x85next\u2028line\u2029paragraph\ufeffmark\ufffd",
    "\u202eright to left\u202c \u00adsoft hyphen \u2060joiner \ue000private \U0010fffflast",
    "!!! !! ! !\u0301 wow! !wow",
    "ΌΣΟΣ ὈΔΥΣΣΕΎΣ ΣΑΣ ẞ DŽ ﷺ ŉ ǰ",
    "(word:1.3) [word] ((x)) \\( BREAK AND",
]


def train(folder: Path, vocab_size: int, *, complete: bool, config: dict[str, object] | None = None) -> Path:
    """Write a CLIP tokenizer folder; ``complete`` puts every byte into the vocabulary, as OpenAI's has."""
    tokenizer = Tokenizer(BPE(end_of_word_suffix="</w>", unk_token=END))
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(r"\p{L}+|\p{N}|[^\s\p{L}\p{N}]+"), behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet()) if complete else []
    trainer = BpeTrainer(
        vocab_size=vocab_size, initial_alphabet=alphabet, end_of_word_suffix="</w>", show_progress=False
    )
    # the standard library's own help texts: English prose, code, punctuation and numbers, always at hand
    text = "\n".join(str(module.__doc__) for module in (argparse, json, textwrap, subprocess, np, sys))
    text += Path(argparse.__file__).read_text(encoding="utf-8")
    tokenizer.train_from_iterator([*text.split("\n"), *PROMPTS[3:5]], trainer)
    learned = json.loads(tokenizer.to_str())["model"]
    vocab: dict[str, int] = {}
    for symbol in [*alphabet, *(symbol + "</w>" for symbol in alphabet), *learned["vocab"], START, END]:
        vocab.setdefault(symbol, len(vocab))
    folder.mkdir(parents=True)
    (folder / "vocab.json").write_text(json.dumps(vocab, ensure_ascii=False), encoding="utf-8")
    merges = [" ".join(merge) for merge in learned["merges"]]
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges, ""]), encoding="utf-8")
    config = {
        "tokenizer_class": "CLIPTokenizer",
        "bos_token": START,
        "eos_token": END,
        "unk_token": END,
        "pad_token": END,
        "model_max_length": WINDOW,
        "do_lower_case": True,
        **(config or {}),
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    return folder


def added(content: str, **flags: bool) -> dict[str, object]:
    return {
        "__type": "AddedToken",
        "content": content,
        "lstrip": False,
        "rstrip": False,
        "single_word": False,
    } | flags


FOLDERS = {
    "large": {"vocab_size": 3000, "complete": True},
    "tiny": {"vocab_size": 200, "complete": False},
    # Stable Diffusion 1's configuration: special tokens as objects that match normalised text
    "sd1": {
        "vocab_size": 1500,
        "complete": True,
        "config": {
            "bos_token": added(START, normalized=True),
            "eos_token": added(END, normalized=True),
            "unk_token": added(END, normalized=True),
        },
    },
    # Stable Diffusion 2 pads with "!", which is a word of prompts too
    "sd2": {"vocab_size": 1500, "complete": True, "config": {"pad_token": "!"}},
    "left": {
        "vocab_size": 400,
        "complete": True,
        "config": {"padding_side": "left", "truncation_side": "left", "model_max_length": 20},
    },
}


@pytest.fixture(scope="module", params=sorted(FOLDERS))
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train(tmp_path_factory.mktemp("tokenizer") / request.param, **FOLDERS[request.param])


def oracle(folder: Path):
    from transformers import CLIPTokenizer

    tokenizer = CLIPTokenizer.from_pretrained(folder)

    def encode(prompts: list[str]) -> np.ndarray:
        batch = tokenizer(
            prompts, padding="max_length", max_length=tokenizer.model_max_length, truncation=True
        )
        return np.array(batch["input_ids"])

    return encode


@pytest.mark.smoke
def test_ids_equal_transformers(folder: Path) -> None:
    encode, tokenizer = oracle(folder), ClipTokenizer(folder, WINDOW)
    for prompt in PROMPTS:
        ids = tokenizer([prompt])
        assert ids.dtype == np.int64
        np.testing.assert_array_equal(ids, encode([prompt]), err_msg=repr(prompt))


def test_any_text_equals_transformers(folder: Path) -> None:
    encode, tokenizer = oracle(folder), ClipTokenizer(folder, WINDOW)

    @settings(max_examples=150, deadline=None)
    @given(st.text(max_size=40) | st.text(alphabet="aeéßİ 'stdvm!<|>1½\u0301\n🎨", max_size=60))
    def check(prompt: str) -> None:
        np.testing.assert_array_equal(tokenizer([prompt]), encode([prompt]))

    check()


# Characters that a stage treats in a way of its own: case, composition, numbers, symbols, no letters at all.
_ODD = (
    "\u0130\u0131\u1e9e\u03a3\u03c2\u212a\u212b\ufb01\u01c4\u1fb3"  # lower case of another length
    "\u0300\u0301\u0327\u0345\u093c\u1161\u11a8\u1100\uac00"  # marks, Hangul by syllables and parts
    "\u00bd\u0663\u2167\u3007\u00b2"  # numbers
    "\u200b\u200d\ufe0f\u00ad\ufeff\u2028\x85\x1f\x7f\x00\u3000"  # white space, and what looks like it
    "東語ไกשع🎨🇫👨\U0001f3fd\U0010ffff\ue000"
    "aZ s'T!<|>_(:1.3)"
)


def test_odd_texts_equal_transformers(folder: Path) -> None:
    encode, tokenizer = oracle(folder), ClipTokenizer(folder, WINDOW)
    any_plane = st.text(st.characters(exclude_categories=("Cs",)), max_size=30)
    special = st.lists(st.sampled_from([START, END, "!", "!!!", " ", "\u0301", "a", "'S"]), max_size=12)

    @settings(max_examples=150, deadline=None)
    @given(st.text(_ODD, max_size=40) | any_plane | special.map("".join))
    def check(prompt: str) -> None:
        np.testing.assert_array_equal(tokenizer([prompt]), encode([prompt]), err_msg=repr(prompt))
        words = [token for word in tokenizer.words(prompt) for token in word.ids]
        if len(words) <= tokenizer.room:
            assert tokenizer.frame(words)[0] == tokenizer.tokenize(prompt).ids

    check()


def test_a_folder_that_transformers_saved_again(tmp_path: Path) -> None:
    """transformers 5 writes tokenizer.json in place of vocab.json and merges.txt."""
    from transformers import CLIPTokenizer

    first = train(tmp_path / "first", 400, complete=True)
    CLIPTokenizer.from_pretrained(first).save_pretrained(tmp_path / "again")
    np.testing.assert_array_equal(
        ClipTokenizer(tmp_path / "again", WINDOW)(PROMPTS), ClipTokenizer(first, WINDOW)(PROMPTS)
    )


@pytest.mark.parametrize("form", ["tokenizer.json", "added_tokens_decoder", "added_tokens.json"])
def test_tokens_added_after_training(tmp_path: Path, form: str) -> None:
    """Textual inversion adds words; versions of transformers wrote them into three different files."""
    from transformers import CLIPTokenizer

    first = train(tmp_path / "first", 400, complete=True)
    other = CLIPTokenizer.from_pretrained(first)
    other.add_tokens(["<cat-toy>", "Midjourney"])
    if form == "tokenizer.json":
        other.save_pretrained(tmp_path / "again")
    else:
        shutil.copytree(first, tmp_path / "again")
        ids = other.get_added_vocab()
        if form == "added_tokens.json":
            (tmp_path / "again" / form).write_text(json.dumps(ids))
        else:
            config = json.loads((first / "tokenizer_config.json").read_text())
            config[form] = {str(index): added(text, normalized=True) for text, index in ids.items()}
            for token in config[form].values():
                del token["__type"]
            (tmp_path / "again" / "tokenizer_config.json").write_text(json.dumps(config))
    tokenizer = ClipTokenizer(tmp_path / "again", WINDOW)
    prompts = [*PROMPTS, "a <cat-toy> on grass", "midjourney and Midjourney", "<CAT-TOY>"]
    np.testing.assert_array_equal(tokenizer(prompts), oracle(tmp_path / "again")(prompts))
    assert other.convert_tokens_to_ids("<cat-toy>") in tokenizer(["a <cat-toy>"])
    assert tokenizer.vocab_size == len(other)


def test_builds_copy_every_file_that_is_read() -> None:
    from fastdiff.build.tokenizers import TOKENIZER_FILES

    source = Path(inspect.getfile(ClipTokenizer)).read_text(encoding="utf-8")
    assert set(re.findall(r'/ "([a-z_]+\.(?:json|txt))"', source)) == set(TOKENIZER_FILES)


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train(tmp_path_factory.mktemp("tokenizer") / "large", **FOLDERS["large"])


def test_dropped_text_is_exactly_what_was_cut(large: Path) -> None:
    tokenizer = ClipTokenizer(large, 8)
    assert tokenizer.tokenize("x, y").dropped == ""
    full = tokenizer.tokenize("1 2 3 4 5 6")
    assert (full.dropped, len(full.ids)) == ("", 8)
    assert tokenizer.tokenize("1 2 3 4 5 6   7").dropped == "7"
    assert (
        tokenizer.tokenize("1 2 3 4 5 6  Ünïcode  KEEPS its\tspelling! ").dropped
        == "Ünïcode  KEEPS its\tspelling!"
    )
    kept = tokenizer.tokenize("1 2 3 4 5 6").ids
    assert tokenizer.tokenize("1 2 3 4 5 6 7 8").ids == kept
    assert tokenizer.tokenize("1 2 3 4 5 6    \n").dropped == "", "white space alone loses nothing"


@settings(max_examples=100, deadline=None)
@given(prompt=st.text(alphabet="ab é1!,'s \n", max_size=60))
def test_what_is_kept_gives_the_same_ids(large: Path, prompt: str) -> None:
    """The prompt without its dropped tail must tokenise to the ids that were used."""
    tokenizer = ClipTokenizer(large, 10)
    cut = tokenizer.tokenize(prompt)
    assert prompt.rstrip().endswith(cut.dropped)
    if cut.dropped:
        full = ClipTokenizer(large, 500).tokenize(prompt)
        assert cut.ids[:-1] == full.ids[:9]


def test_window_is_the_smaller_of_encoder_and_config(tmp_path: Path) -> None:
    folder = train(tmp_path / "t", 300, complete=True, config={"model_max_length": 16})
    assert ClipTokenizer(folder, 77).window == 16
    assert ClipTokenizer(folder, 12)(["a"]).shape == (1, 12)
    huge = train(
        tmp_path / "h", 300, complete=True, config={"model_max_length": 1000000000000000019884624838656}
    )
    assert ClipTokenizer(huge, 77).window == 77


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("vocab.json", None, "vocab.json"),
        ("vocab.json", "{", "not JSON"),
        ("vocab.json", "[]", "no BPE vocabulary"),
        ("vocab.json", '{"a": 0}', "rebuild"),
        ("merges.txt", None, "merges.txt"),
        ("merges.txt", "#version: 0.2\na b c\n", "merge 1 is 'a b c'"),
        ("merges.txt", "q zzzz\n", "rebuild"),
        ("tokenizer_config.json", "{", "not JSON"),
        ("tokenizer_config.json", "[]", "do not fit together"),
        ("tokenizer_config.json", '{"bos_token": 5}', "do not fit together"),
        ("tokenizer_config.json", '{"model_max_length": 2}', "window is 2"),
    ],
)
def test_damaged_files_are_refused(tmp_path: Path, name: str, content: str | None, says: str) -> None:
    folder = train(tmp_path / "t", 600, complete=True)
    (folder / name).unlink()
    if content is not None:
        (folder / name).write_text(content, encoding="utf-8")
    with pytest.raises(EngineDamagedError, match=says) as caught:
        ClipTokenizer(folder, WINDOW)
    assert "\n" not in str(caught.value)
