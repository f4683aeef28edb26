"""Options about prompts on the command line, what ``fastdiff inspect`` says, and engines of before."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

import fastdiff
from fastdiff.build.build import build_engine
from fastdiff.build.families import FAMILIES
from fastdiff.errors import InputError
from fastdiff.image import read_metadata
from tests.cli.run import Outcome, run_here

Capture = pytest.CaptureFixture[str]
LONG = "a red circle left of a blue square, " * 20


@pytest.fixture(scope="module")
def engine(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_engine(tiny_checkpoint, tmp_path_factory.mktemp("cli") / "sd.fd", target="torch").path


@pytest.fixture(scope="module")
def old(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An engine as it was before its model named text encoders: ids in, one hidden state out."""
    family = FAMILIES["StableDiffusionPipeline"]

    def describe(source: Any) -> Any:
        return dataclasses.replace(family.describe(source), text_encoders=())

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(FAMILIES, "StableDiffusionPipeline", dataclasses.replace(family, describe=describe))
        return build_engine(tiny_checkpoint, tmp_path_factory.mktemp("old") / "old.fd", target="torch").path


@pytest.fixture
def cat(tmp_path: Path) -> Path:
    vectors = np.random.default_rng(0).normal(0, 0.3, (2, 32)).astype(np.float32)
    save_file({"emb_params": vectors}, tmp_path / "cat.safetensors")
    return tmp_path / "cat.safetensors"


def generate(capfd: Capture, engine: Path, prompt: str, *words: object) -> Outcome:
    steps = ("--steps", 2, "--seed", 3, "--sampler", "ddim", "--threads", 1)
    return run_here(capfd, "generate", engine, prompt, *steps, *words)


def test_generate_with_everything(capfd: Capture, engine: Path, cat: Path, tmp_path: Path) -> None:
    out, prompt = tmp_path / "out.png", f"a (red:1.3) [circle] <toy> BREAK {LONG}"
    options = ("--embedding", f"{cat}=<toy>", "--clip-skip", 1, "--negative", "(blue)", "-o", out)
    outcome = generate(capfd, engine, prompt, *options)
    assert (outcome.status, outcome.errors) == (0, "")
    metadata = read_metadata(out)
    assert metadata["settings"]["clip_skip"] == 1
    assert [each["token"] for each in metadata["embeddings"]] == ["<toy>"]
    pipe = fastdiff.load(engine, threads=1)
    pipe.load_textual_inversion(cat, "<toy>")
    again = pipe(**metadata["settings"])
    assert again.metadata[0] == metadata
    plain = generate(capfd, engine, prompt, "--no-weighting", "--cut-prompts", "-o", out)
    assert plain.status == 0
    assert plain.errors.count("\n") == 1
    assert "the prompt is longer than 77 tokens; dropped: " in plain.errors
    assert read_metadata(out)["settings"].items() >= {"weighting": False, "long_prompts": "cut"}.items()


REFUSED = [
    ("a", ["--clip-skip", 5], "clip_skip is 5: it must be from 0 to 2 with this model"),
    ("a", ["--clip-skip", "x"], "'x' is not a whole number"),
    ("(a:1,3)", [], "whose weight is no number: write one such as (word:1.3)"),
    ("(:1.3)", [], "prompt gives nothing a weight of 1.3"),
    ("(a:1000)", [], "prompt gives 'a' a weight of 1000: it must be from -100 to 100"),
    (
        "a BREAK b",
        ["--cut-prompts"],
        "prompt holds BREAK, which begins another chunk, but long prompts are cut",
    ),
    ("a", ["--prompt-2", "b"], "prompt_2 is for models with two text encoders: leave it out with this one"),
    ("a", ["--original-size", "64"], "'64' is not HEIGHTxWIDTH, such as 1024x768"),
    ("a", ["--original-size", "64x64"], "--original-size is for models that take sizes, such as SDXL"),
    ("a", ["--crop", "1x2"], "'1x2' is not TOP,LEFT, such as 0,128"),
    ("a", ["--aesthetic-score", "nan"], "aesthetic_score is for models that take sizes, such as SDXL"),
    ("a", ["--embedding", "no.safetensors"], "embedding no.safetensors does not exist: give a .safetensors"),
    ("a", ["--embedding", "no.pt"], "embedding no.pt does not exist"),
    ("a", ["--embedding", "CAT"], "no prompt holds its word 'cat'; write it into the prompt, or leave the"),
    ("a", ["--embedding", "CAT="], "embedding token '' of "),
    ("a cat", ["--embedding", "CAT", "--embedding", "CAT"], "embedding token 'cat' is loaded already, from"),
]


@pytest.mark.parametrize(("prompt", "options", "says"), REFUSED, ids=[says[:30] for _, _, says in REFUSED])
def test_refused(
    capfd: Capture, engine: Path, cat: Path, tmp_path: Path, prompt: str, options: list[Any], says: str
) -> None:
    out = tmp_path / "out.png"
    words = [str(word).replace("CAT", str(cat)) for word in options]
    generate(capfd, engine, prompt, *words, "-o", out).assert_refused(says)
    assert not out.exists()


def test_inspect(capfd: Capture, engine: Path, old: Path) -> None:
    for path, says in (
        (engine, "chunks of 77 tokens, clip-skip 0 to 2, textual inversion"),
        (old, "chunks of 77 tokens, no clip-skip, no textual inversion"),
    ):
        lines = run_here(capfd, "inspect", path).output.splitlines()
        assert f"{'prompts':<20} {says}" in lines


def test_old_engines(engine: Path, old: Path, cat: Path) -> None:
    """They work as before, and what needs more of the text encoder says so."""
    ours, before = fastdiff.load(engine, threads=1), fastdiff.load(old, threads=1)
    assert [spec.name for spec in before.modules["text_encoder"].inputs] == ["input_ids"]
    call: dict[str, Any] = {"steps": 2, "seed": 3, "sampler": "ddim"}
    for prompt in ("a red circle", "a (red:1.3) circle", LONG):
        np.testing.assert_array_equal(before(prompt, **call).latents, ours(prompt, **call).latents)
    with pytest.raises(
        InputError, match=r"clip_skip is 1: this engine's text encoder gives .* build it again"
    ):
        before("a", clip_skip=1, **call)
    with pytest.raises(
        InputError, match=r"text_encoder of this engine takes no embeddings .* build it again"
    ):
        before.load_textual_inversion(cat)
