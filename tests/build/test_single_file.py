"""Checkpoints in one file: weights and pictures of the folder that they were made of; every way to fail."""

from __future__ import annotations

import gzip
import json
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import fastdiff
from fastdiff.build.build import build_engine
from fastdiff.build.checkpoint import load_checkpoint
from fastdiff.build.verify import verify_engine
from fastdiff.engine_dir import open_engine
from fastdiff.errors import CheckpointError, EngineMismatchError, InputError
from fastdiff.published import config_files
from fastdiff.tokenizer import ClipTokenizer
from tests.checkpoints import MAX_TOKENS, WORDS, bpe, write_tokenizer
from tests.families import make_family
from tests.original_layout import single_file

FAMILIES = ("sd2", "sdxl", "refiner", "inpainting")


@pytest.fixture(scope="session")
def original(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Folder and file of a family by name, each written once."""
    base = tmp_path_factory.mktemp("original")

    def make(name: str) -> tuple[Path, Path]:
        folder = make_family(name, base / name)
        return folder, single_file(folder, base / f"{name}.safetensors", ema=name == "inpainting")

    return cache(make)


@pytest.mark.parametrize("name", FAMILIES)
def test_the_weights_are_those_of_the_folder(original: Any, name: str) -> None:
    folder, file = original(name)
    wanted, found = load_checkpoint(folder), load_checkpoint(file, config=folder, tokenizer=folder)
    assert found.spec == wanted.spec
    assert found.modules == wanted.modules
    assert found.tokenizers == wanted.tokenizers
    for part in wanted.classes:
        ours, theirs = found.load(part), wanted.load(part)
        assert ours.state_dict().keys() == theirs.state_dict().keys()
        for key, tensor in theirs.state_dict().items():
            assert torch.equal(ours.state_dict()[key], tensor), key
        for (key, buffer), (_, other) in zip(ours.named_buffers(), theirs.named_buffers(), strict=True):
            assert torch.equal(buffer, other), key
        assert not ours.training
    for tokenizer in wanted.tokenizers:
        files = wanted.tokenizer_files(tokenizer)
        assert {key: found.tokenizer_files(tokenizer)[key] for key in files} == files


@pytest.fixture(scope="module")
def tiny_file(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return single_file(tiny_checkpoint, tmp_path_factory.mktemp("tiny") / "model.safetensors")


def test_the_picture_is_that_of_the_folder(tiny_checkpoint: Path, tiny_file: Path, tmp_path: Path) -> None:
    """Bit for bit; and the engine is verified against the file that it was built from alone."""
    source = load_checkpoint(tiny_file, config=tiny_checkpoint, tokenizer=tiny_checkpoint / "tokenizer")
    pictures = []
    for name, checkpoint in (("file", source), ("folder", load_checkpoint(tiny_checkpoint))):
        engine = build_engine(checkpoint, tmp_path / f"{name}.fd", target="torch").path
        pictures.append(fastdiff.load(engine, threads=1)("a red circle", steps=2, seed=0).images[0])
    assert np.array_equal(*map(np.asarray, pictures))
    engine_dir = open_engine(tmp_path / "file.fd")
    assert max(error.relative_l2 for error in verify_engine(engine_dir, source).values()) <= 1e-5
    with pytest.raises(EngineMismatchError, match="another checkpoint"):
        verify_engine(engine_dir, tiny_checkpoint)


def test_moving_averages(original: Any, tiny_file: Path, tiny_checkpoint: Path) -> None:
    folder, file = original("inpainting")
    plain, averaged = (
        load_checkpoint(file, config=folder, tokenizer=folder, ema=ema) for ema in (False, True)
    )
    assert plain.sha256() != averaged.sha256()
    weights, averages = (checkpoint.load("unet").state_dict() for checkpoint in (plain, averaged))
    assert all(torch.equal(averages[key], 2 * weights[key]) for key in weights)
    with pytest.raises(CheckpointError, match=r"no moving average of .*: leave --ema out"):
        load_checkpoint(tiny_file, config=tiny_checkpoint, tokenizer=tiny_checkpoint, ema=True)


def test_mixed_precision(tiny_checkpoint: Path, tiny_file: Path, tmp_path: Path) -> None:
    """Some tensors in half precision: each is widened."""
    tensors = load_file(tiny_file)
    key = "model.diffusion_model.input_blocks.0.0.weight"
    save_file({**tensors, key: tensors[key].half()}, tmp_path / "mixed.safetensors")
    found = load_checkpoint(tmp_path / "mixed.safetensors", config=tiny_checkpoint, tokenizer=tiny_checkpoint)
    weight = found.load("unet").state_dict()["conv_in.weight"]
    assert weight.dtype == torch.float32
    assert torch.equal(weight, tensors[key].half().float())


KEYS = {
    "sd15": {"cond_stage_model.transformer.text_model.embeddings.position_embedding.weight": (77, 4)},
    "sd15-inpainting": {
        "cond_stage_model.transformer.text_model.embeddings.position_embedding.weight": (77, 4),
        "model.diffusion_model.input_blocks.0.0.weight": (4, 9, 1, 1),
    },
    "sd21": {
        "cond_stage_model.model.token_embedding.weight": (1, 4),
        "model.diffusion_model.input_blocks.2.1.transformer_blocks.0.attn2.to_k.weight": (4, 1024),
    },
    "sdxl": {
        "conditioner.embedders.0.transformer.text_model.embeddings.position_embedding.weight": (77, 4),
        "conditioner.embedders.1.model.transformer.resblocks.9.mlp.c_proj.bias": (4,),
    },
    "sdxl-refiner": {"conditioner.embedders.0.model.transformer.resblocks.9.mlp.c_proj.bias": (4,)},
}
"""Tensors by which a kind of file is known."""


@pytest.mark.parametrize("model", KEYS)
def test_configs_of_known_kinds_are_those_that_were_published(model: str, tmp_path: Path) -> None:
    shapes = {
        "model.diffusion_model.out.2.bias": (4,),
        "first_stage_model.quant_conv.bias": (8,),
        **KEYS[model],
    }
    save_file({key: torch.zeros(shape) for key, shape in shapes.items()}, tmp_path / "model.safetensors")
    write_tokenizer(tmp_path / "tokenizer")
    found = load_checkpoint(tmp_path / "model.safetensors")
    published = config_files(model)
    assert found.configs["unet"] == published["unet/config.json"]
    assert found.scheduler == published["scheduler/scheduler_config.json"]
    assert found.name == "model"
    with pytest.raises(CheckpointError, match=r"unet (lacks|cannot be converted)|of unet has shape"):
        found.load("unet")


def test_a_tokenizer_of_open_clip(
    tiny_checkpoint: Path, tiny_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A package with a small file of the same format; importing it would fail."""
    package = tmp_path / "site" / "open_clip"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("raise ImportError('nobody may import this')")
    _, merges = bpe()
    lines = ['"bpe_simple_vocab_16e6.txt#version: 0.2', *(" ".join(pair) for pair in merges), ""]
    (package / "bpe_simple_vocab_16e6.txt.gz").write_bytes(gzip.compress("\n".join(lines).encode()))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "empty"))
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    files = load_checkpoint(tiny_file, config=tiny_checkpoint).tokenizer_files()
    vocabulary = json.loads(files["vocab.json"])
    assert list(vocabulary)[:3] == ["!", '"', "#"]
    assert list(vocabulary)[256] == "!</w>"
    assert len(vocabulary) == len(bpe()[0])
    for name, contents in files.items():
        (tmp_path / name).write_bytes(contents)
    tokenizer = ClipTokenizer(tmp_path, MAX_TOKENS)
    ids = tokenizer.tokenize("Red CIRCLE").ids
    assert ids[:4] == tuple(
        vocabulary[word] for word in ("<|startoftext|>", "red</w>", "circle</w>", "<|endoftext|>")
    )
    assert set(WORDS) <= {token.removesuffix("</w>") for token in vocabulary}
    (package / "bpe_simple_vocab_16e6.txt.gz").write_bytes(b"no archive")
    refused("cannot be read.*install open_clip_torch again", tiny_file, config=tiny_checkpoint)


