"""TensorRT itself: a build, runs of several shapes, graphs, a second build from the cache, a refit."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from fastdiff.build.build import build_engine
from fastdiff.build.modules import module_spec, random_inputs
from fastdiff.build.refit import refit_engine
from fastdiff.config import MODULES
from fastdiff.engine_dir import open_engine
from fastdiff.targets.tensorrt import availability
from tests.checkpoints import make_checkpoint
from tests.compare import assert_close

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not availability().ok, reason=f"no TensorRT: {availability().reason}"),
]


@pytest.fixture(scope="module")
def engine(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("tensorrt") / "tiny.fd"
    options = {"target": "tensorrt", "precision": "fp16"}
    return build_engine(tiny_checkpoint, output, refit=True, **options).path  # type: ignore[arg-type]


@pytest.mark.parametrize("name", MODULES)
@pytest.mark.parametrize(
    "sizes", [{"height": 8, "width": 8}, {"height": 6, "width": 10}], ids=["usual", "range"]
)
def test_computes_what_onnxruntime_computes(
    engine: Path, tiny_engine: Path, name: str, sizes: dict[str, int]
) -> None:
    opened = open_engine(engine)
    every = {"batch": 2, "tokens": 40, **sizes}
    with opened.open_module(name) as session, open_engine(tiny_engine).open_module(name) as reference:
        for seed in range(4):  # an ordinary run, a captured one, two replays
            given = random_inputs(module_spec(name, opened.manifest.model), every, seed, vocab_size=100)
            wanted = reference(**given)
            found = session(**given)
            for key, value in wanted.items():
                assert_close(found[key], value, rel_l2=1e-2, label=f"{name}.{key}")


def test_second_build_takes_its_times_from_the_cache(engine: Path, tiny_checkpoint: Path) -> None:
    (file,) = (engine.parent / "tensorrt-timing-cache").glob("*.cache")
    before = file.stat().st_size
    started = time.monotonic()
    build_engine(
        tiny_checkpoint, engine.with_name("again.fd"), target="tensorrt", precision="fp16", refit=True
    )
    assert before > 0
    assert file.stat().st_size < 1.5 * before, "most entries were there already"
    assert time.monotonic() - started < 600


def test_weights_are_replaced(engine: Path, tmp_path: Path) -> None:
    tuned = make_checkpoint(tmp_path / "tuned", seed=7)
    before = open_engine(engine).engine_hash
    for _ in range(2):  # what was refitted can be refitted
        refit_engine(tuned, engine)
    assert open_engine(engine).engine_hash != before
