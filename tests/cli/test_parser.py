"""The command line itself: help, version, mistyped words, exit status, warnings, --debug."""

from __future__ import annotations

import errno
import os
import subprocess
import warnings
from pathlib import Path

import pytest

import fastdiff
import fastdiff.cli
from fastdiff.cli import generate
from fastdiff.cli.parser import COMMANDS, parse
from fastdiff.errors import FastdiffWarning, InputError
from tests.cli.run import Outcome, command, environment, run_here, run_process

pytestmark = pytest.mark.smoke
Capture = pytest.CaptureFixture[str]


def test_version_and_help(capfd: Capture) -> None:
    assert run_here(capfd, "--version") == Outcome(0, f"fastdiff {fastdiff.__version__}\n", "")
    for words in ([], *([name] for name in COMMANDS)):
        outcome = run_here(capfd, *words, "--help")
        assert outcome.status == 0
        assert "--debug" in outcome.output
    assert all(name in run_here(capfd, "--help").output for name in COMMANDS)


def test_build_help_names_every_target_and_shipped_model(capfd: Capture) -> None:
    from fastdiff.targets import TARGETS
    from fastdiff.zoo import SHIPPED

    text = run_here(capfd, "build", "--help").output
    assert all(name in text for name in (*TARGETS, *SHIPPED))


BAD = [
    ((), ("no command", "generate", "--help")),
    (("generat", "e", "p"), ("unknown command 'generat'", "did you mean generate?")),
    (
        ("frobnicate",),
        (
            "unknown command 'frobnicate'",
            "build, generate, img2img, inpaint, samplers, inspect, verify, bench",
        ),
    ),
    (("generate", "e", "p", "--step", "5"), ("unknown option '--step'", "did you mean --steps")),
    (("generate", "e", "p", "--guidence=5"), ("unknown option '--guidence'", "--guidance")),
    (("build", "c", "--outptu", "x"), ("unknown option '--outptu'", "--output")),
    (("generate", "e", "p", "-x"), ("unexpected argument '-x'", "-- goes before")),
    (("inpaint", "--mask", "m"), ("it is given without one, as fastdiff inpaint ENGINE IMAGE MASK PROMPT",)),
    (("generate", "e", "p", "--model", "m"), ("'--model' of fastdiff generate: fastdiff generate --help",)),
    (("generate", "e", "p", "--output-file", "m"), ("did you mean --output?",)),
    (("generate", "e", "two", "prompts"), ("unexpected argument 'prompts'",)),
    (("generate",), ("ENGINE", "fastdiff generate --help")),
    (("generate", "e", "p", "--class-label", "cat"), ("--class-label", "'cat' is not a whole number")),
    (("build", "c"), ("-o/--output", "fastdiff build --help")),
    (("generate", "e", "p", "--steps", "many"), ("--steps", "'many' is not a whole number")),
    (("generate", "e", "p", "--steps", "2.5"), ("--steps", "'2.5' is not a whole number")),
    (("generate", "e", "p", "--guidance", "x"), ("--guidance", "'x' is not a number")),
    (("generate", "e", "p", "--seed"), ("--seed", "expected one argument")),
]


@pytest.mark.parametrize(("words", "says"), BAD, ids=lambda value: " ".join(value)[:40] or "nothing")
def test_bad_words(capfd: Capture, words: tuple[str, ...], says: tuple[str, ...]) -> None:
    run_here(capfd, *words).assert_refused(*says)


@pytest.mark.parametrize(
    "words",
    [
        ("generate", "e", "a red circle", "--steps", "3", "--lora", "a:2"),
        ("generate", "e", "--steps", "3", "a red circle", "--lora", "a:2"),
        ("generate", "--steps", "3", "e", "--lora", "a:2", "a red circle", "--debug"),
        ("--debug", "generate", "--steps", "3", "--lora", "a:2", "e", "a red circle"),
    ],
)
def test_options_may_stand_anywhere(words: tuple[str, ...]) -> None:
    found = parse(words)
    assert (found.engine, found.prompt, found.steps) == ("e", "a red circle", 3)
    assert found.lora == [("a", 2.0)]
    assert found.debug is ("--debug" in words)
    assert found.run.__module__ == "fastdiff.cli.generate"


def test_debug_shows_the_traceback_wherever_it_stands(tmp_path: Path) -> None:
    for words in (("--debug", "inspect", tmp_path / "no.fd"), ("inspect", tmp_path / "no.fd", "--debug")):
        outcome = run_process(*words)
        assert outcome.status != 0
        assert "Traceback" in outcome.errors
        assert "EngineError" in outcome.errors
    run_process("inspect", tmp_path / "no.fd").assert_refused("no.fd does not exist")


def replace(monkeypatch: pytest.MonkeyPatch, failure: BaseException | type[Warning]) -> None:
    """Make ``fastdiff generate`` fail in one way."""

    def run(arguments: object) -> None:
        if isinstance(failure, BaseException):
            raise failure
        warnings.warn("cut off:\n 'tail'", failure, stacklevel=1)

    monkeypatch.setattr(generate, "run", run)


def test_interrupt_is_one_line_and_130(capfd: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    replace(monkeypatch, KeyboardInterrupt())
    assert run_here(capfd, "generate", "e", "p") == Outcome(130, "", "fastdiff: interrupted\n")


@pytest.mark.parametrize(
    ("failure", "status", "line"),
    [
        (InputError("two\nlines"), 2, "fastdiff: error: two lines\n"),
        (
            OSError(errno.ENOSPC, "No space left on device", "x.png"),
            2,
            "fastdiff: error: x.png: No space left on device\n",
        ),
        (
            ZeroDivisionError("by zero"),
            1,
            "fastdiff: internal error: ZeroDivisionError: by zero; --debug shows where",
        ),
    ],
)
def test_failures_are_one_line(
    capfd: Capture, monkeypatch: pytest.MonkeyPatch, failure: Exception, status: int, line: str
) -> None:
    replace(monkeypatch, failure)
    outcome = run_here(capfd, "generate", "e", "p")
    assert outcome.status == status
    assert outcome.errors.startswith(line)
    assert outcome.errors.count("\n") == 1
    with pytest.raises(type(failure)):
        run_here(capfd, "generate", "e", "p", "--debug")


def test_memory_error_says_what_to_do(capfd: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    replace(monkeypatch, MemoryError())
    run_here(capfd, "generate", "e", "p").assert_refused("out of memory", "smaller or fewer")


def test_our_warnings_are_one_line_those_of_libraries_are_hidden(
    capfd: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    replace(monkeypatch, FastdiffWarning)
    assert run_here(capfd, "generate", "e", "p").errors == "fastdiff: warning: cut off: 'tail'\n"
    replace(monkeypatch, DeprecationWarning)
    assert run_here(capfd, "generate", "e", "p").errors == ""


def test_a_reader_that_closes_early_is_no_error() -> None:
    """``fastdiff doctor | head -0``"""
    read, write = os.pipe()
    os.close(read)
    run = subprocess.run(
        command("doctor"), stdout=write, stderr=subprocess.PIPE, env=environment(), text=True, check=False
    )
    os.close(write)
    assert (run.returncode, run.stderr) == (0, "")


def test_standard_output_that_is_full() -> None:
    with Path("/dev/full").open("w") as full:
        run = subprocess.run(
            command("doctor"), stdout=full, stderr=subprocess.PIPE, env=environment(), text=True, check=False
        )
    assert run.returncode == 2
    assert run.stderr == "fastdiff: error: No space left on device\n"
