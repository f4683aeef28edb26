"""Whole pictures against diffusers.StableDiffusionPipeline: same checkpoint, prompt and seed, same picture.

On the tiny random checkpoint and on the shipped ``scenes``. The random model's pictures are checked to be
pictures (neither flat nor saturated), so that 45 dB says something; latents are compared too. Everything runs
on the native target, whose loop is in C++; what differs with another target is the modules and the loop in
Python, for which ONNX Runtime meets every sampler with few steps, in the hardest corner and with noise.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fastdiff
from fastdiff.build.build import build_engine
from fastdiff.config import MODULES, Precision
from fastdiff.engine_dir import open_engine
from fastdiff.samplers import NoiseSchedule
from fastdiff.zoo import resolve
from tests.builds import build_native
from tests.oracle import SCHEDULERS, Oracle, pairwise, psnr

PROMPTS = ("a red circle left of a blue square", "A big green STAR above a ring, on stripes!", "")
SIZES = ("square", "wide", "tall")
MIN_PSNR = 45.0
LATENT_ERROR = {"dpmpp_2m": 1e-4, "euler": 1e-4, "pndm": 5e-4, "ddim": 3e-3}
"""Relative L2 of the final latents. DDIM's is larger because its scheduler clips x₀ unless the config forbids
it: where it does, the next sample is the model's output itself, whose rounding guidance multiplies and no
later step contracts. One bit of the noise changed makes PyTorch differ from itself by 3e-4. PNDM extrapolates
over four outputs: with guidance 7.5 PyTorch's latents of `scenes` move by 0.5e-4 to 2.3e-4 where its U-Net is
off by 1e-6, as it is with any other order of sums."""
ENGINES = {
    f"{checkpoint}-{target}": f"{checkpoint}_{fixture}"
    for target, fixture in (("native", "native_engine"), ("onnxruntime", "engine"))
    for checkpoint in ("tiny", "scenes")
}
"""The fixture of each engine."""
NATIVE = ("tiny-native", "scenes-native")
TINY = ("tiny-native", "tiny-onnxruntime")


@dataclass(frozen=True)
class Model:
    """One checkpoint in both implementations; ``side`` and ``longer`` are picture sizes in pixels."""

    pipe: fastdiff.Pipeline
    oracle: Oracle
    side: int
    longer: int

    def size(self, kind: str) -> dict[str, int]:
        return {
            "height": self.longer if kind == "tall" else self.side,
            "width": self.longer if kind == "wide" else self.side,
        }


@cache
def oracle_of(checkpoint: Path) -> Oracle:
    """One for all engines of a checkpoint; it remembers the pictures that it made."""
    return Oracle(checkpoint)


@pytest.fixture(scope="module", params=ENGINES)
def model(request: pytest.FixtureRequest) -> Model:
    checkpoint: Path = request.getfixturevalue(f"{request.param.partition('-')[0]}_checkpoint")
    engine: Path = request.getfixturevalue(ENGINES[request.param])
    pipe = fastdiff.load(engine, threads=1)
    spec = pipe.engine.manifest.model
    assert {entry.target for entry in pipe.engine.manifest.modules.values()} == {
        request.param.partition("-")[2]
    }
    return Model(pipe, oracle_of(checkpoint), spec.default_height, spec.default_height * 3 // 2)


def compare(model: Model, prompt: str | list[str], **call: Any) -> None:
    """Both pictures and both latents; a guard that the pictures show something."""
    ours = model.pipe(prompt, **call)
    pictures, latents = model.oracle(prompt, **call)
    assert ours.latents.shape == latents.shape
    assert np.linalg.norm(ours.latents - latents) <= LATENT_ERROR[call["sampler"]] * np.linalg.norm(latents)
    assert len(ours.images) == len(pictures)
    for our, their in zip(ours.images, pictures, strict=True):
        pixels = np.asarray(their)
        assert pixels.std() > 4, "a flat picture compares nothing"
        assert ((pixels > 0) & (pixels < 255)).mean() > 0.5, "a saturated picture compares little"
        assert our.size == their.size
        assert psnr(our, their) >= MIN_PSNR


CASES = pairwise({"prompt": PROMPTS, "guidance": (1.0, 7.5), "num": (1, 2), "size": SIZES})


@pytest.mark.parametrize(
    "case",
    CASES,
    ids=lambda case: f"{PROMPTS.index(case['prompt'])}-{case['guidance']:g}-{case['num']}-{case['size']}",
)
@pytest.mark.parametrize("sampler", sorted(SCHEDULERS))
@pytest.mark.parametrize("model", NATIVE, indirect=True)
def test_picture_equals_diffusers(model: Model, sampler: str, case: dict[str, Any]) -> None:
    call = {"guidance": case["guidance"], "num": case["num"], **model.size(case["size"])}
    compare(model, case["prompt"], sampler=sampler, steps=20, seed=len(sampler), **call)


@pytest.mark.parametrize("sampler", sorted(SCHEDULERS))
def test_the_hardest_corner(model: Model, sampler: str) -> None:
    """Guidance, a negative prompt, several prompts and several pictures of each, all at once."""
    compare(
        model,
        list(PROMPTS[:2]),
        negative="blue",
        sampler=sampler,
        steps=20,
        guidance=7.5,
        num=2,
        seed=2**32 + 5,
        **model.size("wide"),
    )


OTHERS = (
    *("euler_ancestral", "heun", "dpm2", "dpm2_ancestral", "lms", "unipc", "deis", "ddpm", "sa_solver"),
    *("lcm", "dpmpp_3m", "dpmpp_2s", "dpmpp_3s", "dpmpp_2m_sde"),
)


@pytest.mark.parametrize("sampler", OTHERS)
@pytest.mark.parametrize("model", NATIVE, indirect=True)
def test_other_samplers_draw_the_same_picture(model: Model, sampler: str) -> None:
    """Noise in the same order from the same generator, the first sample and everything in between."""
    call = {"sampler": sampler, "steps": 9, "guidance": 3.0, "num": 2, "seed": 11}
    pictures, latents = model.oracle(PROMPTS[0], **call)
    ours = model.pipe(PROMPTS[0], **call)
    assert np.linalg.norm(ours.latents - latents) <= 3e-3 * np.linalg.norm(latents)
    assert min(psnr(our, their) for our, their in zip(ours.images, pictures, strict=True)) >= MIN_PSNR


@pytest.mark.parametrize("model", TINY, indirect=True)
@pytest.mark.parametrize("eta", [0.5, 1.0])
def test_ddim_noise_comes_from_the_same_generator(model: Model, eta: float) -> None:
    compare(model, PROMPTS[0], sampler="ddim", steps=10, guidance=3.0, num=2, seed=7, eta=eta)


@pytest.mark.parametrize("model", TINY, indirect=True)
@pytest.mark.parametrize("steps", [1, 2, 3, 7])
@pytest.mark.parametrize("sampler", sorted(SCHEDULERS))
def test_few_steps(model: Model, sampler: str, steps: int) -> None:
    """Multistep samplers start up differently. diffusers' PNDM fails for some counts, which are left out."""
    try:
        pictures, latents = model.oracle(PROMPTS[0], sampler=sampler, steps=steps, guidance=2.0, seed=1)
    except (IndexError, ValueError):
        pytest.skip(f"diffusers cannot do {steps} steps of {sampler}")
    ours = model.pipe(PROMPTS[0], sampler=sampler, steps=steps, guidance=2.0, seed=1)
    assert np.linalg.norm(ours.latents - latents) <= LATENT_ERROR[sampler] * np.linalg.norm(latents)
    assert psnr(ours.images[0], pictures[0]) >= MIN_PSNR


