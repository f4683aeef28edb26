"""fastdiff img2img: every option reaches the call, what is said, and what is refused."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import fastdiff
from fastdiff.image import read_metadata
from fastdiff.samplers import Guidance
from tests.cli.pictures import equal, write_files
from tests.cli.run import environment, listing, run_here
from tests.engines import without_module
from tests.tasks.oracle import drawn

Capture = pytest.CaptureFixture[str]
PROMPT = "a red circle left of a blue square"


@pytest.fixture(scope="module")
def pipe(tiny_native_engine: Path) -> fastdiff.Pipeline:
    return fastdiff.load(tiny_native_engine)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with pictures."""
    write_files(tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_picture_and_what_is_said_of_it(
    capfd: Capture, tiny_native_engine: Path, pipe: fastdiff.Pipeline, folder: Path
) -> None:
    outcome = run_here(capfd, "img2img", tiny_native_engine, "in.png", PROMPT)
    assert (outcome.status, outcome.errors) == (0, "")
    name, line = outcome.output.splitlines()
    assert name == "out.png"
    said = re.fullmatch(
        r"seed (\d+), 32 x 32, 17 evaluations of pndm, [\d.]+ ms per step, [\d.]+ s", line
    )  # 16 of the 20 steps, the first twice
    assert said, line
    equal(folder / "out.png", pipe.img2img("in.png", PROMPT, seed=int(said[1])))
    metadata = read_metadata("out.png")
    assert metadata["settings"]["strength"] == 0.8
    again = pipe.img2img("in.png", **metadata["settings"])
    equal(folder / "out.png", again)


def test_every_option_arrives(
    capfd: Capture,
    tiny_native_engine: Path,
    pipe: fastdiff.Pipeline,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Those of the command, and of the call that it shares with generate."""
    words = ("--strength", 0.45, "--fit", "fill", "--height", 40, "--width", 24, "-o", "other.png")
    more = (
        "--negative",
        "blue",
        "--steps",
        7,
        "--sampler",
        "ddim",
        "--sampler-option",
        "timestep_spacing=trailing",
    )
    rest = (
        "--seed",
        2**40,
        "--num",
        2,
        "--eta",
        0.5,
        "--guidance",
        2.5,
        "--guidance-rescale",
        0.3,
        "--tile",
        32,
    )
    outcome = run_here(
        capfd, "img2img", tiny_native_engine, "photo.jpg", PROMPT, *words, *more, *rest, "--clip-skip", 1
    )
    assert (outcome.status, outcome.errors) == (0, "")
    assert outcome.output.splitlines()[:2] == ["other-1.png", "other-2.png"]
    monkeypatch.setattr(pipe, "tile", 32)
    wanted = pipe.img2img(
        "photo.jpg",
        PROMPT,
        strength=0.45,
        fit="fill",
        height=40,
        width=24,
        negative="blue",
        steps=7,
        sampler="ddim",
        sampler_options={"timestep_spacing": "trailing"},
        seed=2**40,
        num=2,
        eta=0.5,
        guidance=Guidance(2.5, rescale=0.3),
        clip_skip=1,
    )
    assert wanted.metadata[0]["tile"] == 32
    for index in range(2):
        equal(folder / f"other-{index + 1}.png", wanted, index)


@pytest.mark.parametrize("fit", ["resize", "crop", "fill"])
def test_a_photo_of_any_size(
    capfd: Capture, tiny_native_engine: Path, pipe: fastdiff.Pipeline, folder: Path, fit: str
) -> None:
    """Its sides are rounded down to what the model takes."""
    words = ("--fit", fit, "--steps", 3, "--seed", 1)
    assert run_here(capfd, "img2img", tiny_native_engine, "photo.jpg", PROMPT, *words).status == 0
    wanted = pipe.img2img("photo.jpg", PROMPT, fit=fit, steps=3, seed=1)
    assert wanted.images[0].size == (52, 36)
    equal(folder / "out.png", wanted)


@pytest.mark.parametrize(
    "words",
    [
        ("img2img", "in.png"),
        ("img2img", "in.png", "--upscale", 2),
        ("inpaint", "in.png", "mask.png"),
    ],
    ids=("img2img", "upscale", "inpaint"),
)
def test_a_missing_prompt(
    capfd: Capture, tiny_native_engine: Path, folder: Path, words: tuple[object, ...]
) -> None:
    command, *others = words
    outcome = run_here(capfd, command, tiny_native_engine, *others)
    outcome.assert_refused("prompt is missing: this engine makes pictures of one; give it, or '' to leave it")
    assert not (folder / "out.png").exists()


def test_upscale(capfd: Capture, tiny_native_engine: Path, pipe: fastdiff.Pipeline, folder: Path) -> None:
    call = ("img2img", tiny_native_engine, "photo.jpg", PROMPT, "--steps", 4, "--seed", 5)
    assert run_here(capfd, *call, "--upscale", 1.5).status == 0
    wanted = pipe.upscale("photo.jpg", PROMPT, scale=1.5, steps=4, seed=5)
    assert wanted.images[0].size == (76, 52)
    equal(folder / "out.png", wanted)
    words = ("--upscale", 2, "--upscale-method", "latent_bicubic", "--strength", 0.6, "--negative", "red")
    assert run_here(capfd, *call, *words).status == 0
    wanted = pipe.upscale(
        "photo.jpg", PROMPT, scale=2, method="latent_bicubic", strength=0.6, steps=4, seed=5, negative="red"
    )
    equal(folder / "out.png", wanted)


def test_one_of_several_devices_is_enough_for_one_picture(
    capfd: Capture, tiny_native_engine: Path, pipe: fastdiff.Pipeline, folder: Path
) -> None:
    words = ("img2img", tiny_native_engine, "in.png", PROMPT, "--steps", 3, "--seed", 5)
    assert run_here(capfd, *words, "--devices", "cpu,cpu").status == 0
    equal(folder / "out.png", pipe.img2img("in.png", PROMPT, steps=3, seed=5))
    outcome = run_here(capfd, *words, "--devices", "cpu,cpu", "--split-guidance")
    assert (outcome.status, outcome.errors) == (0, "")


def test_painting_loads_no_torch(tiny_native_engine: Path, folder: Path) -> None:
    code = (
        "import sys; from fastdiff.cli import main\n"
        "status = main(['img2img', sys.argv[1], 'in.png', 'a circle', '--steps', '2', '--upscale', '2'])\n"
        "print(status, *sorted({name.partition('.')[0] for name in sys.modules}))"
    )
    run = subprocess.run(
        [sys.executable, "-c", code, tiny_native_engine],
        capture_output=True,
        text=True,
        check=True,
        env=environment(),
    )
    status, *loaded = run.stdout.splitlines()[-1].split()
    assert (status, run.stderr) == (
        "2",
        "fastdiff: error: strength 0.3 of 2 steps leaves none to run: use more "
        "strength, or 4 steps and more\n",
    )
    assert not {"torch", "diffusers", "transformers"} & set(loaded)


BAD = [
    (("missing.png", PROMPT), ("image 'missing.png' cannot be read (No such file or directory)",)),
    ((PROMPT, "in.png"), (f"image '{PROMPT}' cannot be read", "give the path of a picture")),
    (("folder.png", PROMPT), ("image 'folder.png' cannot be read (Is a directory)",)),
    (("text.png", PROMPT), ("image text.png is no picture of a known format", "PNG or JPEG")),
    (("half.png", PROMPT), ("image half.png is damaged",)),
    (("/dev/zero", PROMPT), ("image '/dev/zero' is a device",)),
    (("in.png", "--prompt", PROMPT), ("unknown option '--prompt'", "img2img ENGINE IMAGE PROMPT")),
    (("large.jpg", PROMPT), ("height is 771", "multiple of 4", "--fit crop", "768")),
    (("in.png", PROMPT, "--height", 64), ("image is 32 x 32", "wanted 64 x 32", "fit to resize, crop")),
    (("in.png", PROMPT, "--fit", "zoom"), ("argument --fit", "'exact', 'resize', 'crop', 'fill'")),
    (("in.png", PROMPT, "--strength", 0), ("strength is 0: it must be above 0 and up to 1",)),
    (("in.png", PROMPT, "--strength", 1.01), ("strength is 1.01",)),
    (("in.png", PROMPT, "--strength", "nan"), ("strength is nan",)),
    (("in.png", PROMPT, "--strength", "half"), ("argument --strength: 'half' is not a number",)),
    (("in.png", PROMPT, "--strength", 0.1, "--steps", 5), ("strength 0.1 of 5 steps", "10 steps and more")),
    (("in.png", PROMPT, "--upscale-method", "lanczos"), ("--upscale-method without --upscale",)),
    (("in.png", PROMPT, "--noise-level", 20), ("--noise-level without --upscale",)),
    (("in.png", PROMPT, "--upscale", 2, "--noise-level", 20), ("noise_level is for models that enlarge",)),
    (("in.png", PROMPT, "--upscale", 2, "--upscale-method", "best"), ("--upscale-method is 'best'",)),
    (("in.png", PROMPT, "--upscale", 1), ("error: --upscale is 1: it must be more than 1",)),
    (("in.png", PROMPT, "--upscale", 2, "--width", 64), ("--width with --upscale",)),
    (("in.png", PROMPT, "--upscale", 2, "--fit", "crop"), ("--fit with --upscale",)),
    (("in.png", PROMPT, "--tile", "much"), ("tile is 'much'", "auto, on, off, or a side in pixels from 32")),
    (("in.png", PROMPT, "--tile", 40), ("tile is 40", "multiple of 16")),
    (("in.png", PROMPT, "--devices", "cpu,cpu", "--num", 2), ("img2img with 2 pictures", "name one device")),
    (("in.png", PROMPT, "--sampler", "rk45"), ("'rk45'", "use one such as 'euler'")),
    (("in.png", PROMPT, "--variation-seed", 3), ("unknown option '--variation-seed' of fastdiff img2img",)),
    (("in.png", PROMPT, "-o", "out.jpg"), ("out.jpg", "use out.png")),
    (("in.png", PROMPT, "--class-label", 3), ("knows no classes",)),
    ((), ("IMAGE", "fastdiff img2img --help")),
]  # fmt: skip


@pytest.mark.parametrize(("words", "says"), BAD, ids=lambda value: " ".join(map(str, value))[:50])
def test_bad_input(
    capfd: Capture, tiny_native_engine: Path, folder: Path, words: tuple[object, ...], says: tuple[str, ...]
) -> None:
    if "large.jpg" in words:
        drawn(771, 1023).save("large.jpg")
    before = listing(folder)
    run_here(capfd, "img2img", tiny_native_engine, *words).assert_refused(*says)
    assert listing(folder) == before


def test_the_way_out_of_the_message_works(capfd: Capture, tiny_native_engine: Path, folder: Path) -> None:
    run_here(capfd, "img2img", tiny_native_engine, "photo.jpg", PROMPT).assert_refused("(--fit crop)", "36")
    words = ("--fit", "crop", "--steps", 2)
    assert run_here(capfd, "img2img", tiny_native_engine, "photo.jpg", PROMPT, *words).status == 0
    with Image.open("out.png") as picture:
        assert picture.size == (52, 36)


def test_a_picture_turned_by_its_camera(
    capfd: Capture, tiny_native_engine: Path, pipe: fastdiff.Pipeline, folder: Path
) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # shown turned by 90 degrees
    drawn(32, 48).save("turned.jpg", exif=exif, quality=95)
    words = ("img2img", tiny_native_engine, "turned.jpg", PROMPT, "--steps", 3, "--seed", 2)
    assert run_here(capfd, *words).status == 0
    with Image.open("out.png") as picture, Image.open("turned.jpg") as image:
        assert picture.size == (32, 48)
        upright = Image.fromarray(np.rot90(np.asarray(image), -1))  # without the camera's word on it
        wanted = pipe.img2img(upright, PROMPT, steps=3, seed=2).images[0]
        np.testing.assert_array_equal(np.asarray(picture), np.asarray(wanted))


def test_an_engine_without_an_encoder(capfd: Capture, tiny_native_engine: Path, folder: Path) -> None:
    """It draws, and says that it has none before it does anything else."""
    engine = without_module("vae_encoder", tiny_native_engine, folder / "plain.fd")
    before = listing(folder)
    for words in (("img2img", "in.png"), ("inpaint", "in.png", "mask.png")):
        outcome = run_here(capfd, words[0], engine, *words[1:], PROMPT, "--steps", 2)
        outcome.assert_refused("this engine has no vae_encoder")
    words = ("generate", engine, PROMPT, "--steps", 3, "--hires", 2)
    run_here(capfd, *words, "--hires-method", "lanczos").assert_refused("this engine has no vae_encoder")
    assert listing(folder) == before
    assert run_here(capfd, *words).status == 0, "latents need none"
    assert "vae_encoder" not in run_here(capfd, "inspect", engine).output
