"""Prompts of Stable Diffusion 1 and 2 against diffusers: hidden states and pictures.

What diffusers has itself (clip-skip, textual inversion, cutting) is asked of its pipeline; weights and chunks
are computed here with its text encoder, in closed form, and given to its pipeline as embeddings.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file

import fastdiff
from fastdiff.build.build import build_engine
from fastdiff.errors import FastdiffWarning, InputError
from tests.checkpoints import copy_checkpoint
from tests.oracle import Oracle, psnr

CALL: dict[str, Any] = {"steps": 4, "seed": 3, "sampler": "ddim", "guidance": 4.0}
MIN_PSNR = 45.0
LONG = "a red circle left of a blue square, a green star above it, on a red and blue circle of stars, " * 8


@pytest.fixture(scope="module")
def checkpoint(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With a final norm whose states have a mean, as trained ones have."""
    folder = copy_checkpoint(tiny_checkpoint, tmp_path_factory.mktemp("prompts") / "checkpoint")
    file = folder / "text_encoder" / "model.safetensors"
    weights = load_file(file)
    for name, array in weights.items():
        if "final_layer_norm" in name:
            noise = np.random.default_rng(1).normal(0.2, 0.1, array.shape)
            weights[name] = (array + noise).astype(np.float32)
    save_file(weights, file, {"format": "pt"})
    return folder


@pytest.fixture(scope="module")
def oracle(checkpoint: Path) -> Oracle:
    from diffusers import DDIMScheduler

    made = Oracle(checkpoint)
    made.pipe.scheduler = DDIMScheduler.from_config(made.config)
    # where diffusers' clip-skip looks for the norm; newer versions of transformers have it a level higher
    made.pipe.text_encoder.__dict__.setdefault("text_model", made.pipe.text_encoder)
    return made


@pytest.fixture(scope="module")
def opened(checkpoint: Path) -> fastdiff.Pipeline:
    """On the target that builds in no time: what differs on another is the module, of which
    tests/build/test_text_encoder.py has all inputs and outputs.
    """
    engine = build_engine(checkpoint, checkpoint.with_name("tiny.fd"), target="torch").path
    return fastdiff.load(engine, threads=1)


@pytest.fixture
def pipe(opened: fastdiff.Pipeline) -> Iterator[fastdiff.Pipeline]:
    yield opened
    opened.unload_textual_inversion()


def theirs(oracle: Oracle, *prompt: str, **options: Any) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        generator = torch.Generator().manual_seed(CALL["seed"])
        steps = {"num_inference_steps": CALL["steps"], "guidance_scale": CALL["guidance"]}
        return oracle.pipe(*prompt, generator=generator, **steps, **options).images


def compare(pipe: fastdiff.Pipeline, wanted: Any, prompt: str | list[str], **options: Any) -> np.ndarray:
    found = pipe(prompt, **CALL, **options)
    for ours, other in zip(found.images, wanted, strict=True):
        assert np.asarray(other).std() > 4
        assert psnr(ours, other) >= MIN_PSNR
    return found.latents


def encode(oracle: Oracle, ids: np.ndarray, clip_skip: int = 0) -> torch.Tensor:
    """diffusers' hidden states of rows of ids."""
    text = oracle.pipe.text_encoder
    with torch.no_grad():
        states = text(torch.as_tensor(ids), output_hidden_states=True).hidden_states
        return text.final_layer_norm(states[-(clip_skip + 1)])


def framed(oracle: Oracle, body: list[int]) -> np.ndarray:
    tokenizer = oracle.pipe.tokenizer
    start, end = tokenizer.bos_token_id, tokenizer.eos_token_id
    return np.array([[start, *body, *[end] * (76 - len(body))]])


def states_of(pipe: fastdiff.Pipeline, prompt: str, **options: Any) -> np.ndarray:
    from fastdiff.request import check_request

    call = {"prompt": prompt, "negative": "", "num": 1, "height": None, "width": None, "eta": None}
    request = check_request(pipe.engine.manifest.model, **call, **CALL, **options)
    return pipe.prompts.branches(request)[0]["encoder_hidden_states"]


