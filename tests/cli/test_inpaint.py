"""fastdiff inpaint: every option reaches the call, what is said, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

import fastdiff
from tests.cli.pictures import equal, write_files
from tests.cli.run import listing, run_here
from tests.tasks.oracle import drawn, hole

Capture = pytest.CaptureFixture[str]
PROMPT = "a red circle left of a blue square"


@pytest.fixture(scope="module")
def pipe(tiny_native_engine: Path) -> fastdiff.Pipeline:
    return fastdiff.load(tiny_native_engine)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with pictures."""
    write_files(tmp_path)
    drawn(37, 53).save(tmp_path / "other.png")
    hole(37, 53).save(tmp_path / "other-mask.png")
    Image.new("L", (32, 32)).save(tmp_path / "black.png")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_picture_and_what_is_said_of_it(
    capfd: Capture, tiny_native_engine: Path, pipe: fastdiff.Pipeline, folder: Path
) -> None:
    words = ("--steps", 3, "--sampler", "heun", "--seed", 7)
    outcome = run_here(capfd, "inpaint", tiny_native_engine, "in.png", "mask.png", PROMPT, *words)
    assert (outcome.status, outcome.errors) == (0, "")
    name, line = outcome.output.splitlines()
    assert name == "out.png"
    assert line.startswith("seed 7, 32 x 32, 5 evaluations of heun, ")
    equal(folder / "out.png", pipe.inpaint("in.png", "mask.png", PROMPT, steps=3, sampler="heun", seed=7))


def test_every_option_arrives(
    capfd: Capture, tiny_native_engine: Path, pipe: fastdiff.Pipeline, folder: Path
) -> None:
    call = ("inpaint", tiny_native_engine, "other.png", "other-mask.png", PROMPT, "--seed", 3, "--steps", 5)
    words = (
        "--strength",
        0.7,
        "--fit",
        "resize",
        "--mask-blur",
        1.5,
        "--overlay",
        "--height",
        24,
        "--num",
        2,
    )
    more = ("--negative", "red", "--guidance", 2, "-o", "a.png", "--tile", "off")
    outcome = run_here(capfd, *call, *words, *more)
    assert (outcome.status, outcome.errors) == (0, "")
    assert outcome.output.splitlines()[:2] == ["a-1.png", "a-2.png"]
    wanted = pipe.inpaint(
        "other.png",
        "other-mask.png",
        PROMPT,
        strength=0.7,
        fit="resize",
        mask_blur=1.5,
        overlay=True,
        height=24,
        num=2,
        negative="red",
        guidance=2,
        seed=3,
        steps=5,
    )
    assert wanted.images[0].size == (52, 24)
    for index in range(2):
        equal(folder / f"a-{index + 1}.png", wanted, index)
    assert run_here(capfd, *call, "--crop-padding", 4).status == 0
    wanted = pipe.inpaint("other.png", "other-mask.png", PROMPT, crop_padding=4, seed=3, steps=5)
    assert wanted.images[0].size == (53, 37), "all of the picture, painted at the engine's size"
    equal(folder / "out.png", wanted)


BAD = [
    (("in.png",), ("MASK", "fastdiff inpaint --help")),
    (("in.png", PROMPT), (f"mask '{PROMPT}' cannot be read", "give the path of a picture")),
    (("missing.png", "mask.png", PROMPT), ("image 'missing.png' cannot be read",)),
    (("in.png", "missing.png", PROMPT), ("mask 'missing.png' cannot be read",)),
    (("in.png", "text.png", PROMPT), ("mask text.png is no picture of a known format",)),
    (("in.png", "folder.png", PROMPT), ("mask 'folder.png' cannot be read (Is a directory)",)),
    (("in.png", "other-mask.png", PROMPT), ("mask is 37 x 53", "the picture 32 x 32")),
    (("other.png", "other-mask.png", PROMPT), ("height is 37", "multiple of 4", "--fit crop")),
    (("in.png", "black.png", PROMPT), ("the mask has no white", "paint the part white")),
    (("in.png", "mask.png", PROMPT, "--strength", 0), ("strength is 0",)),
    (("in.png", "mask.png", PROMPT, "--mask-blur", -2), ("mask_blur is -2",)),
    (("in.png", "mask.png", PROMPT, "--mask-blur", "inf"), ("mask_blur is inf",)),
    (("in.png", "mask.png", PROMPT, "--crop-padding", -1), ("crop_padding is -1",)),
    (("in.png", "mask.png", PROMPT, "--crop-padding", 1.5), ("argument --crop-padding: '1.5'",)),
    (("in.png", "mask.png", PROMPT, "--crop-padding", 4, "--fit", "crop"), ("fit beside crop_padding",)),
    (("in.png", "mask.png", PROMPT, "--overlay", "yes"), ("unexpected argument 'yes'",)),
    (("in.png", "mask.png", PROMPT, "--upscale", 2), ("unknown option '--upscale' of fastdiff inpaint",)),
    (("in.png", "mask.png", PROMPT, "--devices", "cpu,cpu", "--num", 2), ("inpaint with 2 pictures",)),
    (("in.png", "mask.png", PROMPT, "--sampler", "rk45"), ("'rk45'",)),
]  # fmt: skip


@pytest.mark.parametrize(("words", "says"), BAD, ids=lambda value: " ".join(map(str, value))[:50])
def test_bad_input(
    capfd: Capture, tiny_native_engine: Path, folder: Path, words: tuple[object, ...], says: tuple[str, ...]
) -> None:
    before = listing(folder)
    run_here(capfd, "inpaint", tiny_native_engine, *words).assert_refused(*says)
    assert listing(folder) == before
