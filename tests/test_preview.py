"""Previews and the tiny autoencoder: what is shown, by which decoder, and what is refused."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL.Image import Image

import fastdiff
from fastdiff.build.build import build_engine
from fastdiff.cli import main
from fastdiff.errors import CheckpointError, InputError
from fastdiff.image import read_metadata
from fastdiff.samplers import Prediction
from tests.checkpoints import read_json, write_json
from tests.compare import assert_close
from tests.oracle import psnr

PROMPT = "a blue circle"


def make_tiny(folder: Path, **options: Any) -> Path:
    """A random AutoencoderTiny for the tiny checkpoint's latents."""
    from diffusers import AutoencoderTiny

    with torch.random.fork_rng():
        torch.manual_seed(4)
        model = AutoencoderTiny(
            **{
                "encoder_block_out_channels": (8,) * 3,
                "decoder_block_out_channels": (8,) * 3,
                "num_encoder_blocks": (1,) * 3,
                "num_decoder_blocks": (1,) * 3,
                "scaling_factor": 0.5,
                "shift_factor": 0.25,
                **options,
            }
        )
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_vae(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny(tmp_path_factory.mktemp("tiny-vae") / "vae")


@pytest.fixture(scope="session")
def pipe(
    tiny_checkpoint: Path, tiny_vae: Path, tmp_path_factory: pytest.TempPathFactory
) -> fastdiff.Pipeline:
    path = tmp_path_factory.mktemp("preview") / "e.fd"
    build_engine(tiny_checkpoint, path, target="torch", preview_vae=tiny_vae, deep_cache=0)
    return fastdiff.load(path, threads=1)


def shown(pipe: fastdiff.Pipeline, every: int = 1, **call: Any) -> tuple[Any, dict[int, list[Image]]]:
    found: dict[int, list[Image]] = {}
    totals = set()

    def show(step: int, total: int, pictures: list[Image]) -> None:
        found[step] = pictures
        totals.add(total)

    result = pipe(PROMPT, preview=show, preview_every=every, **call)
    assert len(totals) == 1
    return result, found


def test_module_equals_diffusers(pipe: fastdiff.Pipeline, tiny_vae: Path) -> None:
    """With the scaling that diffusers' pipelines leave to the caller."""
    from diffusers import AutoencoderTiny

    model = AutoencoderTiny.from_pretrained(tiny_vae).eval()
    latents = np.random.default_rng(0).standard_normal((2, 4, 6, 10), np.float32)
    with torch.no_grad():
        wanted = model.decode(torch.from_numpy(latents) / 0.5 + 0.25).sample
    found = pipe.modules["preview_decoder"](latent_sample=latents)["sample"]
    assert_close(found, wanted.numpy(), rel_l2=1e-6)


@pytest.mark.parametrize("guidance", [1.0, 4.0])
@pytest.mark.parametrize("sampler", ["euler", "ddim"])
def test_the_last_preview_is_the_picture(pipe: fastdiff.Pipeline, sampler: str, guidance: float) -> None:
    """After the last evaluation of these samplers the latents are the estimate itself, guidance included."""
    call: dict[str, Any] = {"sampler": sampler, "steps": 4, "guidance": guidance, "seed": 1, "num": 2}
    # which DDIM clips unless it is told not to, and then is not what the model expects
    call["sampler_options"] = {"clip_sample": False, "set_alpha_to_one": True} if sampler == "ddim" else {}
    result, found = shown(pipe, vae="tiny", **call)
    assert sorted(found) == [1, 2, 3, 4]
    assert all(len(pictures) == 2 for pictures in found.values())
    for last, picture in zip(found[4], result.images, strict=True):
        assert psnr(last, picture) >= 45
    assert psnr(found[1][0], found[4][0]) < 45
    plain = pipe(PROMPT, vae="tiny", **call)
    assert_close(result.latents, plain.latents, rel_l2=1e-6)
    assert plain.metadata[0]["settings"]["vae"] == "tiny"


def test_every_third_and_the_last(pipe: fastdiff.Pipeline) -> None:
    result, found = shown(pipe, every=3, steps=8, seed=1, sampler="euler", deep_cache=2)
    assert sorted(found) == [3, 6, 8]
    assert found[3][0].size == result.images[0].size


def test_tiles_are_none_of_the_tiny_autoencoders(pipe: fastdiff.Pipeline) -> None:
    whole = np.asarray(pipe(PROMPT, steps=1, seed=2, vae="tiny").images[0])
    pipe.tile = 32
    try:
        with pytest.warns(fastdiff.FastdiffWarning, match="tile 32 has no effect on the tiny autoencoder"):
            found = pipe(PROMPT, steps=1, seed=2, vae="tiny").images[0]
    finally:
        pipe.tile = "auto"
    np.testing.assert_array_equal(np.asarray(found), whole)


def test_estimate_of_every_prediction(rng: np.random.Generator) -> None:
    """From x₀ and ε a model's answer, and x₀ from that."""
    from types import SimpleNamespace

    from fastdiff.preview import Previewer

    alphas = np.linspace(0.999, 0.01, 1000, dtype=np.float32)
    x0, noise = rng.standard_normal((2, 2, 4, 3, 5))
    for timestep in (0.0, 500.5, 999.0):
        share = float(np.interp(timestep, np.arange(1000), alphas.astype(np.float64)))
        a, s = share**0.5, (1 - share) ** 0.5
        sample = (a * x0 + s * noise).astype(np.float32)
        for kind, answer in (
            (Prediction.EPSILON, noise),
            (Prediction.V, a * noise - s * x0),
            (Prediction.SAMPLE, x0),
        ):
            schedule: Any = SimpleNamespace(prediction=kind, alphas_cumprod=lambda: alphas)
            seen: list[np.ndarray] = []

            def decode(latents: np.ndarray, seen: list[np.ndarray] = seen) -> np.ndarray:
                seen.append(latents)
                return latents[:, :3]

            output = answer.astype(np.float32)
            previewer = Previewer(
                lambda *_: None, 1, lambda *_, output=output: output, decode, schedule, 1.0, 2
            )
            evaluation: Any = SimpleNamespace(index=0, total=4)
            previewer(evaluation, {"sample": sample, "timestep": np.full(2, timestep, np.float32)})
            assert_close(seen[0], x0, rel_l2=1e-4)


def test_colours_of_latents(scenes_native_engine: Path) -> None:
    """A pixel for each latent, in about the picture's colours."""
    pipe = fastdiff.load(scenes_native_engine, threads=1)
    found: list[Image] = []
    result = pipe(
        ["a red circle", "a blue square above a green star", "a big yellow ring on a red square"],
        steps=12,
        sampler="euler",
        seed=3,
        preview=lambda step, total, pictures: found.extend(pictures),
        preview_every=12,
    )
    assert [picture.size for picture in found] == [(16, 16)] * 3
    pixels = np.stack([np.asarray(image, np.float64) for image in result.images])
    small = pixels.reshape(3, 16, 4, 16, 4, 3).mean((2, 4))
    colours = np.stack([np.asarray(image, np.float64) for image in found])
    error = np.sqrt(((colours - small) ** 2).mean())
    assert error < 0.5 * small.std(), "a map that knows nothing is off by the spread"


def test_command_writes_previews(pipe: fastdiff.Pipeline, tmp_path: Path) -> None:
    folder = tmp_path / "steps"
    arguments = ["generate", str(pipe.engine.path), PROMPT, "-o", str(tmp_path / "out.png"), "--steps", "4"]
    arguments += ["--sampler", "euler"]
    arguments += ["--previews", str(folder), "--preview-every", "2", "--vae", "tiny", "--deep-cache", "2"]
    assert main(arguments) == 2, "the folder is not there"
    folder.mkdir()
    assert main(arguments) == 0
    assert sorted(path.name for path in folder.iterdir()) == ["step-002.png", "step-004.png"]
    assert read_metadata(folder / "step-002.png") == {"step": 2, "total": 4}
    assert read_metadata(tmp_path / "out.png")["settings"]["deep_cache"] == 2


@pytest.mark.parametrize(
    ("call", "message"),
    [
        ({"preview": 3}, "preview is of type int: it must be a function"),
        ({"preview": print, "preview_every": 0}, "preview_every is 0: it must be a whole number, 1 or more"),
        ({"preview": print, "preview_every": True}, "preview_every is True"),
        ({"preview": print, "sampler": "dpm_adaptive"}, "preview with sampler 'dpm_adaptive'"),
        ({"vae": "small"}, "vae is 'small': it must be 'tiny'"),
        ({"vae": 1}, "vae is 1: it must be 'tiny'"),
    ],
)
def test_refuses(pipe: fastdiff.Pipeline, call: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        pipe(PROMPT, steps=2, **call)
    assert "\n" not in str(caught.value)


def test_refuses_the_tiny_vae_of_an_engine_without(tiny_native_engine: Path) -> None:
    without = fastdiff.load(tiny_native_engine, threads=1)
    with pytest.raises(InputError, match=r"built without a tiny autoencoder; build it with .* --preview-vae"):
        without(PROMPT, steps=2, vae="tiny")


def _change(folder: Path, **options: Any) -> None:
    write_json(folder / "config.json", {**read_json(folder / "config.json"), **options})


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (
            lambda folder: shutil.rmtree(folder),
            "config.json is missing: give the folder of an A",
        ),
        (lambda folder: (folder / "config.json").write_text("{"), "is not readable JSON: download it again"),
        (
            lambda folder: _change(folder, _class_name="AutoencoderKL"),
            "holds a AutoencoderKL: give",
        ),
        (lambda folder: _change(folder, latent_channels=16), "has 16 latent channels, .* has 4"),
        (
            lambda folder: _change(folder, decoder_block_out_channels=[8] * 4),
            "has 8 pixels for a latent, .* has 4",
        ),
        (
            lambda folder: (folder / "diffusion_pytorch_model.safetensors").unlink(),
            "safetensors is missing",
        ),
        (
            lambda folder: (folder / "diffusion_pytorch_model.safetensors").write_bytes(b"1234"),
            "safetensors",
        ),
    ],
)
def test_refuses_a_folder(
    tiny_checkpoint: Path, tiny_vae: Path, tmp_path: Path, damage: Any, message: str
) -> None:
    folder = tmp_path / "vae"
    shutil.copytree(tiny_vae, folder)
    damage(folder)
    with pytest.raises(CheckpointError, match=message) as caught:
        build_engine(tiny_checkpoint, tmp_path / "e.fd", target="torch", preview_vae=folder)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "e.fd").exists()