@pytest.mark.parametrize("model", ["tiny-native"], indirect=True)
@pytest.mark.filterwarnings("ignore::fastdiff.FastdiffWarning")
def test_a_prompt_that_is_cut(model: Model) -> None:
    call = {"sampler": "ddim", "steps": 5, "guidance": 4.0, "seed": 3}
    ours = model.pipe("a red circle, " * 40, **call, long_prompts="cut")
    pictures, _ = model.oracle("a red circle, " * 40, **call)
    assert psnr(ours.images[0], pictures[0]) >= MIN_PSNR


@pytest.mark.parametrize("sampler", ["euler_ancestral", "heun", "dpmpp_2s"])
@pytest.mark.parametrize("model", ["tiny-native"], indirect=True)
def test_a_checkpoint_with_keys_that_the_sampler_alone_knows(
    model: Model, sampler: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """diffusers' classes leave what they do not know: Karras levels, clipping, zero terminal SNR."""
    keys = {"use_karras_sigmas": True, "thresholding": sampler == "heun", "use_lu_lambdas": False}
    keys |= {"rescale_betas_zero_snr": sampler == "heun", "sigma_min": 0.1, "sigma_max": 5.0}
    if sampler == "euler_ancestral":
        del keys["rescale_betas_zero_snr"]
    config = {**model.oracle.config, **keys}
    monkeypatch.setattr(model.oracle, "config", config)
    monkeypatch.setattr(model.oracle, "_known", {})
    monkeypatch.setattr(model.pipe, "schedule", NoiseSchedule.from_config(config))
    call: dict[str, Any] = {"sampler": sampler, "steps": 6, "guidance": 3.0, "seed": 4}
    pictures, _ = model.oracle(PROMPTS[0], **call)
    assert psnr(model.pipe(PROMPTS[0], **call).images[0], pictures[0]) >= MIN_PSNR


def test_one_picture_of_the_checkpoints_own_sampler(model: Model) -> None:
    check_own_sampler(model.pipe, model.oracle)


@pytest.mark.smoke
def test_one_picture_with_the_reference_target(tiny_checkpoint: Path, tmp_path: Path) -> None:
    """From checkpoint to picture by way of the target that needs no capture, which takes seconds."""
    engine = build_engine(tiny_checkpoint, tmp_path / "tiny.fd", target="torch").path
    check_own_sampler(fastdiff.load(engine, threads=1), oracle_of(tiny_checkpoint))


@pytest.mark.parametrize("sampler", sorted(SCHEDULERS))
def test_weights_stored_as_halves(halves: fastdiff.Pipeline, sampler: str) -> None:
    """The same 45 dB: ``scenes`` is shipped in halves, so nothing is rounded."""
    prompt = PROMPTS[0]
    ours = halves(prompt, sampler=sampler, steps=20, guidance=7.5, seed=0)
    pictures, _ = oracle_of(resolve("scenes"))(prompt, sampler=sampler, steps=20, guidance=7.5, seed=0)
    assert np.asarray(pictures[0]).std() > 4
    assert psnr(ours.images[0], pictures[0]) >= MIN_PSNR


@pytest.fixture(scope="module")
def halves(tmp_path_factory: pytest.TempPathFactory) -> fastdiff.Pipeline:
    """An engine of ``scenes`` in fp16, whose build has compared every module with PyTorch."""
    path = build_native("scenes", tmp_path_factory.mktemp("halves") / "scenes.fd", precision="fp16")
    engine = open_engine(path)
    for name in MODULES:
        entry = engine.entry(name)
        assert (entry.target, entry.precision) == ("native", Precision.FP16)
        assert 0 < entry.error["relative_l2"] < 1e-5, "halves that are stored as halves lose nothing"
    return fastdiff.load(path, threads=1)


def check_own_sampler(pipe: fastdiff.Pipeline, oracle: Oracle) -> None:
    own = {scheduler: sampler for sampler, scheduler in SCHEDULERS.items()}[oracle.config["_class_name"]]
    assert pipe.default_sampler() == own
    ours = pipe(PROMPTS[0], steps=5, seed=0)
    pictures, _ = oracle(PROMPTS[0], sampler=own, steps=5, guidance=5.0, seed=0)
    assert psnr(ours.images[0], pictures[0]) >= MIN_PSNR
