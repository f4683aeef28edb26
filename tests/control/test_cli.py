"""Building and generating with control from the command line."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import fastdiff
from fastdiff.image import read_metadata
from tests.cli.run import run_here
from tests.control.conftest import Sources
from tests.controls import picture

Capture = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def engine(sources: Sources, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An engine of the target that builds fastest, by the command."""
    from fastdiff.cli import main

    path = tmp_path_factory.mktemp("torch") / "control.fd"
    words = ["build", str(sources.checkpoint), "-o", str(path), "--target", "torch"]
    words += ["--controlnet", str(sources.controlnets[0]), "--t2i-adapter", str(sources.t2i_adapters[0])]
    words += ["--ip-adapter", str(sources.ip_adapter)]
    assert main(words) == 0
    return path


def test_generate_with_everything(
    engine: Path, native: fastdiff.Pipeline, capfd: Capture, tmp_path: Path
) -> None:
    """The target torch gives the picture of the native one, which has a second ControlNet and adapter."""
    edges, face, out = tmp_path / "edges.png", tmp_path / "face.png", tmp_path / "out.png"
    picture(5).save(edges)
    picture(6).save(face)
    outcome = run_here(
        capfd,
        *("generate", engine, "a red circle", "-o", out, "--steps", "4", "--seed", "3", "--sampler", "euler"),
        *("--control-image", edges, "--control-scale", "0.8", "--control-end", "0.8"),
        *("--adapter-image", edges, "--adapter-scale", "0.5", "--adapter-end", "0.6"),
        *("--ip-image", face, "--ip-scale", "0.7"),
    )
    assert outcome.status == 0, outcome
    metadata = read_metadata(out)
    assert set(metadata["control"]) == {"control_image", "adapter_image", "ip_image"}
    assert metadata["settings"]["control_scale"] == [0.8]
    again = fastdiff.load(engine)(**metadata["settings"])
    with Image.open(out) as image:
        assert np.array_equal(np.asarray(image), np.asarray(again.images[0]))
    wanted = native(
        "a red circle",
        steps=4,
        seed=3,
        sampler="euler",
        control_image=[edges, None],
        control_scale=0.8,
        control_end=0.8,
        adapter_image=[edges, None],
        adapter_scale=0.5,
        adapter_end=0.6,
        ip_image=face,
        ip_scale=0.7,
    )
    assert np.linalg.norm(again.latents - wanted.latents) < 1e-4 * np.linalg.norm(wanted.latents)


def test_inspect_shows_the_modules(engine: Path, capfd: Capture) -> None:
    text = run_here(capfd, "inspect", engine).output
    for name in ("controlnet_embedding", "controlnet", "t2i_adapter", "image_encoder", "ip_adapter"):
        assert any(line.split()[:1] == [name] for line in text.splitlines()), name
    assert any(line.startswith("control ") and "t2i_adapter" in line for line in text.splitlines())


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--control-scale", "1"), "control_scale without control_image"),
        (("--control-scale", "x"), "'x' is not a number"),
        (("--control-image", "none.png"), "'none.png' cannot be read"),
        (("--control-image", "a.png", "--control-image", "b.png"), "2 pictures for 1 prompts"),
        (("--guess-mode",), "guess_mode without control_image"),
        (("--ip-image", "none.png", "--ip-scale", "nan"), "ip_scale is nan"),
    ],
)
def test_refusals(engine: Path, capfd: Capture, tmp_path: Path, words: tuple[str, ...], message: str) -> None:
    out = tmp_path / "out.png"
    outcome = run_here(capfd, "generate", engine, "a", "-o", out, "--steps", "2", *words)
    assert outcome.status == 2
    assert message in outcome.errors
    assert not out.exists()


def test_build_refuses_what_does_not_fit(sources: Sources, capfd: Capture, tmp_path: Path) -> None:
    out = tmp_path / "x.fd"
    outcome = run_here(
        capfd, "build", sources.checkpoint, "-o", out, "--target", "torch", "--controlnet", tmp_path / "none"
    )
    assert outcome.status == 2
    assert "none does not exist: give the folder of a ControlNet" in outcome.errors
    assert not out.exists()
