"""fastdiff generate on several devices: results, refusals, a killed process, Ctrl-C."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import fastdiff
from fastdiff.image import read_metadata
from tests.cli.run import Outcome, command, environment, interrupt_at, listing, run_here, run_process
from tests.oracle import psnr
from tests.processes import MARK, children_of, marked, wait_until

Capture = pytest.CaptureFixture[str]
PROMPT = "a red circle left of a blue square"


@pytest.fixture
def engine(tiny_native_engine: Path, tmp_path: Path) -> Path:
    """A copy of the engine in a folder where files that appear are noticed."""
    folder = tmp_path / "work"
    folder.mkdir()
    return Path(shutil.copytree(tiny_native_engine, folder / "tiny.fd"))


def test_two_processes_make_three_pictures_in_order(engine: Path) -> None:
    words = ("--devices", "cpu,cpu", "--num", 3, "--steps", 4, "--seed", 6, "--sampler", "ddim", "--eta", 1)
    outcome = run_process("generate", engine, PROMPT, *words, cwd=engine.parent)
    assert (outcome.status, outcome.errors) == (0, "")
    names = ["out-1.png", "out-2.png", "out-3.png"]
    assert outcome.output.splitlines()[:3] == names
    assert "seed 6, " in outcome.output
    wanted = fastdiff.load(engine)(PROMPT, num=3, steps=4, seed=6, sampler="ddim", eta=1)
    for index, name in enumerate(names):
        with Image.open(engine.parent / name) as picture:
            assert psnr(picture, wanted.images[index]) >= 45
        assert read_metadata(engine.parent / name) == wanted.metadata[index]


def test_variations_are_those_of_one_process(engine: Path) -> None:
    words = ("--devices", "cpu,cpu", "--num", 2, "--steps", 3, "--seed", 6)
    more = ("--variation-seed", 9, "--variation-strength", 0.4)
    outcome = run_process("generate", engine, PROMPT, *words, *more, cwd=engine.parent)
    assert (outcome.status, outcome.errors) == (0, "")
    wanted = fastdiff.load(engine)(PROMPT, num=2, steps=3, seed=6, variation_seed=9, variation_strength=0.4)
    for index in range(2):
        with Image.open(engine.parent / f"out-{index + 1}.png") as picture:
            assert psnr(picture, wanted.images[index]) >= 45
        assert read_metadata(engine.parent / f"out-{index + 1}.png") == wanted.metadata[index]


def test_two_passes_need_one_device(capfd: Capture, engine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(engine.parent)
    words = ("generate", engine, PROMPT, "--devices", "cpu,cpu", "--num", 2)
    run_here(capfd, *words, "--hires", 2).assert_refused("--hires with 2 pictures", "name one device")
    run_here(capfd, *words, "--tile", 64).assert_refused("--tile on several devices")
    assert not list(engine.parent.glob("*.png"))


def test_one_picture_needs_no_process(capfd: Capture, engine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two devices and one picture: it is made here, on the first."""
    from fastdiff.workers import process

    monkeypatch.setattr(process, "Crew", None)
    path = engine.parent / "out.png"
    words = ("--devices", "cpu,cpu", "--steps", 2, "--seed", 1, "-o", path)
    assert run_here(capfd, "generate", engine, PROMPT, *words).status == 0
    with Image.open(path) as picture:
        wanted = fastdiff.load(engine)(PROMPT, steps=2, seed=1).images[0]
        np.testing.assert_array_equal(np.asarray(picture), np.asarray(wanted))


