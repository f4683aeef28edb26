"""Prompts and sizes of Stable Diffusion XL against diffusers' pipeline: two encoders, pooled states."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.numpy import save_file

import fastdiff
from fastdiff.build.build import build_engine
from fastdiff.errors import FastdiffWarning, InputError
from fastdiff.request import check_request
from tests.checkpoints import read_json, write_json
from tests.families import make_family
from tests.oracle import psnr

CALL: dict[str, Any] = {"steps": 3, "seed": 3, "sampler": "euler"}
MIN_PSNR = 45.0
PROMPT, OTHER = "a red circle left of a blue square", "a green star"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Whose second tokenizer pads with "!", as the published one does."""
    folder = make_family("sdxl", tmp_path_factory.mktemp("sdxl") / "checkpoint")
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        config = folder / "tokenizer_2" / name
        if config.exists():
            write_json(config, {**read_json(config), "pad_token": "!"})
    return folder


@pytest.fixture(scope="module")
def opened(checkpoint: Path) -> fastdiff.Pipeline:
    """On the target that builds in no time."""
    engine = build_engine(checkpoint, checkpoint.with_name("sdxl.fd"), target="torch").path
    return fastdiff.load(engine, threads=1)


@pytest.fixture
def pipe(opened: fastdiff.Pipeline) -> Iterator[fastdiff.Pipeline]:
    yield opened
    opened.unload_textual_inversion()