def test_a_tokenizer_of_the_cache(
    tiny_checkpoint: Path, tiny_file: Path, original: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tmp_path / "models--openai--clip-vit-large-patch14"
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    refused("has no tokenizer: give one as --tokenizer FOLDER", tiny_file, config=tiny_checkpoint)
    write_tokenizer(model / "snapshots" / "abc")
    (model / "refs").mkdir()
    (model / "refs" / "main").write_text("abc")
    files = load_checkpoint(tiny_file, config=tiny_checkpoint).tokenizer_files()
    assert files["vocab.json"] == (tiny_checkpoint / "tokenizer" / "vocab.json").read_bytes()
    assert json.loads(files["tokenizer_config.json"])["pad_token"] == "<|endoftext|>"
    folder, file = original("sdxl")
    second = load_checkpoint(file, config=folder).tokenizer_files("tokenizer_2")
    assert json.loads(second["tokenizer_config.json"])["pad_token"] == "!"


def refused(words: str, *arguments: Any, **options: Any) -> None:
    with pytest.raises(CheckpointError, match=words) as caught:
        load_checkpoint(*arguments, **options)
    assert "\n" not in str(caught.value)


def test_files_that_cannot_be_used(tiny_checkpoint: Path, tiny_file: Path, tmp_path: Path) -> None:
    options = {"config": tiny_checkpoint, "tokenizer": tiny_checkpoint}
    (tmp_path / "model.ckpt").write_bytes(b"pickle")
    refused("no readable safetensors file .* pickles, which are not read", tmp_path / "model.ckpt", **options)
    (tmp_path / "cut.safetensors").write_bytes(tiny_file.read_bytes()[:-100])
    refused("no readable safetensors file", tmp_path / "cut.safetensors", **options)
    save_file({"lora_unet.weight": torch.zeros(2)}, tmp_path / "lora.safetensors")
    refused("holds no U-Net in the layout", tmp_path / "lora.safetensors", **options)
    tensors = load_file(tiny_file)
    rest = {key: value for key, value in tensors.items() if not key.startswith("first_stage_model.")}
    save_file(rest, tmp_path / "no_vae.safetensors")
    refused("holds no vae", tmp_path / "no_vae.safetensors", **options)
    refused("config folder .* does not exist", tiny_file, config=tmp_path / "nothing")
    refused("tokenizer folder .* does not exist", tiny_file, config=tiny_checkpoint, tokenizer=tmp_path / "x")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda key, value: {}, "lacks conv_in.weight"),
        (lambda key, value: {key: value[:-1]}, r"conv_in.weight of unet has shape .*as --config"),
        (
            lambda key, value: {key: value * torch.nan},
            "conv_in.weight of unet holds values that are not finite",
        ),
    ],
)
def test_weights_that_do_not_fit(
    tiny_checkpoint: Path, tiny_file: Path, tmp_path: Path, change: Any, words: str
) -> None:
    tensors = load_file(tiny_file)
    key = "model.diffusion_model.input_blocks.0.0.weight"
    save_file({**change(key, tensors.pop(key)), **tensors}, tmp_path / "m.safetensors")
    found = load_checkpoint(tmp_path / "m.safetensors", config=tiny_checkpoint, tokenizer=tiny_checkpoint)
    with pytest.raises(CheckpointError, match=words):
        found.load("unet")


def test_options_without_effect_are_refused(tiny_checkpoint: Path, tiny_file: Path) -> None:
    with pytest.raises(InputError, match=r"variant is 'fp16': .* is a single file"):
        load_checkpoint(tiny_file, variant="fp16")
    for option in ("config", "tokenizer"):
        with pytest.raises(InputError, match=f"{option} is .*: it is for single files"):
            load_checkpoint(tiny_checkpoint, **{option: str(tiny_checkpoint)})