def test_guidance_in_halves(capfd: Capture, engine: Path) -> None:
    path = engine.parent / "out.png"
    words = ("--devices", "cpu,cpu", "--split-guidance", "--steps", 4, "--seed", 1, "-o", path)
    outcome = run_here(capfd, "generate", engine, PROMPT, *words)
    assert (outcome.status, outcome.errors) == (0, "")
    with Image.open(path) as picture:
        assert psnr(picture, fastdiff.load(engine)(PROMPT, steps=4, seed=1).images[0]) >= 45


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("--devices", "0,1", "--num", 2), ("device 0 is a GPU", "'native'", "give cpu")),
        (("--devices", "0"), ("device 0 is a GPU", "'native'")),
        (("--devices", "cpu,gpu"), ("device 'gpu' is unknown", "0,1 or cpu,cpu")),
        (("--devices", "1,1", "--num", 2), ("device 1 is a GPU",)),
        (("--devices", ""), ("device '' is unknown",)),
        (("--devices", "cpu,cpu", "--num", 0), ("num is 0",)),
        (("--devices", "cpu,cpu", "--num", 2, "--threads", 0), ("threads is 0",)),
        (("--devices", "cpu,cpu", "--num", 2, "--batch", 0), ("batch is 0", "1 or more")),
        (("--batch", 2), ("--batch", "several --devices")),
        (("--split-guidance",), ("--split-guidance", "give two", "--devices 0,1")),
        (("--split-guidance", "--devices", "cpu,cpu,cpu"), ("3 devices", "give two")),
    ],
)
def test_bad_input(capfd: Capture, monkeypatch: pytest.MonkeyPatch, engine: Path, words, says) -> None:
    monkeypatch.chdir(engine.parent)
    before, processes = listing(engine.parent), children_of(os.getpid())
    run_here(capfd, "generate", engine, PROMPT, *words).assert_refused(*says)
    assert listing(engine.parent) == before
    assert children_of(os.getpid()) == processes


def test_a_process_that_is_killed(engine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(MARK, str(engine))
    before = listing(engine.parent)
    words = (
        "generate",
        engine,
        PROMPT,
        "--devices",
        "cpu,cpu",
        "--num",
        50,
        "--steps",
        900,
        "--sampler",
        "ddim",
    )
    parent = subprocess.Popen(
        command(*words),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=engine.parent,
        env=environment(),
    )
    wait_until(lambda: len(children_of(parent.pid)) == 2)
    os.kill(children_of(parent.pid)[0], signal.SIGKILL)
    output, errors = parent.communicate(timeout=60)
    Outcome(parent.returncode, output, errors).assert_refused("CPU worker", "killed", "fewer devices")
    assert marked(str(engine)) == []
    assert listing(engine.parent) == before


def test_interrupt_while_it_draws_the_bar(engine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The bar counts pictures; Ctrl-C ends all processes in one line, status 130 and no file."""
    monkeypatch.setenv(MARK, str(engine))
    before = listing(engine.parent)
    words = ("--devices", "cpu,cpu", "--num", 500, "--steps", 100, "--sampler", "ddim")
    outcome = interrupt_at(
        r"[1-9][0-9]*/500 .*picture", "generate", engine, PROMPT, *words, cwd=engine.parent
    )
    assert (outcome.status, outcome.output) == (130, "")
    assert outcome.errors.endswith("\nfastdiff: interrupted\n")
    assert "Traceback" not in outcome.errors
    assert marked(str(engine)) == []
    assert listing(engine.parent) == before


@pytest.mark.gpu
def test_gpu_by_its_number(capfd: Capture, tmp_path: Path) -> None:
    from fastdiff.build.build import build_engine

    engine = build_engine("scenes", tmp_path / "scenes.fd", target="cuda").path
    words = ("--steps", 10, "--seed", 1)
    for device, name in (((), "default.png"), (("--devices", 0), "first.png")):
        outcome = run_here(capfd, "generate", engine, PROMPT, *words, *device, "-o", tmp_path / name)
        assert (outcome.status, outcome.errors) == (0, "")
    with Image.open(tmp_path / "default.png") as default, Image.open(tmp_path / "first.png") as first:
        assert psnr(default, first) >= 45
    outcome = run_here(capfd, "generate", engine, PROMPT, "--devices", 99, "-o", tmp_path / "none.png")
    outcome.assert_refused("GPU 99", "numbered from 0")
    assert not (tmp_path / "none.png").exists()
