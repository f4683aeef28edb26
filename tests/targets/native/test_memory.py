"""One copy of the weights for any number of sessions, and none of a file that was replaced."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import fastdiff
from fastdiff.build.memory import release
from fastdiff.config import SizeRange, TensorSpec
from fastdiff.manifest import ModuleEntry
from fastdiff.targets import native
from fastdiff.targets.native.file import write
from tests.engines import TEXT_ENCODER
from tests.memory import mappings, resident
from tests.targets.native.graphs import GraphBuilder

WIDTH = 3072
WEIGHTS = 2 * WIDTH * WIDTH * 4

ENTRY: ModuleEntry = replace(
    TEXT_ENCODER,
    target="native",
    inputs=(TensorSpec("x", "float32", ("batch", WIDTH)),),
    outputs=(TensorSpec("y", "float32", ("batch", WIDTH)),),
    shapes={"batch": SizeRange()},
    files={"wide.fdn": ""},
)


@pytest.fixture
def folder(tmp_path: Path, rng: np.random.Generator) -> Path:
    """A module of two large linear layers, 75 MB."""
    graph = GraphBuilder(batch=SizeRange())
    x = graph.input("x", ("batch", WIDTH))
    for _ in range(2):
        x = graph.linear(x, rng.standard_normal((WIDTH, WIDTH), np.float32) / 64)
    graph.values[x] = replace(graph.values[x], name="y")
    write(tmp_path / "wide.fdn", graph.graph(x))
    return tmp_path


def open_session(folder: Path) -> native._NativeSession:
    session = native.open(folder, "wide", ENTRY, 1)
    assert isinstance(session, native._NativeSession)
    return session


def test_sessions_share_their_weights(folder: Path, rng: np.random.Generator) -> None:
    """A mapping that is shared and never written to; beyond it each session has its arena alone."""
    x = rng.standard_normal((2, WIDTH), np.float32)
    first = open_session(folder)
    expected = first(x=x)["y"]
    release()
    before = resident().anonymous
    sessions = [open_session(folder) for _ in range(3)]
    for session in sessions:
        np.testing.assert_array_equal(session(x=x)["y"], expected)
    release()
    grown = resident().anonymous - before
    assert grown < WEIGHTS / 4, f"{grown} bytes for three sessions of {WEIGHTS} bytes of weights"
    (mapping,) = mappings(folder / "wide.fdn")
    assert mapping.shared
    assert mapping.resident > WEIGHTS, "all weights were read"
    assert mapping.copied == 0
    for session in (first, *sessions):
        session.close()
    assert mappings(folder / "wide.fdn") == []


def test_a_pipeline_s_two_sessions_share_their_weights(tiny_native_engine: Path, tmp_path: Path) -> None:
    """With a guidance device the U-Net has two sessions."""
    engine = shutil.copytree(tiny_native_engine, tmp_path / "tiny.fd")
    pipe = fastdiff.load(engine, threads=2, device="cpu", guidance_device="cpu")
    pipe("a red circle", steps=1, seed=0)
    assert len(mappings(engine / "unet.fdn")) == 1


def test_an_engine_that_was_replaced_is_opened_anew(folder: Path, rng: np.random.Generator) -> None:
    """Sessions of the old file keep it; the same name stands for another file."""
    x = rng.standard_normal((1, WIDTH), np.float32)
    old = open_session(folder)
    expected = old(x=x)["y"]
    graph = GraphBuilder(batch=SizeRange())
    other = graph.linear(graph.input("x", ("batch", WIDTH)), 2 * np.eye(WIDTH, dtype=np.float32))
    graph.values[other] = replace(graph.values[other], name="y")
    write(folder / "new.fdn", graph.graph(other))
    (folder / "new.fdn").replace(folder / "wide.fdn")
    np.testing.assert_array_equal(open_session(folder)(x=x)["y"], 2 * x)
    np.testing.assert_array_equal(old(x=x)["y"], expected)


def test_a_missing_file_says_so(tmp_path: Path) -> None:
    with pytest.raises(fastdiff.errors.EngineDamagedError, match=r"wide\.fdn cannot be opened"):
        open_session(tmp_path)
