"""The tasks with SDXL, its inpainting model and its refiner, against diffusers' pipelines of each.

``make test`` spreads the modules over the targets; ``make test-full`` runs all of it with each of them.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fastdiff
from fastdiff import InputError
from fastdiff.image import read_metadata
from fastdiff.tasks.refine import divided, refine
from tests.builds import build_captured, build_mixed, build_native
from tests.cli.run import run_here
from tests.families import make_family
from tests.oracle import psnr
from tests.tasks.oracle import MIN_PSNR, PROMPT, close, compare, drawn, hole, theirs

BASE, REFINER = "StableDiffusionXLPipeline", "StableDiffusionXLImg2ImgPipeline"
INPAINT = "StableDiffusionXLInpaintPipeline"
SIZES: dict[str, Any] = {
    "original_size": (512, 768),
    "crops_coords_top_left": (64, 96),
    "target_size": (1024, 512),
}
NEGATIVE: dict[str, Any] = {"negative_original_size": (100, 120), "negative_target_size": (200, 300)}
SCORES: dict[str, Any] = {"aesthetic_score": 7.5, "negative_aesthetic_score": 1.5}


MIXED = {
    "sdxl": {"unet": "native"},
    "refiner": {"text_encoder_2": "onnxruntime", "unet": "native"},
    "sdxl_inpainting": {},
}
"""Modules for other targets than PyTorch; text encoders and autoencoder have tests of their own on each."""


class Model:
    """A checkpoint of a family and its engine. ``target`` is one for all modules, or "mixed": see MIXED."""

    def __init__(self, name: str, folder: Path, target: str) -> None:
        self.checkpoint, engine = make_family(name, folder / name), folder / f"{name}.fd"
        match target:
            case "mixed":
                self.engine = build_mixed(self.checkpoint, engine, MIXED[name])
            case "native":
                self.engine = build_native(self.checkpoint, engine)
            case _:
                self.engine = build_captured(self.checkpoint, engine, target=target)
        self.pipe = fastdiff.load(self.engine, threads=1)

    def generate(self, **call: Any) -> Any:
        return compare(self.pipe, self.checkpoint, BASE, **call)

    def img2img(self, *size: int, **call: Any) -> Any:
        call = {"image": drawn(*size), "strength": 0.6, **call}
        return compare(self.pipe.img2img, self.checkpoint, REFINER, **call)

    def inpaint(self, **call: Any) -> Any:
        sides = {"height": 32, "width": 32}
        call = {"image": drawn(), "mask": hole(), **call}
        return compare(self.pipe.inpaint, self.checkpoint, INPAINT, only_theirs=sides, **call)


@pytest.fixture(
    scope="module",
    params=["mixed", *(pytest.param(name, marks=pytest.mark.full) for name in ("native", "onnxruntime"))],
)
def target(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def folder(target: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp(f"sdxl-{target}")


@pytest.fixture(scope="module")
def sdxl(folder: Path, target: str) -> Model:
    return Model("sdxl", folder, target)


@pytest.fixture(scope="module")
def nine(folder: Path, target: str) -> Model:
    return Model("sdxl_inpainting", folder, target)


@pytest.fixture(scope="module")
def refiner(folder: Path, target: str) -> Model:
    return Model("refiner", folder, target)


@pytest.mark.parametrize(
    "call",
    [
        {"num": 2, "negative": "green", **SIZES},
        {"sampler": "dpmpp_2m", "prompt_2": "a star", "height": 24, "width": 40, "clip_skip": 1},
        {"sampler": "euler_ancestral", "guidance": 1.0},
    ],
    ids=("sizes", "texts", "alone"),
)
def test_text_to_image(sdxl: Model, call: dict[str, Any]) -> None:
    sdxl.generate(**call)


@pytest.mark.parametrize(
    "call",
    [
        {},
        {"negative": "green", "sampler": "dpmpp_2m", **SIZES},
        {"negative": "green", "sampler": "ddim", **NEGATIVE},
        {"prompt_2": "a star", "negative": "red", "negative_2": "green", "num": 2, "clip_skip": 1},
        {"guidance": 1.0, "strength": 1.0, **SIZES},
    ],
    ids=("plain", "sizes", "negative", "texts", "alone"),
)
def test_image_to_image(sdxl: Model, call: dict[str, Any]) -> None:
    sdxl.img2img(40, 24, **call)


@pytest.mark.parametrize(
    "call",
    [
        {"strength": 1.0, "num": 2, "sampler": "euler_ancestral"},
        {"strength": 0.6, "negative": "green", "prompt_2": "a star", "sampler": "dpmpp_2m", **SIZES},
        {"strength": 0.7, "guidance": 1.0, "clip_skip": 1},
    ],
    ids=("noise", "sizes", "alone"),
)
def test_inpainting(sdxl: Model, nine: Model, call: dict[str, Any]) -> None:
    """By keeping what lies outside the mask, and with a model that sees it."""
    sdxl.inpaint(**call)
    nine.inpaint(**call)


@pytest.mark.parametrize("method", ["lanczos", "latent_bilinear"])
@pytest.mark.parametrize("sizes", [{}, SIZES], ids=("plain", "sizes"))
def test_two_passes(sdxl: Model, method: str, sizes: dict[str, Any]) -> None:
    """Each pass is told its own size, or both what the call says."""
    import torch
    from PIL import Image

    call: dict[str, Any] = {"sampler": "dpmpp_2m", "seed": 6}
    common = {**call, **sizes, "num_inference_steps": 5, "guidance_scale": 3.0}
    images, latents = theirs(sdxl.checkpoint, BASE, **common)
    large: Any = [image.resize((48, 48), Image.Resampling.LANCZOS) for image in images]
    if method == "latent_bilinear":
        large = torch.nn.functional.interpolate(torch.from_numpy(latents), size=(12, 12), mode="bilinear")
    pictures, latents = theirs(sdxl.checkpoint, REFINER, image=large, strength=0.6, **common)
    ours = sdxl.pipe.high_resolution(
        PROMPT, scale=1.5, method=method, strength=0.6, steps=5, guidance=3.0, **call, **sizes
    )
    close(ours, pictures, latents)
    if method == "lanczos" and not sizes:
        upscaled = sdxl.pipe.upscale(
            images[0], PROMPT, scale=1.5, strength=0.6, steps=5, guidance=3.0, **call
        )
        close(upscaled, pictures, latents)


def test_what_the_sizes_change(sdxl: Model) -> None:
    call: dict[str, Any] = {"steps": 3, "seed": 1, "sampler": "euler"}
    plain = sdxl.pipe.img2img(drawn(), PROMPT, **call).latents
    for given in (SIZES, NEGATIVE, {"clip_skip": 1}, {"prompt_2": "a star"}, {"negative_2": "green"}):
        assert not np.array_equal(sdxl.pipe.img2img(drawn(), PROMPT, **call, **given).latents, plain)
    for given in ({"prompt_2": 3}, {"original_size": (0, 5)}, {"clip_skip": 9}, {"aesthetic_score": 5.0}):
        (name,) = given
        with pytest.raises(InputError, match=name):
            sdxl.pipe.inpaint(drawn(), hole(), PROMPT, **given)


@pytest.mark.parametrize(
    "call",
    [{}, {"negative": "green", **SCORES, "original_size": (64, 96), "crops_coords_top_left": (8, 4)}],
    ids=("plain", "scores"),
)
def test_the_refiner_alone(refiner: Model, call: dict[str, Any]) -> None:
    refiner.img2img(strength=0.3, steps=12, **call)


@pytest.mark.parametrize(
    ("sampler", "start", "call"),
    [
        ("euler", 0.8, {}),
        ("dpmpp_2m", 0.5, {"negative": "green", "num": 2}),
        ("ddim", 0.4, {"negative": "green"}),
    ],
)
def test_hand_over(sdxl: Model, refiner: Model, sampler: str, start: float, call: dict[str, Any]) -> None:
    """The base's steps up to a share of the way, the refiner's from there on."""
    call = {"steps": 10, "guidance": 3.0, "seed": 4, "sampler": sampler, **call}
    common = {"num_inference_steps": 10, "guidance_scale": call["guidance"], "sampler": sampler}
    common |= {"num_images_per_prompt": call.get("num", 1), "negative_prompt": call.get("negative")}
    half, latents = theirs(
        sdxl.checkpoint,
        BASE,
        seed=4,
        denoising_end=start,
        output_type="latent",
        original_size=(64, 96),
        **common,
    )
    first = sdxl.pipe(PROMPT, **call, denoising_end=start, output="latents", original_size=(64, 96))
    assert np.linalg.norm(first.latents - latents) <= 3e-3 * np.linalg.norm(latents)
    pictures, latents = theirs(
        refiner.checkpoint, REFINER, seed=4, image=half, denoising_start=start, **common, **SCORES
    )
    ours = refiner.pipe.img2img(prompt=PROMPT, latents=first.latents, denoising_start=start, **call, **SCORES)
    close(ours, pictures, latents)


@pytest.mark.parametrize(
    ("sampler", "evaluations"), [("euler", 10), ("ddim", 10), ("heun", 19), ("dpm2", 19)]
)
def test_hand_over_to_oneself_is_the_whole_way(sdxl: Model, sampler: str, evaluations: int) -> None:
    """No step twice or left out, also by samplers of two evaluations, which diffusers cuts in two."""
    call: dict[str, Any] = {"steps": 10, "seed": 4, "sampler": sampler}
    whole = sdxl.pipe(PROMPT, **call)
    assert len(whole.timings.steps) == evaluations
    for start in (0.33, 0.5, 0.6):
        first = sdxl.pipe(PROMPT, **call, denoising_end=start, output="latents")
        second = sdxl.pipe.img2img(prompt=PROMPT, latents=first.latents, denoising_start=start, **call)
        assert len(first.timings.steps) + len(second.timings.steps) == evaluations
        assert np.linalg.norm(second.latents - whole.latents) <= 1e-5 * np.linalg.norm(whole.latents)


def test_hand_over_from_the_command_line(
    sdxl: Model, refiner: Model, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """The scores are the refiner's, the second prompt the base's, the rest goes to both."""
    out = tmp_path / "out.png"
    words = ("--steps", 10, "--guidance", 3, "--seed", 4, "--sampler", "euler", "--negative", "green")
    own = ("--prompt-2", "a star", "--target-size", "64x48", "--aesthetic-score", 7.5)
    both = ("--negative-aesthetic-score", 1.5, "--original-size", "64x96", "--clip-skip", 1)
    run = partial(run_here, capfd, "generate", sdxl.engine, PROMPT, "-o", out, "--threads", 1)
    outcome = run("--refiner", refiner.engine, "--refiner-start", 0.6, *words, *own, *both)
    assert outcome.status == 0, outcome
    common: dict[str, Any] = {"num_inference_steps": 10, "guidance_scale": 3.0, "sampler": "euler", "seed": 4}
    common |= {"negative_prompt": "green", "original_size": (64, 96), "clip_skip": 1}
    half, _ = theirs(
        sdxl.checkpoint,
        BASE,
        denoising_end=0.6,
        output_type="latent",
        prompt_2="a star",
        target_size=(64, 48),
        negative_original_size=(64, 96),
        negative_target_size=(64, 48),
        **common,
    )
    pictures, _ = theirs(refiner.checkpoint, REFINER, image=half, denoising_start=0.6, **common, **SCORES)
    from PIL import Image

    with Image.open(out) as picture:
        assert psnr(picture.convert("RGB"), pictures[0]) >= MIN_PSNR
    metadata = read_metadata(out)
    assert metadata["base"]["settings"]["prompt_2"] == "a star"
    assert metadata["settings"]["aesthetic_score"] == 7.5
    again = sdxl.pipe(**metadata["base"]["settings"])
    again = refiner.pipe.img2img(latents=again.latents, **metadata["settings"])
    with Image.open(out) as picture:
        assert np.array_equal(np.asarray(picture), np.asarray(again.images[0]))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--refiner", "nowhere.fd"), "nowhere.fd"),
        (("--refiner", "REFINER", "--refiner-start", 1.5), "refiner_start is 1.5"),
        (("--refiner", "REFINER", "--aesthetic-score", "nan"), "aesthetic_score is nan"),
        (("--refiner", "REFINER", "--sampler", "f_pndm", "--refiner-start", 0.9), "only the last 2 are run"),
        (("--refiner", "REFINER", "--refiner-start", 0.9999), "none of 20 steps left"),
        (("--refiner", "REFINER", "--refiner-start", 0.001), "before its first step at"),
        (("--refiner", "REFINER", "--vae", "tiny"), "without a tiny autoencoder"),
        (("--refiner", "REFINER", "--deep-cache", "3"), "deep_cache"),
        (("--refiner", "REFINER", "--control-scale", "1"), "control_scale without control_image"),
        (("--refiner", "REFINER", "--class-label", "1"), "class_label is 1"),
        (("--refiner", "BASE", "--aesthetic-score", "5"), "aesthetic_score has no effect with this model"),
        (("--refiner", "REFINER", "--devices", "cpu,cpu"), "--refiner with several --devices"),
        (("--refiner-start", 0.5), "--refiner-start without --refiner"),
    ],
)
def test_hand_over_that_cannot_be(
    sdxl: Model,
    refiner: Model,
    capfd: pytest.CaptureFixture[str],
    tmp_path: Path,
    words: tuple[Any, ...],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def never(*arguments: object) -> None:
        raise AssertionError("the first model computed")

    monkeypatch.setattr("fastdiff.pipeline.run_table", never)
    names = {"REFINER": refiner.engine, "BASE": sdxl.engine}
    words = tuple(names.get(word, word) for word in words)
    out = tmp_path / "out.png"
    run_here(capfd, "generate", sdxl.engine, PROMPT, "-o", out, *words).assert_refused(message)
    assert not list(tmp_path.iterdir())


def test_options_are_divided(sdxl: Model, refiner: Model) -> None:
    ours, others = sdxl.pipe.engine.manifest, refiner.pipe.engine.manifest
    call = {"steps": 3, "sampler": "euler", "prompt_2": "a", "progress": False, **SIZES, **SCORES}
    first, second = divided(ours, others, PROMPT, 0.8, call)
    assert set(call) - set(first) == set(SCORES)
    assert set(call) - set(second) == {"sampler", "prompt_2", "target_size"}
    assert divided(ours, ours, PROMPT, 0.8, {"prompt_2": "a"})[1] == {"prompt_2": "a"}
    begun = sdxl.pipe(PROMPT, steps=3, seed=1, denoising_end=0.5, output="latents")
    result = refine(refiner.pipe, begun, PROMPT, 0.5, {"steps": 3})
    assert result.metadata[0]["base"]["engine"] == sdxl.pipe.engine.engine_hash
    assert len(result.timings.steps) == 3, "those of both"
    assert result.timings.total > begun.timings.total
    for change, message in (
        ({"latent_channels": 16}, "refiner has latent channels 16, the first engine 4"),
        ({"vae_scale_factor": 8}, "refiner has vae scale factor 8, the first engine 4"),
        ({"condition_channels": 5}, "refiner is a model for inpainting"),
    ):
        other = replace(others, model=replace(others.model, **change))
        with pytest.raises(InputError, match=message):
            divided(ours, other, PROMPT, 0.8, {})
