"""fastdiff generate, inspect and verify on an engine: results, refusals, interruption, repeatability."""

from __future__ import annotations

import json
import re
import resource
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import fastdiff
from fastdiff.image import read_metadata
from fastdiff.samplers import Guidance, read_guidance
from fastdiff.samplers.guidance import CFGPlusPlus, CFGZeroStar, Interval, PerpNeg, PerStep
from tests.cli.pictures import equal
from tests.cli.run import environment, interrupt_at, listing, run_here, run_process

Capture = pytest.CaptureFixture[str]
PROMPT = "a red circle left of a blue square"


@pytest.fixture
def engine(tiny_engine: Path, tmp_path: Path) -> Path:
    """A copy of the engine in a folder where files that appear are noticed."""
    folder = tmp_path / "work"
    folder.mkdir()
    return Path(shutil.copytree(tiny_engine, folder / "tiny.fd"))


def test_a_picture_with_its_metadata_and_again_from_it(engine: Path) -> None:
    outcome = run_process(
        "generate", engine, PROMPT, "--steps", 4, "--num", 2, "--negative", "blue", cwd=engine.parent
    )
    assert outcome.status == 0, outcome
    assert outcome.errors == "", "quiet where there is no terminal"
    assert outcome.output.splitlines()[:2] == ["out-1.png", "out-2.png"]
    path = engine.parent / "out-2.png"
    metadata = read_metadata(path)
    assert metadata["engine"] == json.loads(run_process("inspect", engine, "--json").output)["engine_hash"]
    assert metadata["fastdiff"] == fastdiff.__version__
    assert f"seed {metadata['settings']['seed']}" in outcome.output
    again = fastdiff.load(engine)(**metadata["settings"]).images[metadata["index"]]
    with Image.open(path) as picture:
        np.testing.assert_array_equal(np.asarray(picture), np.asarray(again))