def close(found: np.ndarray, wanted: torch.Tensor) -> bool:
    expected = wanted.numpy()
    return float(np.linalg.norm(found - expected)) <= 1e-5 * float(np.linalg.norm(expected))


@pytest.mark.parametrize("clip_skip", [0, 1, 2])
def test_clip_skip(pipe: fastdiff.Pipeline, oracle: Oracle, clip_skip: int) -> None:
    """Of the prompt alone: diffusers encodes the negative one without it."""
    options = {"clip_skip": clip_skip}
    wanted = theirs(oracle, "a red circle", negative_prompt="blue star", **options)
    latents = compare(pipe, wanted, "a red circle", negative="blue star", **options)
    plain = pipe("a red circle", negative="blue star", **CALL).latents
    assert np.array_equal(latents, plain) is (clip_skip == 0)
    ids = framed(oracle, oracle.pipe.tokenizer("a red circle").input_ids[1:-1])
    assert close(states_of(pipe, "a red circle", **options), encode(oracle, ids, clip_skip))


@pytest.mark.parametrize("clip_skip", [3, -1, 1.5, True])
def test_clip_skip_that_cannot_be(pipe: fastdiff.Pipeline, clip_skip: object) -> None:
    with pytest.raises(InputError, match=r"clip_skip is .*: it must be"):
        pipe("a", clip_skip=clip_skip, **CALL)


def test_weights(pipe: fastdiff.Pipeline, oracle: Oracle) -> None:
    """Hidden states times weights, scaled to the mean that they had."""
    tokenizer = oracle.pipe.tokenizer
    parts = [("a ", 1.0), ("red circle", 1.4), (" left of ", 1.0), ("star", 1 / 1.1)]
    tokens = [tokenizer(text).input_ids[1:-1] for text, _ in parts]
    ids = framed(oracle, [token for body in tokens for token in body])
    weights = torch.ones(77)
    position = 1
    for (_, weight), body in zip(parts, tokens, strict=True):
        weights[position : position + len(body)] = weight
        position += len(body)
    states = encode(oracle, ids)
    weighted = states * weights[None, :, None]
    weighted = weighted * (states.double().mean() / weighted.double().mean()).float()
    prompt = "a (red circle:1.4) left of [star]"
    assert close(states_of(pipe, prompt), weighted)
    wanted = theirs(oracle, prompt_embeds=weighted, negative_prompt_embeds=encode(oracle, framed(oracle, [])))
    latents = compare(pipe, wanted, prompt)
    assert not np.array_equal(latents, pipe("a red circle left of star", **CALL).latents)


def test_without_weighting_brackets_are_text(pipe: fastdiff.Pipeline, oracle: Oracle) -> None:
    prompt = "a (red:1.5) [circle] BREAK star"
    compare(pipe, theirs(oracle, prompt), prompt, weighting=False)


def test_a_bracket_that_is_not_closed_warns(pipe: fastdiff.Pipeline) -> None:
    says = r"the negative prompt has a bracket that is not closed, in '\(red:1.3 x': .* write \\\( for the"
    with pytest.warns(FastdiffWarning, match=says) as caught:
        pipe(["a", "b"], negative="a (red:1.3 x", **CALL)
    assert [each.filename for each in caught] == [__file__]
    pipe("a :(", weighting=False, **CALL)