@pytest.fixture(scope="module")
def oracle(checkpoint: Path) -> Any:
    from diffusers import StableDiffusionXLPipeline

    torch.set_num_threads(1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made = StableDiffusionXLPipeline.from_pretrained(
            checkpoint, torch_dtype=torch.float32, local_files_only=True, add_watermarker=False
        )
    made.set_progress_bar_config(disable=True)
    return made


def theirs(oracle: Any, prompt: Any = None, **options: Any) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        generator = torch.Generator().manual_seed(CALL["seed"])
        options = {"guidance_scale": 4.0, "num_inference_steps": CALL["steps"], **options}
        return oracle(prompt, generator=generator, **options).images


def compare(pipe: fastdiff.Pipeline, wanted: Any, prompt: Any = PROMPT, **options: Any) -> np.ndarray:
    found = pipe(prompt, **{**CALL, "guidance": 4.0, **options})
    assert len(found.images) == len(wanted)
    for ours, other in zip(found.images, wanted, strict=True):
        assert np.asarray(other).std() > 4
        assert psnr(ours, other) >= MIN_PSNR
    return found.latents


SIZES: list[dict[str, Any]] = [
    {},
    {"original_size": (512, 768), "crops_coords_top_left": (64, 96), "target_size": (1024, 512)},
    {
        "negative_original_size": (100, 120),
        "negative_crops_coords_top_left": (8, 16),
        "negative_target_size": (200, 300),
    },
    {"crops_coords_top_left": (5, 6), "negative_original_size": (100, 120), "negative_target_size": (9, 8)},
]


@pytest.mark.parametrize("sizes", SIZES, ids=lambda sizes: "-".join(sizes) or "plain")
def test_sizes(pipe: fastdiff.Pipeline, oracle: Any, sizes: dict[str, Any]) -> None:
    latents = compare(pipe, theirs(oracle, PROMPT, **sizes), **sizes)
    plain = pipe(PROMPT, **CALL, guidance=4.0).latents
    assert np.array_equal(latents, plain) is not bool(sizes)


def test_without_guidance(pipe: fastdiff.Pipeline, oracle: Any) -> None:
    sizes = {"original_size": (512, 768)}
    compare(pipe, theirs(oracle, PROMPT, guidance_scale=1.0, **sizes), guidance=1.0, **sizes)
    with pytest.warns(FastdiffWarning, match="negative_target_size has no effect with guidance 1") as caught:
        pipe(PROMPT, **CALL, guidance=1.0, negative_target_size=(64, 64))
    assert caught[0].filename == __file__


def test_tokenizers_pad_each_with_its_own(pipe: fastdiff.Pipeline, oracle: Any) -> None:
    for ours, other in zip(
        pipe.prompts.reader.tokenizers, (oracle.tokenizer, oracle.tokenizer_2), strict=True
    ):
        wanted = other("a red circle!", padding="max_length", max_length=77).input_ids
        assert list(ours.tokenize("a red circle!").ids) == wanted
    first, second = (encoder.tokenize("").ids[-1] for encoder in pipe.prompts.reader.tokenizers)
    assert first != second


def test_turbo(pipe: fastdiff.Pipeline, oracle: Any) -> None:
    """As SDXL-Turbo is used: an ancestral sampler with trailing timesteps, 1 to 4 steps, no guidance."""
    from diffusers import EulerAncestralDiscreteScheduler

    trailing = {"timestep_spacing": "trailing"}
    usual = oracle.scheduler
    oracle.scheduler = EulerAncestralDiscreteScheduler.from_config(usual.config, **trailing)
    try:
        for steps, height, width in ((1, 32, 32), (2, 48, 64)):
            call = {"height": height, "width": width}
            wanted = theirs(oracle, PROMPT, guidance_scale=0.0, num_inference_steps=steps, **call)
            call |= {
                "steps": steps,
                "guidance": 0.0,
                "sampler": "euler_ancestral",
                "sampler_options": trailing,
            }
            compare(pipe, wanted, PROMPT, **call)
    finally:
        oracle.scheduler = usual


def test_texts_of_both_encoders(pipe: fastdiff.Pipeline, oracle: Any) -> None:
    """Several prompts, several pictures of each, and another text for the second encoder."""
    prompts, seconds = [PROMPT, OTHER], ["a star", "a circle on a square"]
    wanted = theirs(
        oracle,
        prompts,
        prompt_2=seconds,
        negative_prompt=["blue", "red"],
        negative_prompt_2=["green", "square"],
        num_images_per_prompt=2,
    )
    options = {"negative": ["blue", "red"], "negative_2": ["green", "square"], "num": 2}
    found = compare(pipe, wanted, prompts, prompt_2=seconds, **options)
    assert not np.array_equal(found, pipe(prompts, **CALL, guidance=4.0, **options).latents)


def test_no_negative_prompt_is_zeros(pipe: fastdiff.Pipeline, oracle: Any) -> None:
    """White space is a text without words, which diffusers' "" is."""
    assert oracle.config.force_zeros_for_empty_prompt
    zeros = compare(pipe, theirs(oracle, PROMPT))
    empty = compare(pipe, theirs(oracle, PROMPT, negative_prompt=""), negative=" ")
    assert not np.array_equal(zeros, empty)


@pytest.mark.parametrize("clip_skip", [1, 2])
def test_clip_skip(pipe: fastdiff.Pipeline, oracle: Any, clip_skip: int) -> None:
    options = {"clip_skip": clip_skip}
    compare(pipe, theirs(oracle, PROMPT, negative_prompt="blue", **options), negative="blue", **options)


def test_clip_skip_is_of_both_encoders(pipe: fastdiff.Pipeline) -> None:
    with pytest.raises(InputError, match="clip_skip is 3: it must be from 0 to 2 with this model"):
        pipe(PROMPT, clip_skip=3)


def encoded(pipe: fastdiff.Pipeline, prompt: str, **options: Any) -> dict[str, np.ndarray]:
    call = {"prompt": prompt, "negative": "x", "num": 1, "height": None, "width": None, "eta": None}
    request = check_request(pipe.engine.manifest.model, **call, **CALL, guidance=4.0, **options)
    return pipe.prompts.branches(request)[0]


def test_weights_and_chunks(pipe: fastdiff.Pipeline, oracle: Any) -> None:
    """Weights multiply hidden states without the final norm as they are; the first chunk is pooled."""
    plain = encoded(pipe, "a red circle BREAK star")
    first, second = encoded(pipe, "a red circle"), encoded(pipe, "star")
    states = np.concatenate([first["encoder_hidden_states"], second["encoder_hidden_states"]], axis=1)
    np.testing.assert_array_equal(plain["encoder_hidden_states"], states)
    np.testing.assert_array_equal(plain["text_embeds"], first["text_embeds"])
    weighted = encoded(pipe, "a red (circle:1.5) BREAK star")
    count = len(pipe.prompts.reader.tokenizers[0].words("circle")[0].ids)
    position = 1 + sum(len(word.ids) for word in pipe.prompts.reader.tokenizers[0].words("a red"))
    states[:, position : position + count] *= np.float32(1.5)
    np.testing.assert_array_equal(weighted["encoder_hidden_states"], states)
    np.testing.assert_array_equal(weighted["text_embeds"], first["text_embeds"])
    negative = encoded(pipe, "x")
    options = {
        "prompt_embeds": states,
        "pooled_prompt_embeds": first["text_embeds"],
        "negative_prompt_embeds": np.concatenate(
            [negative["encoder_hidden_states"], encoded(pipe, "")["encoder_hidden_states"]], axis=1
        ),
        "negative_pooled_prompt_embeds": negative["text_embeds"],
    }
    wanted = theirs(oracle, **{name: torch.from_numpy(array) for name, array in options.items()})
    compare(pipe, wanted, "a red (circle:1.5) BREAK star", negative="x")


def test_textual_inversion_of_both_encoders(
    pipe: fastdiff.Pipeline, checkpoint: Path, tmp_path: Path
) -> None:
    from diffusers import StableDiffusionXLPipeline

    rng = np.random.default_rng(0)
    vectors = {
        name: rng.normal(0, 0.3, (2, width)).astype(np.float32)
        for name, width in (("clip_l", 32), ("clip_g", 24))
    }
    save_file(vectors, tmp_path / "toy.safetensors")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        other = StableDiffusionXLPipeline.from_pretrained(
            checkpoint, torch_dtype=torch.float32, local_files_only=True, add_watermarker=False
        )
        other.set_progress_bar_config(disable=True)
        for name, number in (("clip_l", ""), ("clip_g", "_2")):
            other.load_textual_inversion(
                {"<toy>": torch.from_numpy(vectors[name])},
                token="<toy>",
                text_encoder=getattr(other, f"text_encoder{number}"),
                tokenizer=getattr(other, f"tokenizer{number}"),
            )
    assert pipe.load_textual_inversion(tmp_path / "toy.safetensors", "<toy>") == "<toy>"
    compare(pipe, theirs(other, "a red <toy> star"), "a red <toy> star")
    states, _, pooled, _ = other.encode_prompt("a red <toy> star", do_classifier_free_guidance=False)
    found = encoded(pipe, "a red <toy> star")
    for ours, wanted in ((found["encoder_hidden_states"], states), (found["text_embeds"], pooled)):
        reference = wanted.detach().numpy()
        assert np.linalg.norm(ours - reference) <= 1e-5 * np.linalg.norm(reference)
    pipe.unload_textual_inversion()
    save_file({"emb_params": vectors["clip_g"]}, tmp_path / "one.safetensors")
    with pytest.warns(
        FastdiffWarning, match="for text encoder 2 of 2 alone: the other reads '<toy>' as text"
    ):
        pipe.load_textual_inversion(tmp_path / "one.safetensors", "<toy>")
    alone = encoded(pipe, "a red <toy> star")["encoder_hidden_states"]
    plain = encoded(pipe, "a red star")["encoder_hidden_states"]
    assert not np.array_equal(alone[..., :32], plain[..., :32]), "text for the first encoder"
    assert not np.array_equal(alone[..., 32:], found["encoder_hidden_states"][..., :24])


def test_settings_repeat_the_picture(pipe: fastdiff.Pipeline) -> None:
    options = {"prompt_2": "star", "clip_skip": 1, **SIZES[1], **SIZES[2]}
    first = pipe(PROMPT, **CALL, guidance=4.0, **options)
    settings = first.metadata[0]["settings"]
    assert settings["original_size"] == [512, 768]
    assert settings["prompt_2"] == "star"
    np.testing.assert_array_equal(pipe(**settings).latents, first.latents)


def test_refiner(tmp_path: Path) -> None:
    """One encoder; the score that a picture shall have in place of its size."""
    folder = make_family("refiner", tmp_path / "checkpoint")
    pipe = fastdiff.load(build_engine(folder, tmp_path / "refiner.fd", target="torch").path, threads=1)
    from diffusers import StableDiffusionXLImg2ImgPipeline

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        other = StableDiffusionXLImg2ImgPipeline.from_pretrained(
            folder, torch_dtype=torch.float32, local_files_only=True, add_watermarker=False
        )
    other.set_progress_bar_config(disable=True)
    options = {"aesthetic_score": 7.5, "negative_aesthetic_score": 1.5, "original_size": [64, 96]}
    call = {"prompt": PROMPT, "negative": "blue", "num": 1, "height": 32, "width": 64, "eta": None}
    for given in ({}, options, {"crops_coords_top_left": (3, 4), "negative_original_size": (5, 6)}):
        request = check_request(pipe.engine.manifest.model, **call, **CALL, guidance=4.0, **given)
        found = [branch["time_ids"][0].tolist() for branch in pipe.prompts.branches(request)]
        size = (32, 64)
        original = tuple(given.get("original_size", size))
        wanted = other._get_add_time_ids(
            original,
            tuple(given.get("crops_coords_top_left", (0, 0))),
            size,
            given.get("aesthetic_score", 6.0),
            given.get("negative_aesthetic_score", 2.5),
            tuple(given.get("negative_original_size", original)),
            (0, 0),
            size,
            dtype=torch.float32,
            text_encoder_projection_dim=20,
        )
        assert found == [ids[0].tolist() for ids in wanted]
    states, negative, pooled, _ = other.encode_prompt(PROMPT, negative_prompt="blue")
    branches = pipe.prompts.branches(request)
    for ours, theirs_ in (
        (branches[0]["encoder_hidden_states"], states),
        (branches[1]["encoder_hidden_states"], negative),
        (branches[0]["text_embeds"], pooled),
    ):
        np.testing.assert_allclose(ours, theirs_.detach().numpy(), atol=1e-5)
    with pytest.raises(InputError, match="target_size has no effect with a refiner"):
        pipe(PROMPT, target_size=(64, 64))
    start = Image.fromarray(np.random.default_rng(0).integers(0, 256, (32, 64, 3), np.uint8))
    scores = {"aesthetic_score": 7.5, "negative_aesthetic_score": 1.5}
    call = {"strength": 0.5, **scores}
    wanted = theirs(other, PROMPT, negative_prompt="blue", image=start, num_inference_steps=6, **call)
    found = pipe.img2img(start, PROMPT, **{**CALL, "steps": 6}, guidance=4.0, negative="blue", **call)
    assert psnr(found.images[0], wanted[0]) >= MIN_PSNR
    plain = pipe.img2img(start, PROMPT, **{**CALL, "steps": 6}, guidance=4.0, negative="blue", strength=0.5)
    assert not np.array_equal(found.latents, plain.latents)