def test_refuses_what_the_engine_does_not_take(
    engine: Path, capfd: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(engine.parent)
    run_here(capfd, "generate", engine).assert_refused("prompt is missing: this engine makes pictures of one")
    run_here(capfd, "generate", engine, PROMPT, "--class-label", 3).assert_refused("knows no classes")
    assert not list(engine.parent.glob("*.png"))


def test_generating_loads_neither_torch_nor_diffusers_nor_transformers(engine: Path) -> None:
    code = (
        "import sys; from fastdiff.cli import main\n"
        "status = main(['generate', sys.argv[1], 'a red circle', '-o', sys.argv[2], '--steps', '2'])\n"
        "print(status, *sorted({name.partition('.')[0] for name in sys.modules}))"
    )
    path = engine.parent / "out.png"
    run = subprocess.run(
        [sys.executable, "-c", code, engine, path],
        capture_output=True,
        text=True,
        check=True,
        env=environment(),
    )
    status, *loaded = run.stdout.splitlines()[-1].split()
    assert (status, run.stderr) == ("0", "")
    assert path.stat().st_size > 0
    vendors = {
        "accelerate",
        "diffusers",
        "huggingface_hub",
        "onnx",
        "onnxruntime",
        "torch",
        "transformers",
        "triton",
    }
    assert vendors & set(loaded) == {"onnxruntime"}


def test_every_option_arrives(capfd: Capture, engine: Path) -> None:
    path = engine.parent / "other.png"
    words = (
        "--negative",
        "blue",
        "--steps",
        3,
        "--sampler",
        "ddim",
        "--guidance",
        2.5,
        "--seed",
        2**40,
        "--num",
        1,
    )
    sizes = ("--height", 40, "--width", 24, "--eta", 0.5, "--threads", 1)
    outcome = run_here(capfd, "generate", engine, PROMPT, "-o", path, *words, *sizes)
    assert (outcome.status, outcome.errors) == (0, "")
    assert read_metadata(path)["settings"] == {
        "prompt": PROMPT,
        "negative": "blue",
        "steps": 3,
        "sampler": "ddim",
        "guidance": 2.5,
        "seed": 2**40,
        "num": 1,
        "height": 40,
        "width": 24,
        "eta": 0.5,
    }
    with Image.open(path) as picture:
        assert picture.size == (24, 40)
    assert run_here(capfd, "generate", engine, "b", "-o", path, "--steps", 1).status == 0, (
        "replaces a picture"
    )


def test_options_of_guidance_arrive(capfd: Capture, engine: Path) -> None:
    path = engine.parent / "guided.png"
    words = ("--guidance", 7, "--guidance-method", "apg", "--apg-eta", 0.25, "--apg-momentum", -0.75)
    more = ("--apg-threshold", "inf", "--guidance-rescale", 0.5, "--guidance-interval", "10%,90%")
    schedule = ("--guidance-schedule", "power:2", "--guidance-floor", 1.5)
    call = ("generate", engine, PROMPT, "-o", path, "--steps", 3, "--sampler", "euler")
    outcome = run_here(capfd, *call, *words, *more, *schedule)
    assert (outcome.status, outcome.errors) == (0, "")
    assert read_metadata(path)["settings"]["guidance"] == {
        "scale": 7,
        "method": {
            "name": "apg",
            "eta": 0.25,
            "momentum": -0.75,
            "threshold": None,
            "space": "denoised",
            "base": "cond",
        },
        "schedule": {"shape": "power", "power": 2, "floor": 1.5},
        "interval": {"low": 0.1, "high": 0.9, "unit": "share"},
        "rescale": 0.5,
        "original": False,
    }
    for words, guidance in (
        (("--guidance-method", "cfg"), 5.0),
        (("--guidance-method", "cfg_pp"), Guidance(0.6, CFGPlusPlus())),
        (("--guidance-method", "cfg_zero_star", "--zero-steps", 2), Guidance(5.0, CFGZeroStar(2))),
        (
            ("--guidance-method", "perp_neg", "--negative", "blue", "--perp-neg-weight", 2),
            Guidance(5.0, PerpNeg(2.0)),
        ),
        (("--guidance-interval", "0.28,5.42"), Guidance(5.0, interval=Interval(0.28, 5.42))),
        (("--guidance-schedule", "7,6,5"), Guidance(1.0, schedule=PerStep((7.0, 6.0, 5.0)))),
    ):
        outcome = run_here(capfd, *call, *words)
        assert (outcome.status, outcome.errors) == (0, "")
        found = read_metadata(path)["settings"]["guidance"]
        assert (read_guidance(found) if isinstance(found, dict) else found) == guidance


def test_options_of_variations_and_two_passes_arrive(
    capfd: Capture, engine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(engine.parent)
    pipe = fastdiff.load(engine)
    call = ("generate", engine, PROMPT, "--steps", 4, "--seed", 1, "--negative", "blue", "--sampler", "ddim")
    same: dict[str, Any] = {"steps": 4, "seed": 1, "negative": "blue", "sampler": "ddim"}
    words = ("--variation-seed", 2**40, "--variation-strength", 0.25, "--num", 2)
    outcome = run_here(capfd, *call, *words)
    assert (outcome.status, outcome.errors) == (0, "")
    assert ", 4 steps of ddim, " in outcome.output
    result = pipe(PROMPT, num=2, variation_seed=2**40, variation_strength=0.25, **same)
    for index in range(2):
        equal(engine.parent / f"out-{index + 1}.png", result, index)
    words = (
        "--hires",
        1.5,
        "--hires-method",
        "lanczos",
        "--hires-strength",
        0.5,
        "--height",
        24,
        "--tile",
        32,
    )
    outcome = run_here(capfd, *call, *words)
    assert (outcome.status, outcome.errors) == (0, "")
    assert "seed 1, 48 x 36, 6 evaluations of ddim, " in outcome.output
    pipe.tile = 32
    equal(
        engine.parent / "out.png",
        pipe.high_resolution(PROMPT, scale=1.5, method="lanczos", strength=0.5, height=24, **same),
    )
    pipe.tile = "auto"
    assert run_here(capfd, *call, "--hires", 2).status == 0
    equal(engine.parent / "out.png", pipe.high_resolution(PROMPT, **same))


def test_a_cut_prompt_is_a_line_that_names_what_was_dropped(capfd: Capture, engine: Path) -> None:
    outcome = run_here(
        capfd,
        "generate",
        engine,
        "a " * 75 + "Zebra",
        "-o",
        engine.parent / "a.png",
        "--steps",
        1,
        "--guidance",
        1,
        "--cut-prompts",
    )
    assert outcome.status == 0
    assert outcome.errors == "fastdiff: warning: the prompt is longer than 77 tokens; dropped: 'Zebra'\n"


BAD = [
    (("--guidance-method", "cfgpp"), ("cfgpp", "cfg_pp")),
    (("--apg-eta", 0.5), ("--apg-eta with guidance method cfg", "--guidance-method apg")),
    (("--guidance-method", "apg", "--zero-steps", 1), ("--zero-steps", "--guidance-method cfg_zero_star")),
    (("--guidance-method", "cfg_zero_star", "--perp-neg-weight", 1), ("--guidance-method perp_neg",)),
    (("--guidance-method", "perp_neg"), ("without a negative prompt", "give one")),
    (("--guidance-method", "cfg_pp", "--guidance", 5), ("guidance is 5 with method cfg_pp", "such as 0.6")),
    (("--guidance-method", "cfg_pp", "--guidance-rescale", 0.5), ("cannot be rescaled", "use 0")),
    (("--guidance-method", "cfg_pp", "--sampler", "pndm"), ("first order", "use sampler 'ddim'")),
    (("--guidance", 1, "--guidance-rescale", 0.5), ("guidance is 1", "use more than 1")),
    (("--guidance-rescale", 2), ("rescale is 2", "0 to 1")),
    (("--guidance-interval", "5"), ("'5'", "0.28,5.42")),
    (("--guidance-interval", "5,1"), ("5.0 to 1.0", "low ≤ high")),
    (("--guidance-interval", "10%,150%"), ("0.1 to 1.5", "high ≤ 1")),
    (("--guidance-interval", "10%,2"), ("'10%,2'", "20%,80%")),
    (("--guidance-schedule", "square"), ("'square'", "use one of constant, linear")),
    (("--guidance-schedule", "linear:2"), ("'linear' has no power",)),
    (("--guidance-schedule", "power:x"), ("'power:x'", "power:2")),
    (("--guidance-schedule", "7,6"), ("2 entries", "give one for each")),
    (("--guidance-schedule", "7,x"), ("'7,x'",)),
    (("--guidance-schedule", "7,6", "--guidance", 3), ("leave one out",)),
    (("--guidance-floor", 2), ("without --guidance-schedule",)),
    (("--steps", 0), ("steps is 0", "1 or more")),
    (("--steps", -5), ("steps is -5", "1 or more")),
    (("--steps", 5000), ("5000", "1000")),
    (("--sampler", "dpmp_2m"), ("unknown sampler 'dpmp_2m'", "dpmpp_2m")),
    (("--guidance", "nan"), ("guidance is nan", "finite")),
    (("--guidance", "inf"), ("guidance is inf", "finite")),
    (("--guidance", "-2"), ("guidance is -2", "0 or more")),
    (("--height", 30), ("height is 30", "multiple of 4", "28 or 32")),
    (("--width", 0), ("width is 0", "from 1 to")),
    (("--seed", -1), ("seed is -1", "from 0")),
    (("--seed", 2**64), (str(2**64), "from 0")),
    (("--num", 0), ("num is 0", "1 or more")),
    (("--threads", 0), ("threads is 0", "1 or more")),
    (("--eta", 2), ("eta is 2",)),
    (("--sampler", "euler", "--eta", 0.5), ("eta", "ddim")),
    (("--variation-seed", 3), ("variation_seed without variation_strength",)),
    (("--variation-strength", 0.3), ("variation_strength without variation_seed",)),
    (("--variation-seed", 3, "--variation-strength", 1.5), ("variation_strength is 1.5",)),
    (("--variation-seed", "x"), ("argument --variation-seed: 'x' is not a whole number",)),
    (("--hires", 1), ("error: --hires is 1: it must be more than 1",)),
    (("--hires", "nan"), ("error: --hires is nan",)),
    (("--hires", 2, "--hires-method", "best"), ("error: --hires-method is 'best'", "latent_bilinear")),
    (("--hires", 2, "--hires-strength", 0), ("error: --hires-strength is 0",)),
    (("--hires", 2, "--steps", 1), ("error: --hires-strength 0.7 of 1 steps leaves none to run",)),
    (("--crop", "1,2"), ("error: --crop is for models that take sizes",)),
    (("--negative-crop", "1,2"), ("error: --negative-crop is for models that take sizes",)),
    (("--prompt", "x"), ("unknown option '--prompt' of fastdiff generate", "generate ENGINE PROMPT")),
    (("--hires-method", "lanczos"), ("--hires-method without --hires",)),
    (("--hires-strength", 0.5), ("--hires-strength without --hires",)),
    (("--hires", 2, "--variation-seed", 3, "--variation-strength", 0.1), ("--hires with --variation-seed",)),
    (("--tile", "nonsense"), ("tile is 'nonsense'", "auto, on, off")),
    (("--fit", "crop"), ("unknown option '--fit' of fastdiff generate",)),
    (("--strength", 0.5), ("unknown option '--strength' of fastdiff generate", "--hires-strength")),
    (("-o", "out.jpg"), ("out.jpg", "use out.png")),
    (("-o", "missing/out.png"), ("missing", "create it first")),
    (("-o", "."), (".",)),
    (("-o", "tiny.fd/engine.json/out.png"), ("engine.json is a file, wanted a folder",)),
    (("-o", ""), ("PNG",)),
]


@pytest.mark.parametrize(("words", "says"), BAD, ids=lambda value: " ".join(map(str, value))[:40])
def test_bad_input(
    capfd: Capture,
    monkeypatch: pytest.MonkeyPatch,
    engine: Path,
    words: tuple[object, ...],
    says: tuple[str, ...],
) -> None:
    monkeypatch.chdir(engine.parent)
    before = listing(engine.parent)
    run_here(capfd, "generate", engine, PROMPT, *words).assert_refused(*says)
    assert listing(engine.parent) == before


def test_bad_input_in_a_process_of_its_own(engine: Path) -> None:
    before = listing(engine.parent)
    run_process("generate", engine, PROMPT, "--guidance", "nan", cwd=engine.parent).assert_refused(
        "guidance is nan"
    )
    run_process(
        "generate", engine, b"caf\xe9".decode("utf-8", "surrogateescape"), cwd=engine.parent
    ).assert_refused("prompt", "UTF-8")
    assert listing(engine.parent) == before


def flip_a_byte(engine: Path) -> None:
    path = max((path for path in engine.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def from_a_newer_format(engine: Path) -> None:
    path = engine / "engine.json"
    manifest = json.loads(path.read_text())
    path.write_text(json.dumps({**manifest, "format_version": manifest["format_version"] + 1}))


def lose_a_file(engine: Path) -> None:
    (engine / "tokenizer" / "vocab.json").unlink()


def cut_the_manifest(engine: Path) -> None:
    (engine / "engine.json").write_text((engine / "engine.json").read_text()[:-100])


def empty(engine: Path) -> None:
    shutil.rmtree(engine)
    engine.mkdir()


def remove(engine: Path) -> None:
    shutil.rmtree(engine)


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (flip_a_byte, ("changed after the build", "build it again")),
        (from_a_newer_format, ("format version 2", "newer", "update fastdiff")),
        (lose_a_file, ("vocab.json", "missing")),
        (cut_the_manifest, ("engine.json",)),
        (empty, ("engine.json", "missing")),
        (remove, ("does not exist", "fastdiff build")),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
@pytest.mark.parametrize("command_name", ["generate", "inspect", "verify"])
def test_engines_that_cannot_be_used(
    capfd: Capture, engine: Path, damage: object, says: tuple[str, ...], command_name: str
) -> None:
    damage(engine)
    before = listing(engine.parent)
    words = (PROMPT, "-o", engine.parent / "out.png") if command_name == "generate" else ()
    run_here(capfd, command_name, engine, *words).assert_refused("tiny.fd", *says)
    assert listing(engine.parent) == before


def test_full_disk(engine: Path) -> None:
    """A limit on the size of files stands for a disk that is full."""

    def limit() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))

    before = listing(engine.parent)
    words = ("generate", engine, PROMPT, "--steps", 1)
    run_process(*words, cwd=engine.parent, prepare=limit).assert_refused("out.png", "no space left")
    assert listing(engine.parent) == before


def test_interrupt_while_it_draws_the_bar(engine: Path) -> None:
    """On a terminal there is a bar with steps per second; Ctrl-C ends in one line, status 130 and no file."""
    before = listing(engine.parent)
    words = ("generate", engine, PROMPT, "--steps", 900, "--sampler", "ddim")
    outcome = interrupt_at(r"[1-9][0-9]*/900", *words, cwd=engine.parent)
    assert (outcome.status, outcome.output) == (130, "")
    assert re.search("step/s|s/step", outcome.errors)
    assert outcome.errors.endswith("\nfastdiff: interrupted\n")
    assert "Traceback" not in outcome.errors
    assert listing(engine.parent) == before


def test_inspect_shows_what_the_manifest_holds(capfd: Capture, tiny_engine: Path) -> None:
    text = run_here(capfd, "inspect", tiny_engine)
    document = json.loads(run_here(capfd, "inspect", tiny_engine, "--json").output)
    assert text.status == 0
    for name, entry in document["modules"].items():
        line = next(line for line in text.output.splitlines() if line.startswith(name))
        assert entry["target"] in line
        assert f"{entry['error']['relative_l2']:.1e}" in line
    assert document["engine_hash"][:16] in text.output
    assert "PNDMScheduler" in text.output
    assert "sides in multiples of 4 from 16 on" in text.output


def test_verify_compares_with_the_checkpoint(
    capfd: Capture, tiny_engine: Path, tiny_checkpoint: Path
) -> None:
    outcome = run_here(capfd, "verify", tiny_engine, tiny_checkpoint)
    assert (outcome.status, outcome.errors) == (0, "")
    assert all(
        name in outcome.output for name in ("match their hashes", "text_encoder", "unet", "vae_decoder")
    )
    files_only = run_here(capfd, "verify", tiny_engine)
    assert "not compared with PyTorch: give the checkpoint" in files_only.output


def test_verify_names_what_it_does_not_compare(
    capfd: Capture, tiny_engine: Path, tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Such as a tiny autoencoder that came from a folder of its own."""
    from fastdiff.build import verify

    monkeypatch.setattr(verify, "verify_engine", lambda *arguments, **options: {})
    lines = run_here(capfd, "verify", tiny_engine, tiny_checkpoint).output.splitlines()[2:]
    assert len(lines) == 4
    assert all(line.endswith("not of this checkpoint: compared at the build alone") for line in lines)


def test_verify_refuses_another_checkpoint(
    capfd: Capture, tiny_engine: Path, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    other = Path(shutil.copytree(tiny_checkpoint, tmp_path / "other"))
    config = json.loads((other / "scheduler" / "scheduler_config.json").read_text())
    (other / "scheduler" / "scheduler_config.json").write_text(json.dumps({**config, "beta_end": 0.02}))
    outcome = run_here(capfd, "verify", tiny_engine, other)
    assert outcome.status == 2
    assert "another checkpoint" in outcome.errors


def test_doctor_as_text_and_json(capfd: Capture) -> None:
    text = run_here(capfd, "doctor")
    report = json.loads(run_here(capfd, "doctor", "--json").output)
    assert text.status == 0
    for name, target in report["targets"].items():
        lines = text.output.partition("\ntargets\n")[2].splitlines()
        line = next(line for line in lines if line.strip().startswith(f"{name} "))
        assert target["reason"] in line
    assert report["cpu"]["name"] in text.output
    assert report["cpu"]["kernels"]["chosen"] in text.output
