"""The pipeline on modules of few NumPy operations: what is called, how often, with what, what is refused."""

from __future__ import annotations

import json
import math
import sys
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fastdiff.config import ModelSpec, Precision, SizeRange, TensorSpec
from fastdiff.errors import FastdiffWarning, InputError, NumericError, OutputError
from fastdiff.image import read_metadata
from fastdiff.manifest import Manifest, ModuleEntry
from fastdiff.pipeline import Pipeline
from fastdiff.prompts import encoder
from fastdiff.samplers import Guidance, sample
from fastdiff.samplers.guidance import APG, CFGPlusPlus, CFGZeroStar, Interval, PerpNeg, Schedule
from fastdiff.targets.session import Session
from tests.checkpoints import SCHEDULER, write_tokenizer

pytestmark = pytest.mark.smoke

MODEL = ModelSpec("stable_diffusion", 4, 4, 0.5, 0.0, 32, 48, 1, 8, 16, 6)
SPECS = {
    "text_encoder": (
        [TensorSpec("input_ids", "int64", ("batch", "tokens"))],
        [TensorSpec("last_hidden_state", "float32", ("batch", "tokens", 6))],
    ),
    "unet": (
        [
            TensorSpec("sample", "float32", ("batch", 4, "height", "width")),
            TensorSpec("timestep", "float32", ("batch",)),
            TensorSpec("encoder_hidden_states", "float32", ("batch", "tokens", 6)),
        ],
        [TensorSpec("sample", "float32", ("batch", 4, "height", "width"))],
    ),
    "vae_decoder": (
        [TensorSpec("latent_sample", "float32", ("batch", 4, "height", "width"))],
        [TensorSpec("sample", "float32", ("batch", 3, "4*height", "4*width"))],
    ),
    "vae_encoder": (
        [TensorSpec("sample", "float32", ("batch", 3, "4*height", "4*width"))],
        [TensorSpec("mean", "float32", ("batch", 4, "height", "width"))],
    ),
}
SHAPES = {
    "batch": SizeRange(1, 8),
    "tokens": SizeRange(1, 16),
    "height": SizeRange(4, 64, 2),
    "width": SizeRange(4, 64, 2),
}


