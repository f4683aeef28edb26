"""Calls against the memory of the machine, before noise is drawn or a picture read."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest

import fastdiff
from fastdiff import FastdiffWarning, InputError, call_size
from fastdiff.samplers import Generator

CALL = {"prompt": "a red circle", "steps": 2, "seed": 1}
GB = 10**9


@pytest.fixture
def pipe(tiny_native_engine: Path) -> fastdiff.Pipeline:
    return fastdiff.load(tiny_native_engine, threads=1)


def test_pictures_that_no_memory_holds(pipe: fastdiff.Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(call_size, "total_memory", lambda: 10 * GB)
    with pytest.raises(
        InputError,
        match=r"^a picture of 8192 x 16384 needs [0-9.]+ GB of memory, this machine has 10\.0 GB: ",
    ):
        pipe(**CALL, height=16384, width=8192)
    with pytest.raises(InputError, match=r"^500 pictures of 512 x 512 at once need .* fewer at once$"):
        pipe(**CALL, height=512, width=512, num=500)


def test_noise_is_not_drawn_for_the_largest_picture(
    pipe: fastdiff.Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its latents alone would be a quarter of a terabyte, or more."""
    monkeypatch.setattr(Generator, "randn", lambda *_: pytest.fail("noise was drawn"))
    with pytest.raises(InputError, match=r"needs over 4398\.0 GB of memory"):
        pipe(**CALL, height=2**20, width=2**20)


def test_pictures_that_no_memory_is_free_for(
    pipe: fastdiff.Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Memory that is held since the last call can be used again."""
    monkeypatch.setattr(call_size, "available_memory", lambda: 1000)
    with pytest.warns(FastdiffWarning, match="a picture of 64 x 48 needs 0.0 GB of memory, 0.0 GB are free"):
        pipe(**CALL, height=48, width=64)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pipe(**CALL, height=48, width=64)


def test_sizes_that_an_engine_was_built_for_are_not_asked_about(
    pipe: fastdiff.Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(call_size, "total_memory", lambda: 1)
    pipe(**CALL)
    with pytest.raises(InputError, match=r"this machine has 0\.0 GB"):
        pipe(**CALL, height=36)


def test_targets_that_do_not_know(tiny_engine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(call_size, "total_memory", lambda: 1)
    fastdiff.load(tiny_engine, threads=1)(**CALL, height=36)
