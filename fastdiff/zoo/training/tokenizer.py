"""The checkpoint's own vocabulary: byte-level BPE in CLIP's form, learnt from captions."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import CLIPTokenizer

from fastdiff.zoo.training.captions import caption
from fastdiff.zoo.training.scene import random_scene

__all__ = ["WINDOW", "train_tokenizer"]

WINDOW = 32
"""Tokens of a prompt with its start and end mark; the longest caption has 30."""
START, END = "<|startoftext|>", "<|endoftext|>"
# Words that a user may well type although no caption has them; they get tokens of their own.
EXTRA = "the and of with photo picture drawing image two three dark light big little tiny next to"


def train_tokenizer(folder: Path, captions: int = 20_000, seed: int = 7) -> CLIPTokenizer:
    """Learn the vocabulary, write ``vocab.json`` and ``merges.txt`` to ``folder``, and return the
    tokenizer.
    """
    rng = np.random.default_rng(seed)
    lines = [caption(random_scene(rng), rng) for _ in range(captions)] + [EXTRA] * 10
    bpe = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)]
    )
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=2_000,
        min_frequency=2,
        end_of_word_suffix="</w>",
        initial_alphabet=alphabet,
        show_progress=False,
    )
    bpe.train_from_iterator(lines, trainer)
    merges = [tuple(pair) for pair in json.loads(bpe.to_str())["model"]["merges"]]
    tokens = alphabet + [f"{c}</w>" for c in alphabet] + ["".join(pair) for pair in merges] + [START, END]
    vocabulary = {token: i for i, token in enumerate(dict.fromkeys(tokens))}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps(vocabulary, ensure_ascii=False))
    (folder / "merges.txt").write_text("#version: 0.2\n" + "".join(f"{a} {b}\n" for a, b in merges))
    tokenizer = CLIPTokenizer(
        str(folder / "vocab.json"), str(folder / "merges.txt"), model_max_length=WINDOW, pad_token=END
    )
    tokenizer.save_pretrained(folder)
    return tokenizer
