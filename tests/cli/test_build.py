"""fastdiff build: its summary, its refusals, and that nothing half-written stays."""

from __future__ import annotations

import json
import resource
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from fastdiff.config import MODULES
from tests.cli.run import interrupt_at, listing, run_here, run_process

Capture = pytest.CaptureFixture[str]


@pytest.fixture
def checkpoint(tiny_checkpoint: Path, tmp_path: Path) -> Path:
    """A copy of the tiny checkpoint, to damage, in a folder where files that appear are noticed."""
    return Path(shutil.copytree(tiny_checkpoint, tmp_path / "work" / "checkpoint"))


def test_summary_and_force(capfd: Capture, checkpoint: Path) -> None:
    """With the target that needs no graph, which is quick; tests/build covers the others."""
    engine = checkpoint.parent / "tiny.fd"
    outcome = run_here(capfd, "build", checkpoint, "-o", engine, "--target", "torch", "--height", 40)
    assert (outcome.status, outcome.errors) == (0, ""), outcome
    lines = outcome.output.splitlines()
    assert "tiny.fd: target torch, fp32" in lines[0]
    for name in MODULES:
        line = next(line for line in lines if line.startswith(name))
        assert "torch" in line
    assert lines[-1].startswith("total")
    document = json.loads(run_here(capfd, "inspect", engine, "--json").output)
    assert (document["model"]["default_height"], document["model"]["default_width"]) == (40, 32)

    before = listing(checkpoint.parent)
    words = ("build", checkpoint, "-o", engine, "--target", "torch")
    run_here(capfd, *words).assert_refused("tiny.fd exists", "--force")
    assert listing(checkpoint.parent) == before
    assert run_here(capfd, *words, "--force").status == 0
    document = json.loads(run_here(capfd, "inspect", engine, "--json").output)
    assert document["model"]["default_height"] == 32
    picture = checkpoint.parent / "out.png"
    assert run_here(capfd, "generate", engine, "a red circle", "-o", picture, "--steps", 1).status == 0


def remove(name: str) -> Callable[[Path], None]:
    return lambda checkpoint: (checkpoint / name).unlink()


def empty(checkpoint: Path) -> None:
    shutil.rmtree(checkpoint)
    checkpoint.mkdir()


def drop_key(name: str, key: str) -> Callable[[Path], None]:
    def damage(checkpoint: Path) -> None:
        document = json.loads((checkpoint / name).read_text())
        del document[key]
        (checkpoint / name).write_text(json.dumps(document))

    return damage


def cut_weights(checkpoint: Path) -> None:
    path = checkpoint / "unet" / "diffusion_pytorch_model.safetensors"
    path.write_bytes(path.read_bytes()[:-1000])


def garble_weights(checkpoint: Path) -> None:
    path = checkpoint / "vae" / "diffusion_pytorch_model.safetensors"
    path.write_bytes(b"\xff" * 64 + path.read_bytes()[64:])


def widen_config(checkpoint: Path) -> None:
    path = checkpoint / "text_encoder" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "intermediate_size": 128}))


def only_pickles(checkpoint: Path) -> None:
    path = checkpoint / "unet" / "diffusion_pytorch_model.safetensors"
    path.rename(path.with_suffix(".bin"))


BAD_CHECKPOINTS = [
    (shutil.rmtree, ("does not exist",)),
    (empty, ("is empty", "diffusers folder")),
    (remove("model_index.json"), ("model_index.json is missing",)),
    (remove("unet/config.json"), ("unet/config.json is missing",)),
    (remove("tokenizer/vocab.json"), ("vocab.json",)),
    (drop_key("unet/config.json", "block_out_channels"), ("lacks block_out_channels",)),
    (drop_key("scheduler/scheduler_config.json", "beta_end"), ("lacks beta_end",)),
    (cut_weights, ("unet",)),
    (garble_weights, ("vae",)),
    (widen_config, ("text_encoder",)),
    (only_pickles, ("pickled weights", "convert")),
]


@pytest.mark.parametrize(
    ("damage", "says"), BAD_CHECKPOINTS, ids=lambda value: value[0] if isinstance(value, tuple) else ""
)
def test_bad_checkpoints(
    capfd: Capture, checkpoint: Path, damage: Callable[[Path], None], says: tuple[str, ...]
) -> None:
    folder = checkpoint.parent
    damage(checkpoint)
    before = listing(folder)
    run_here(capfd, "build", checkpoint, "-o", folder / "x.fd", "--target", "torch").assert_refused(*says)
    assert listing(folder) == before


BAD_OPTIONS = [
    (("--target", "tensorflow"), ("tensorflow", "onnxruntime")),
    (("--target", "cuda"), ("cuda", "cannot run here", "use --target native")),
    (("--precision", "fp64"), ("fp64", "fp32")),
    (("--precision", "bf16"), ("bf16", "fp32")),
    (("--precision", "fp16", "--target", "torch"), ("torch", "fp16", "--target native")),
    (("--memory", 0.5), ("memory is 0.5", "1 or more")),
    (("--memory", "much"), ("'much' is not a number",)),
    (("--height", 38), ("height is 38", "multiple of 4")),
    (("--width", -8), ("width is -8", "multiple of 4")),
    (("--batch", 0), ("batch is 0", "1 or more")),
    (("-o", "missing/x.fd"), ("missing", "create it first")),
    (("-o", "checkpoint/model_index.json"), ("is a file",)),
]


@pytest.mark.parametrize(("words", "says"), BAD_OPTIONS, ids=lambda value: " ".join(map(str, value))[:40])
def test_bad_options(
    capfd: Capture,
    monkeypatch: pytest.MonkeyPatch,
    checkpoint: Path,
    words: tuple[object, ...],
    says: tuple[str, ...],
) -> None:
    monkeypatch.chdir(checkpoint.parent)
    before = listing(checkpoint.parent)
    output = () if "-o" in words else ("-o", "x.fd")
    run_here(capfd, "build", "checkpoint", *output, *words).assert_refused(*says)
    assert listing(checkpoint.parent) == before


@pytest.mark.smoke
def test_a_name_that_is_nearly_shipped(
    capfd: Capture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    run_here(capfd, "build", "scene", "-o", "x.fd").assert_refused("'scene'", "did you mean 'scenes'?")


def test_full_disk(checkpoint: Path) -> None:
    """A limit on the size of files stands for a disk that is full."""

    def limit() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))

    before = listing(checkpoint.parent)
    words = ("build", "checkpoint", "-o", "x.fd", "--target", "torch")
    run_process(*words, cwd=checkpoint.parent, prepare=limit).assert_refused("x.fd", "no space left")
    assert listing(checkpoint.parent) == before


def test_interrupt(checkpoint: Path) -> None:
    """On a terminal a bar names the stage; Ctrl-C removes what was written."""
    before = listing(checkpoint.parent)
    words = ("build", "checkpoint", "-o", "x.fd")
    outcome = interrupt_at("text_encoder: capture", *words, cwd=checkpoint.parent)
    assert (outcome.status, outcome.output) == (130, "")
    assert outcome.errors.rstrip().endswith("fastdiff: interrupted")
    assert "Traceback" not in outcome.errors
    assert listing(checkpoint.parent) == before