class FakeSession(Session):
    """Remembers its calls. Each picture's output depends on its own row only, as in a real module."""

    def __init__(self, name: str) -> None:
        inputs, outputs = SPECS[name]
        super().__init__(name, tuple(inputs), tuple(outputs), SHAPES)
        self.calls: list[dict[str, np.ndarray]] = []
        self.break_at: int | None = None
        self.closed = False

    def _run(self, arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        self.calls.append({name: array.copy() for name, array in arrays.items()})
        if self.name == "text_encoder":
            ids = arrays["input_ids"].astype(np.float32)
            return {"last_hidden_state": np.sin(ids[..., None] * np.arange(1, 7, dtype=np.float32))}
        if self.name == "unet":
            text = arrays["encoder_hidden_states"].mean(axis=(1, 2))[:, None, None, None]
            output = 0.9 * arrays["sample"] + text + 1e-4 * arrays["timestep"][:, None, None, None]
            if self.break_at == len(self.calls):
                output[0, 0, 0, 0] = np.nan
            return {"sample": output.astype(np.float32)}
        picture = np.tanh(arrays["latent_sample"][:, :3]).repeat(4, axis=2).repeat(4, axis=3)
        if self.break_at == len(self.calls):
            picture[:] = np.inf
        return {"sample": picture}

    def close(self) -> None:
        self.closed = True


class FakeEngine:
    def __init__(self, folder: Path, scheduler: dict[str, Any]) -> None:
        def entry(name: str) -> ModuleEntry:
            inputs, outputs = SPECS[name]
            return ModuleEntry("torch", Precision.FP32, tuple(inputs), tuple(outputs), SHAPES, {}, 0, {}, 0.0)

        self.path = folder
        self.tokenizer_folder = folder / "tokenizer"
        self.manifest = Manifest(1, MODEL, scheduler, {name: entry(name) for name in SPECS}, {}, {})
        self.engine_hash = self.manifest.digest
        self.opened: list[tuple[str, int | None]] = []

    def entry(self, name: str) -> ModuleEntry:
        return self.manifest.modules[name]

    def open_module(self, name: str, threads: int | None, device: object) -> FakeSession:
        self.opened.append((name, threads))
        return FakeSession(name)


@pytest.fixture
def pipe(tmp_path: Path) -> Pipeline:
    return make(tmp_path)


def make(folder: Path, **scheduler: object) -> Pipeline:
    write_tokenizer(folder / "tokenizer", max_tokens=16)
    return Pipeline(FakeEngine(folder, {**SCHEDULER, **scheduler}), threads=3)


def test_what_pictures_need_is_opened_by_load(pipe: Pipeline) -> None:
    assert pipe.engine.opened == [("text_encoder", 3), ("unet", 3), ("vae_decoder", 3)]
    assert list(pipe.modules) == list(SPECS)
    assert len(pipe.modules) == 4
    assert pipe.modules["vae_encoder"] is pipe.modules["vae_encoder"]
    assert pipe.engine.opened[-1] == ("vae_encoder", 3)
    with pytest.raises(KeyError):
        pipe.modules["refiner"]


def test_result(pipe: Pipeline) -> None:
    result = pipe("a red circle", steps=4, sampler="ddim", seed=3)
    assert [image.size for image in result.images] == [(48, 32)]
    assert (result.latents.shape, result.latents.dtype) == ((1, 4, 8, 12), np.float32)
    assert result.seed == 3
    assert len(result.timings.steps) == 4
    assert (
        0
        < sum(result.timings.steps) + result.timings.text_encoder + result.timings.vae
        <= result.timings.total
    )


def test_guidance_is_one_batch_unconditional_first(pipe: Pipeline) -> None:
    pipe("a red circle", negative="blue", steps=2, sampler="ddim", seed=0, num=2)
    encoder, unet = pipe.modules["text_encoder"], pipe.modules["unet"]
    states = {tuple(call["input_ids"][0]): index for index, call in enumerate(encoder.calls)}
    positive, negative = (
        states[pipe.tokenizer.tokenize("a red circle").ids],
        states[pipe.tokenizer.tokenize("blue").ids],
    )
    embedded = [np.sin(call["input_ids"][0, :, None] * np.arange(1.0, 7.0)) for call in encoder.calls]
    for call in unet.calls:
        assert call["sample"].shape == (4, 4, 8, 12)
        np.testing.assert_array_equal(call["sample"][:2], call["sample"][2:])
        np.testing.assert_allclose(call["encoder_hidden_states"][1], embedded[negative], atol=1e-4)
        np.testing.assert_allclose(call["encoder_hidden_states"][2], embedded[positive], atol=1e-4)
        assert call["timestep"].shape == (4,)


def test_perp_neg_is_one_batch_of_three(pipe: Pipeline) -> None:
    """Without a prompt, with it, with the negative one; outside of the interval with the prompt alone."""
    guidance = Guidance(3.0, PerpNeg(), interval=Interval(0.0, 0.5, "share"))
    pipe("a red circle", negative="blue", steps=4, sampler="ddim", seed=0, guidance=guidance)
    calls = pipe.modules["unet"].calls
    assert [len(call["sample"]) for call in calls] == [3, 3, 1, 1]
    embedded = []
    for text in ("", "a red circle", "blue"):
        ids = np.array(pipe.tokenizer.tokenize(text).ids)
        embedded.append(np.sin(ids[:, None] * np.arange(1.0, 7.0)))
    np.testing.assert_allclose(calls[0]["encoder_hidden_states"], embedded, atol=1e-4)
    np.testing.assert_allclose(calls[3]["encoder_hidden_states"], embedded[1:2], atol=1e-4)


@pytest.mark.parametrize("guidance", [0, 0.7, 1])
def test_guidance_up_to_one_skips_the_unconditional_half(pipe: Pipeline, guidance: float) -> None:
    result = pipe("a red circle", steps=2, sampler="ddim", seed=0, guidance=guidance)
    assert {call["sample"].shape[0] for call in pipe.modules["unet"].calls} == {1}
    assert len(pipe.modules["text_encoder"].calls) == 1
    np.testing.assert_array_equal(
        result.latents, pipe("a red circle", steps=2, sampler="ddim", seed=0, guidance=1).latents
    )


def test_text_encoder_runs_once_per_distinct_prompt(pipe: Pipeline) -> None:
    encoder = pipe.modules["text_encoder"]
    pipe(["a", "b", "a"], steps=1, sampler="ddim", seed=0)
    assert len(encoder.calls) == 3, "a, b and the empty negative"
    pipe("b", steps=1, sampler="ddim", seed=0)
    assert len(encoder.calls) == 3, "both are remembered"
    for number in range(40):
        pipe(f"{number}", steps=1, sampler="ddim", seed=0)
    assert len(pipe.prompts._known) <= 32
    many = pipe([f"x{number}" for number in range(4)] * 2, steps=1, sampler="ddim", seed=0, guidance=1)
    assert len(many.images) == 8


def test_pictures_of_a_list_are_those_of_its_noise(pipe: Pipeline) -> None:
    """Two prompts, two pictures each: the rows of one draw of noise, the first prompt's pictures first."""
    both = pipe(["a red circle", "a blue star"], steps=3, sampler="euler", seed=9, num=2)
    assert len(both.images) == 4
    noise = pipe("a", steps=1, sampler="ddim", seed=9, num=4, guidance=1)
    del noise
    from fastdiff.samplers import Generator

    start = Generator(9).randn((4, 4, 8, 12))
    for row, prompt in enumerate(["a red circle", "a red circle", "a blue star", "a blue star"]):
        alone = pipe(prompt, steps=3, sampler="euler", seed=1, latents=start[row : row + 1])
        np.testing.assert_allclose(alone.latents[0], both.latents[row], rtol=1e-5, atol=1e-5)


def test_same_seed_same_bits_whatever_was_cached(pipe: Pipeline, tmp_path: Path) -> None:
    first = pipe("a red circle", steps=3, seed=5).latents
    pipe(["b", "c"], steps=1, seed=6)
    np.testing.assert_array_equal(pipe("a red circle", steps=3, seed=5).latents, first)
    other = make(tmp_path / "other")
    other(["b", "a red circle"], steps=1, seed=6)
    np.testing.assert_array_equal(other("a red circle", steps=3, seed=5).latents, first)
    assert not np.array_equal(pipe("a red circle", steps=3, seed=6).latents, first)


def test_vae_scaling_and_shift(tmp_path: Path) -> None:
    pipe = make(tmp_path)
    result = pipe("a", steps=1, sampler="ddim", seed=0, guidance=1)
    np.testing.assert_allclose(
        pipe.modules["vae_decoder"].calls[0]["latent_sample"], result.latents / 0.5, rtol=1e-6
    )


def test_sampler_is_the_checkpoints_own(tmp_path: Path) -> None:
    assert make(tmp_path / "a")("a", steps=2, seed=0).metadata[0]["settings"]["sampler"] == "pndm"
    euler = make(tmp_path / "b", _class_name="EulerDiscreteScheduler")
    assert euler("a", steps=2, seed=0).metadata[0]["settings"]["sampler"] == "euler"
    other = make(tmp_path / "c", _class_name="RePaintScheduler")
    with pytest.raises(InputError, match=r"RePaintScheduler.*choose one; fastdiff samplers lists"):
        other("a", steps=2)
    assert other("a", steps=2, sampler="ddim", seed=0).images


def test_seed_is_drawn_reported_and_repeats(pipe: Pipeline) -> None:
    first = pipe("a", steps=2)
    assert first.metadata[0]["settings"]["seed"] == first.seed
    np.testing.assert_array_equal(pipe("a", steps=2, seed=first.seed).latents, first.latents)


@pytest.mark.parametrize("sampler", ["ddim", "pndm", "euler", "dpmpp_2m"])
def test_callback_sees_every_evaluation(pipe: Pipeline, sampler: str) -> None:
    seen: list[tuple[int, int]] = []
    last: list[np.ndarray] = []

    def callback(step: int, total: int, latents: np.ndarray) -> None:
        seen.append((step, total))
        last[:] = [latents.copy()]

    result = pipe("a", steps=5, sampler=sampler, seed=0, callback=callback)
    total = len(pipe.modules["unet"].calls)
    assert seen == [(step, total) for step in range(1, total + 1)]
    assert len(result.timings.steps) == total
    np.testing.assert_array_equal(last[0], result.latents)


def test_interrupt_from_a_callback_goes_through_and_the_pipeline_lives_on(pipe: Pipeline) -> None:
    def interrupt(step: int, total: int, latents: np.ndarray) -> None:
        if step == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pipe("a", steps=5, seed=0, callback=interrupt, progress=True)
    assert len(pipe.modules["unet"].calls) == 2
    assert pipe("a", steps=5, seed=0).images


def test_eta_draws_from_the_generator_after_the_latents(pipe: Pipeline) -> None:
    plain = pipe("a", steps=3, sampler="ddim", seed=0)
    noisy = pipe("a", steps=3, sampler="ddim", seed=0, eta=0.7)
    np.testing.assert_array_equal(
        pipe.modules["unet"].calls[0]["sample"], pipe.modules["unet"].calls[3]["sample"]
    )
    assert not np.array_equal(plain.latents, noisy.latents)
    np.testing.assert_array_equal(pipe("a", steps=3, sampler="ddim", seed=0, eta=0.7).latents, noisy.latents)
    with pytest.raises(InputError, match="eta"):
        pipe("a", steps=3, sampler="euler", eta=0.7)


def test_sampler_options_replace_the_checkpoints(pipe: Pipeline) -> None:
    call = {"steps": 4, "sampler": "euler", "seed": 0}
    karras = pipe("a", **call, sampler_options={"use_karras_sigmas": True})
    assert not np.array_equal(pipe("a", **call).latents, karras.latents)
    assert karras.metadata[0]["settings"]["sampler_options"] == {"use_karras_sigmas": True}
    again = pipe(**karras.metadata[0]["settings"])
    np.testing.assert_array_equal(again.latents, karras.latents)
    with pytest.raises(InputError, match="no option 'use_karras_sigma'; did you mean use_karras_sigmas"):
        pipe("a", **call, sampler_options={"use_karras_sigma": True})


def test_inverse_samplers_want_a_picture(pipe: Pipeline) -> None:
    with pytest.raises(InputError, match="'ddim_inverse' leads from a picture to noise"):
        pipe("a", steps=4, sampler="ddim_inverse")
    picture = pipe("a", steps=4, sampler="ddim", seed=0, guidance=1)
    noise = pipe("a", steps=4, sampler="ddim_inverse", latents=picture.latents, guidance=1)
    assert np.isfinite(noise.latents).all()


def test_samplers_that_choose_their_steps(pipe: Pipeline) -> None:
    seen: list[tuple[int, int]] = []
    result = pipe(
        "a",
        sampler="rk23",
        seed=0,
        sampler_options={"rtol": 0.1},
        callback=lambda step, total, latents: seen.append((step, total)),
        progress=True,
    )
    assert len(seen) == len(result.timings.steps) > 1
    assert seen[-1][0] == seen[-1][1] == len(pipe.modules["unet"].calls)
    again = pipe(**result.metadata[0]["settings"])
    np.testing.assert_array_equal(again.latents, result.latents)
    with pytest.raises(InputError, match="chooses its own steps and takes guidance as a scale"):
        pipe("a", sampler="rk23", guidance=Guidance(5.0, rescale=0.5))


def test_given_latents_are_scaled_like_drawn_ones(pipe: Pipeline) -> None:
    from fastdiff.samplers import Generator

    noise = Generator(4).randn((1, 4, 8, 12))
    kept = noise.copy()
    given = pipe("a", steps=3, sampler="euler", seed=99, latents=noise)
    np.testing.assert_array_equal(given.latents, pipe("a", steps=3, sampler="euler", seed=4).latents)
    np.testing.assert_array_equal(noise, kept)
    assert given.metadata[0]["latents"] == "given"


@pytest.mark.parametrize(
    ("latents", "says"),
    [
        (np.zeros((1, 4, 8, 8), np.float32), r"\[1, 4, 8, 8\].*must be float32 \[1, 4, 8, 12\]"),
        (np.zeros((1, 4, 8, 12), np.int64), "int64"),
        (np.full((1, 4, 8, 12), np.nan, np.float32), "NaN"),
    ],
)
def test_unusable_latents(pipe: Pipeline, latents: np.ndarray, says: str) -> None:
    with pytest.raises(InputError, match=says):
        pipe("a", steps=2, latents=latents)


def test_cut_prompts_warn_with_what_was_dropped(pipe: Pipeline) -> None:
    with pytest.warns(
        FastdiffWarning, match="the prompt is longer than 16 tokens; dropped: 'a  Green Ünder'"
    ) as caught:
        pipe("a " * 14 + "a  Green Ünder ", steps=1, seed=0, long_prompts="cut")
    assert len(caught) == 1
    assert caught[0].filename == __file__
    with pytest.warns(
        FastdiffWarning, match="the negative prompt is longer than 16 tokens; dropped: 'square'"
    ):
        pipe("a", negative="a " * 14 + "square", steps=1, seed=0, long_prompts="cut")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pipe("a " * 14, steps=1, seed=0)


def test_negative_without_guidance_warns(pipe: Pipeline) -> None:
    with pytest.warns(FastdiffWarning, match="no effect with guidance 1") as caught:
        pipe("a", negative="blue", guidance=1, steps=1, seed=0)
    assert caught[0].filename == __file__


def test_an_interval_of_guidance_without_a_step_warns(pipe: Pipeline) -> None:
    guidance = {"scale": 4.0, "interval": {"low": 1000.0, "high": 2000.0}}
    with pytest.warns(FastdiffWarning, match="the guidance interval holds no step: there is no guidance"):
        pipe("a", guidance=guidance, steps=2, seed=0)


def test_nan_is_an_error_that_names_the_step(pipe: Pipeline) -> None:
    pipe.modules["unet"].break_at = 3
    with pytest.raises(NumericError, match=r"after step 3 of 5.*lower"):
        pipe("a", steps=5, sampler="ddim", seed=0)
    pipe.modules["vae_decoder"].break_at = 1
    with pytest.raises(NumericError, match="VAE gave NaN"):
        pipe("a", steps=1, sampler="ddim", seed=0)


class FakeLoop(FakeSession):
    """A U-Net whose target runs all steps in one call, and would have to wait to show one."""

    has_loop = True
    waits_per_step = False

    def __init__(self) -> None:
        super().__init__("unet")
        self.watched: list[bool] = []

    def sample(self, table, latents, inputs, guidance, noise, callback):
        self.watched.append(callback is not None)
        batch = 2 if guidance != 1 else 1

        def denoise(x, timestep, guided):
            output = self(sample=np.concatenate([x] * batch), timestep=np.float32(timestep), **inputs)[
                "sample"
            ]
            return (output[len(x) :], output[: len(x)]) if guided else (output, None)

        return sample(table, denoise, latents, guidance=guidance, noise=noise, callback=callback)


def test_a_loop_that_would_wait_is_watched_only_when_asked(pipe: Pipeline) -> None:
    wanted = pipe("a", steps=5, sampler="pndm", seed=0)
    loop = pipe.modules._open["unet"] = FakeLoop()
    found = pipe("a", steps=5, sampler="pndm", seed=0)
    np.testing.assert_array_equal(found.latents, wanted.latents)
    assert len(found.timings.steps) == len(wanted.timings.steps) == 6
    assert len(set(found.timings.steps)) == 1
    assert 0 < sum(found.timings.steps) < found.timings.total
    seen: list[int] = []
    pipe("a", steps=5, sampler="pndm", seed=0, callback=lambda step, total, latents: seen.append(step))
    assert seen == [1, 2, 3, 4, 5, 6]
    assert len(set(pipe("a", steps=5, seed=0, progress=True).timings.steps)) > 1
    assert loop.watched == [False, True, True]


@pytest.mark.parametrize(
    ("guidance", "compiled"),
    [
        (Guidance(3.0), True),
        (Guidance(2.0, schedule=Schedule("linear"), original=True), True),
        (Guidance(0.6, CFGPlusPlus()), True),
        (Guidance(3.0, interval=Interval(1.0, 5.0)), False),
        (Guidance(3.0, rescale=0.7), False),
        (Guidance(3.0, APG()), False),
    ],
)
def test_linear_guidance_runs_in_a_targets_loop(pipe: Pipeline, guidance: Guidance, compiled: bool) -> None:
    """And the rest, and steps with the prompt alone, in that of the samplers: the latents are the same."""
    call = {"prompt": "a", "steps": 5, "sampler": "euler", "seed": 0, "guidance": guidance}
    wanted = pipe(**call)
    loop = pipe.modules._open["unet"] = FakeLoop()
    np.testing.assert_array_equal(pipe(**call).latents, wanted.latents)
    assert bool(loop.watched) is compiled
    assert not np.array_equal(wanted.latents, pipe(**{**call, "guidance": 1}).latents)


def test_zero_steps_without_guidance(pipe: Pipeline) -> None:
    """A scale of 1 needs the prompt alone, and the first step still nothing."""
    pipe("a", steps=4, sampler="euler", seed=0, guidance=Guidance(1.0, CFGZeroStar()))
    assert [len(call["sample"]) for call in pipe.modules["unet"].calls] == [1, 1, 1]


def test_nan_in_a_loop_that_nobody_watches(pipe: Pipeline) -> None:
    loop = pipe.modules._open["unet"] = FakeLoop()
    loop.break_at = 3
    with pytest.raises(NumericError, match=r"after step 5 of 5.*lower"):
        pipe("a", steps=5, sampler="ddim", seed=0)


BAD = [
    ({"sampler": "dpm"}, "unknown sampler 'dpm'.*did you mean"),
    ({"steps": 1001}, "1001.*1000"),
    ({"steps": 0}, "steps is 0"),
    ({"guidance": math.nan}, "guidance is nan"),
    (
        {"clip_skip": 1},
        "clip_skip is 1: this engine's text encoder gives its last layer alone; build it again",
    ),
    ({"prompt_2": "b"}, "prompt_2 is for models with two text encoders: leave it out"),
    ({"target_size": (64, 64)}, "target_size is for models that take sizes, such as SDXL: leave it out"),
    ({"negative": "a " * 20}, "2 chunks has 32 tokens: unet of this engine takes 1 to 16; use a shorter"),
    ({"height": 36}, "height is 36.*multiple of 8"),
    ({"height": 2**40}, "height is 1099511627776: it must be from 1 to 1048576"),
    ({"width": 10**30}, "width is 1000000000000000000000000000000: it must be from 1 to 1048576"),
    ({"callback": 3}, "callback is of type int: it must be a function"),
    ({"width": 8}, "width is 8: unet of this engine takes from 16 to 256"),
    ({"height": 512}, "height is 512: unet of this engine takes from 16 to 256"),
    ({"num": 5}, "5 pictures.*batch of 10 in unet.*1 to 8"),
    ({"num": 3, "negative": "b", "guidance": Guidance(2.0, PerpNeg())}, "batch of 9 in unet.*1 to 8"),
    ({"sampler": "pndm", "guidance": Guidance(0.6, CFGPlusPlus())}, "'cfg_pp' needs steps of first order"),
    (
        {"guidance": {"scale": 2, "schedule": {"factors": [1, 2]}}},
        "2 entries.*evaluations; give one for each",
    ),
]


@pytest.mark.parametrize(("changes", "says"), BAD)
def test_bad_values_are_refused_before_anything_runs(
    pipe: Pipeline, changes: dict[str, Any], says: str
) -> None:
    with pytest.raises(InputError, match=says) as caught:
        pipe("a", **changes)
    assert "\n" not in str(caught.value)
    assert not any(pipe.modules[name].calls for name in ("text_encoder", "unet", "vae_decoder"))


def test_unknown_arguments_are_not_swallowed(pipe: Pipeline) -> None:
    with pytest.raises(TypeError, match="'guidance_scale': known are clip_skip, weighting"):
        pipe("a", guidance_scale=7.5)


@pytest.mark.parametrize(
    "guidance", [3.3, Guidance(4.0, APG(threshold=math.inf, space="output"), Schedule("sine"), rescale=0.5)]
)
def test_metadata_repeats_the_picture(pipe: Pipeline, tmp_path: Path, guidance: float | Guidance) -> None:
    result = pipe(
        ["a red circle", "a blue star"],
        negative="green",
        steps=3,
        guidance=guidance,
        num=2,
        height=40,
        seed=8,
    )
    names = result.save(tmp_path / "out.png")
    assert [Path(name).name for name in names] == ["out-1.png", "out-2.png", "out-3.png", "out-4.png"]
    metadata = read_metadata(names[2])
    assert (metadata["prompt"], metadata["negative"], metadata["index"]) == ("a blue star", "green", 2)
    assert metadata["engine"] == pipe.engine.engine_hash
    again = pipe(**metadata["settings"]).images[metadata["index"]]
    np.testing.assert_array_equal(np.asarray(again), np.asarray(result.images[2]))
    assert json.loads(json.dumps(metadata)) == metadata


def test_save_of_one_picture_and_of_none(pipe: Pipeline, tmp_path: Path) -> None:
    result = pipe("a", steps=1, seed=0)
    assert result.save(tmp_path / "one.png") == [str(tmp_path / "one.png")]
    with pytest.raises(OutputError, match="create it first"):
        result.save(tmp_path / "missing" / "one.png")


def test_close_frees_the_modules_and_calls_open_them_again(pipe: Pipeline) -> None:
    unet = pipe.modules["unet"]
    pipe.close()
    assert unet.closed
    assert pipe("a", steps=1, seed=0).images
    assert pipe.modules["unet"] is not unet


def test_close_while_a_picture_is_made_is_refused(pipe: Pipeline) -> None:
    """Its sessions would be gone in the middle of their work."""

    def close(step: int, *_: Any) -> None:
        with pytest.raises(InputError, match="closed while a picture is made: close it when"):
            pipe.close()

    call: dict[str, Any] = {"steps": 3, "seed": 1}
    expected = pipe("a red circle", **call).latents
    assert np.array_equal(pipe("a red circle", callback=close, **call).latents, expected)
    pipe.close()


def test_threads_share_one_pipeline(pipe: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each call has its own picture, though the prompts of all push each other out of what is kept."""
    monkeypatch.setattr(encoder, "_CACHED_CHUNKS", 1)
    prompts = [f"{colour} circle" for colour in ("red", "blue", "green", "black")] * 4
    call: dict[str, Any] = {"steps": 2, "num": 1, "height": 16, "width": 16}
    wanted = [pipe(prompt, seed=seed, **call).latents for seed, prompt in enumerate(prompts)]
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(4) as threads:
            found = list(
                threads.map(lambda seed: pipe(prompts[seed], seed=seed, **call).latents, range(len(prompts)))
            )
    finally:
        sys.setswitchinterval(before)
    for ours, theirs in zip(found, wanted, strict=True):
        assert np.array_equal(ours, theirs)
    pipe.close()  # nobody holds it any more