def test_long_prompts_are_read_in_chunks(pipe: fastdiff.Pipeline, oracle: Oracle) -> None:
    """Each with a start and an end of its own; the negative prompt filled up with empty chunks."""
    words = [oracle.pipe.tokenizer(word).input_ids[1:-1] for word in LONG.replace(",", " ,").split()]
    rows: list[list[int]] = [[]]
    for word in words:
        if len(rows[-1]) + len(word) > 75:
            rows.append([])
        rows[-1] += word
    assert len(rows) > 2
    states = torch.cat([encode(oracle, framed(oracle, row)) for row in rows], dim=1)
    empty = encode(oracle, framed(oracle, [])).repeat(1, len(rows), 1)
    assert close(states_of(pipe, LONG), states)
    wanted = theirs(oracle, prompt_embeds=states, negative_prompt_embeds=empty)
    compare(pipe, wanted, LONG)


def test_long_prompts_that_are_cut(pipe: fastdiff.Pipeline, oracle: Oracle) -> None:
    with pytest.warns(FastdiffWarning, match="the prompt is longer than 77 tokens; dropped: ") as caught:
        compare(pipe, theirs(oracle, LONG), LONG, long_prompts="cut")
    assert caught[0].filename == __file__


def test_prompts_of_a_list_have_one_length(pipe: fastdiff.Pipeline) -> None:
    both = pipe([LONG, "a star"], **CALL, num=2)
    assert both.latents.shape[0] == 4
    assert states_of(pipe, LONG).shape[1] % 77 == 0


def embedding(count: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, 0.3, (count, 32)).astype(np.float32)


def test_textual_inversion(pipe: fastdiff.Pipeline, checkpoint: Path, tmp_path: Path) -> None:
    """One vector and several, in the prompt and in the negative one, against diffusers' own loader."""
    files = {"<cat>": tmp_path / "cat.safetensors", "sks": tmp_path / "style.safetensors"}
    save_file({"<cat>": embedding(1, 1)[0]}, files["<cat>"])
    save_file({"emb_params": embedding(3, 2)}, files["sks"])
    other = Oracle(checkpoint)
    from diffusers import DDIMScheduler

    other.pipe.scheduler = DDIMScheduler.from_config(other.config)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for token, file in files.items():
            other.pipe.load_textual_inversion(str(file.parent), weight_name=file.name, token=token)
    before = pipe("a <cat> left of sks star", negative="sks", **CALL).latents
    assert pipe.load_textual_inversion(files["<cat>"]) == "<cat>"
    assert pipe.load_textual_inversion(files["sks"], token="sks") == "sks"
    prompt = "a <cat> left of sks star"
    wanted = theirs(other, prompt, negative_prompt="sks")
    latents = compare(pipe, wanted, prompt, negative="sks")
    assert not np.array_equal(latents, before)
    with torch.no_grad():
        expected, _ = other.pipe.encode_prompt(prompt, "cpu", 1, False)
    assert close(states_of(pipe, prompt), expected)
    again = pipe(prompt, negative="sks", **CALL)
    assert [each["token"] for each in again.metadata[0]["embeddings"]] == ["<cat>", "sks"]
    pipe.unload_textual_inversion("sks")
    changed = pipe(prompt, negative="sks", **CALL).latents
    assert not np.array_equal(changed, latents)
    pipe.load_textual_inversion(files["sks"], token="sks")
    np.testing.assert_array_equal(pipe(prompt, negative="sks", **CALL).latents, latents)
    pipe.unload_textual_inversion()
    np.testing.assert_array_equal(pipe(prompt, negative="sks", **CALL).latents, before)


def test_settings_repeat_the_picture(pipe: fastdiff.Pipeline) -> None:
    options = {"clip_skip": 1, "weighting": False, "long_prompts": "cut"}
    with pytest.warns(FastdiffWarning, match="longer than 77"):
        first = pipe(LONG, **CALL, **options)
    settings = first.metadata[0]["settings"]
    assert {name: settings[name] for name in options} == options
    with pytest.warns(FastdiffWarning, match="longer than 77"):
        np.testing.assert_array_equal(pipe(**settings).latents, first.latents)
    plain = pipe("a", **CALL).metadata[0]["settings"]
    assert set(plain).isdisjoint(options), "what is not asked for is not recorded"
