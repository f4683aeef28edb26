"""An engine for the cuda target from checkpoint to picture, on a pretended GPU, and on a real one."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fastdiff
from fastdiff.build.build import build_engine
from fastdiff.cli import main
from fastdiff.engine_dir import open_engine
from fastdiff.errors import EngineDamagedError
from fastdiff.manifest import ModuleEntry
from fastdiff.targets import cuda
from tests.targets.cuda.pretend import pretended_gpu

PROMPT = "a red circle left of a blue square"


def psnr(found: Any, wanted: Any) -> float:
    difference = np.asarray(found, np.float64) - np.asarray(wanted, np.float64)
    return float(10 * np.log10(255**2 / max(np.square(difference).mean(), 1e-9)))


@pytest.fixture(scope="module")
def gpu() -> Iterator[None]:
    with pretended_gpu():
        yield


@pytest.fixture(scope="module")
def engine(gpu: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``scenes`` as ``fastdiff build scenes --target cuda`` builds it, in fp16."""
    return build_engine("scenes", tmp_path_factory.mktemp("cuda") / "scenes.fd", target="cuda").path


def test_the_manifest_says_what_was_built(engine: Path) -> None:
    manifest = open_engine(engine).manifest
    for name, entry in manifest.modules.items():
        assert (entry.target, entry.precision.value) == ("cuda", "fp16"), name
        assert entry.tactics["implementations"], name
        assert 0 < entry.error["relative_l2"] < 5e-3, name
        adaptable = [] if name.startswith("vae") else [f"{name}.parameters.json"]
        assert sorted(entry.files) == [f"{name}.cuda.json", f"{name}.cuda.safetensors", *adaptable]


@pytest.mark.parametrize("sampler", ["ddim", "dpmpp_2m"])
def test_a_picture_is_the_native_engines(engine: Path, scenes_native_engine: Path, sampler: str) -> None:
    """In fp16 a picture may differ from float32's by the model's own sensitivity: seen from 40 dB on."""
    pictures = []
    for path in (engine, scenes_native_engine):
        result = fastdiff.load(path)(PROMPT, steps=12, sampler=sampler, seed=3)
        pictures.append(np.asarray(result.images[0]))
    assert psnr(*pictures) > 38


def test_seconds_of_steps_are_there_without_waiting(engine: Path) -> None:
    result = fastdiff.load(engine)(PROMPT, steps=5, sampler="ddim", seed=3)
    assert len(result.timings.steps) == 5
    assert all(seconds > 0 for seconds in result.timings.steps)


def test_callbacks_see_every_step_and_the_same_picture(engine: Path) -> None:
    pipe, seen = fastdiff.load(engine), list[int]()
    options = {"steps": 5, "sampler": "ddim", "seed": 3}
    plain = pipe(PROMPT, **options)
    watched = pipe(PROMPT, **options, callback=lambda step, total, latents: seen.append(step))
    assert seen == [1, 2, 3, 4, 5]
    assert np.array_equal(plain.latents, watched.latents)


def test_another_size_needs_no_build(engine: Path) -> None:
    result = fastdiff.load(engine)(PROMPT, steps=3, sampler="ddim", height=96, width=64, seed=1, num=2)
    assert [image.size for image in result.images] == [(64, 96), (64, 96)]


ODD = {"height": 72, "width": 88}
"""Not whole halvings: 18 x 22 latents are odd on the U-Net's second level."""


def test_sides_of_any_length(engine: Path, scenes_native_engine: Path) -> None:
    assert open_engine(engine).manifest.model.size_multiple == 4
    pictures = [
        fastdiff.load(path)(PROMPT, steps=6, sampler="dpmpp_2m", seed=3, **ODD).images[0]
        for path in (engine, scenes_native_engine)
    ]
    assert pictures[0].size == (88, 72)
    assert psnr(*pictures) > 38


def test_the_command_line_builds_and_says_what_auto_chose(
    gpu: None, tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["build", str(tiny_checkpoint), "-o", str(tmp_path / "tiny.fd"), "--precision", "bf16"]) == 0
    out = capsys.readouterr().out
    assert "target auto chose cuda, bf16" in out


def test_fp32_is_exact(gpu: None, tiny_checkpoint: Path, tmp_path: Path) -> None:
    summary = build_engine(tiny_checkpoint, tmp_path / "tiny.fd", target="cuda", precision="fp32")
    assert all(module.relative_l2 < 1e-5 for module in summary.modules)


def test_a_missing_file_is_named(gpu: None, engine: Path) -> None:
    entry: ModuleEntry = open_engine(engine).entry("unet")
    bare = {name: digest for name, digest in entry.files.items() if not name.endswith(".json")}
    with pytest.raises(EngineDamagedError, match=r"lists no \.cuda\.json; build the engine again"):
        cuda.open(engine, "unet", ModuleEntry(**{**vars(entry), "files": bare}), None)


@pytest.fixture(scope="module")
def gpu_engine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``scenes`` as ``fastdiff build scenes --target cuda`` builds it on a GPU."""
    path = tmp_path_factory.mktemp("gpu") / "scenes.fd"
    assert main(["build", "scenes", "-o", str(path), "--target", "cuda"]) == 0
    return path


@pytest.mark.gpu
@pytest.mark.parametrize("sampler", ["ddim", "pndm", "euler", "dpmpp_2m"])
def test_gpu_pictures_are_the_native_engines(
    gpu_engine: Path, scenes_native_engine: Path, sampler: str
) -> None:
    options = {"steps": 12, "sampler": sampler, "seed": 3}
    found, wanted = (
        fastdiff.load(path)(PROMPT, **options).images[0] for path in (gpu_engine, scenes_native_engine)
    )
    assert psnr(found, wanted) > 38


@pytest.mark.gpu
def test_gpu_sides_of_any_length(gpu_engine: Path, scenes_native_engine: Path) -> None:
    found, wanted = (
        fastdiff.load(path)(PROMPT, steps=6, sampler="dpmpp_2m", seed=3, **ODD).images[0]
        for path in (gpu_engine, scenes_native_engine)
    )
    assert psnr(found, wanted) > 38


@pytest.mark.gpu
def test_gpu_the_command_draws(gpu_engine: Path, tmp_path: Path) -> None:
    assert main(["generate", str(gpu_engine), PROMPT, "-o", str(tmp_path / "out.png"), "--seed", "1"]) == 0
    assert (tmp_path / "out.png").is_file()


@pytest.mark.gpu
def test_gpu_a_new_size_is_captured_not_built(gpu_engine: Path) -> None:
    import torch

    from fastdiff.targets.cuda.session import _graphs

    pipe = fastdiff.load(gpu_engine)
    pipe(PROMPT, steps=3, sampler="ddim", seed=1)
    cache = _graphs(torch.device("cuda", 0))
    before = cache.captures
    pipe(PROMPT, steps=9, sampler="dpmpp_2m", seed=1)  # another sampler and count: the same graphs
    assert cache.captures == before
    pipe(PROMPT, steps=3, sampler="ddim", seed=1, height=128, width=96)
    assert cache.captures > before