def test_refuses_an_own_one_that_is_not_there(tiny_checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="has no folder preview_vae"):
        build_engine(tiny_checkpoint, tmp_path / "e.fd", target="torch", preview_vae=True)


def test_the_shipped_tiny_vae_decodes_as_the_full_one(scenes_checkpoint: Path) -> None:
    """What docs/approximations.md says of it: 35 dB on held-out drawings, in less than 160 kB."""
    from diffusers import AutoencoderKL, AutoencoderTiny

    from fastdiff.zoo.training.drawing import draw
    from fastdiff.zoo.training.scene import random_scene
    from fastdiff.zoo.training.vae import to_tensor

    folder = scenes_checkpoint / "preview_vae"
    assert sum(file.stat().st_size for file in folder.iterdir()) < 160_000
    full = AutoencoderKL.from_pretrained(scenes_checkpoint / "vae", torch_dtype=torch.float32)
    tiny = AutoencoderTiny.from_pretrained(folder, torch_dtype=torch.float32)
    rng = np.random.default_rng(8)
    drawings = to_tensor(np.stack([draw(random_scene(rng, held_out=True), 64) for _ in range(8)]))
    with torch.no_grad():
        latents = full.encode(drawings).latent_dist.mean
        wanted, found = full.decode(latents).sample, tiny.decode(latents).sample
    error = (wanted.clamp(-1, 1) - found.clamp(-1, 1)).square().mean((1, 2, 3))
    assert float((10 * torch.log10(4 / error)).mean()) > 33
