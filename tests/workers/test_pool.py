"""Several processes behind one queue: the pictures of one process, in order, and no process left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fastdiff
from fastdiff.errors import EngineMismatchError, FastdiffWarning, InputError, NumericError, TargetError
from fastdiff.pipeline import Pipeline
from fastdiff.result import Result
from fastdiff.samplers import Generator
from fastdiff.workers import pool as pool_module
from fastdiff.workers.pool import PipelinePool
from tests.cli.run import environment
from tests.compare import assert_close
from tests.oracle import psnr
from tests.processes import MARK, children_of, marked, wait_until

MIN_PSNR = 45.0
LATENTS = 1e-4
"""Relative: kernels may sum in another order for another batch."""

CALLS: dict[str, dict[str, Any]] = {
    "fewer pictures than processes": {"prompt": "a red circle", "num": 1},
    "no multiple of the processes": {"prompt": "a red circle", "num": 3},
    "noise at every step": {"prompt": "a red circle", "num": 3, "sampler": "ddim", "eta": 1.0},
    "several prompts": {"prompt": ["a red circle", "a blue star"], "negative": ["green", ""], "num": 2},
    "guidance with state and an interval": {
        "prompt": ["a red circle", "a blue star"],
        "negative": "green",
        "num": 2,
        "guidance": {
            "scale": 6,
            "method": {"name": "apg", "space": "output", "threshold": None},
            "interval": {"low": 0.25, "high": 1.0, "unit": "share"},
        },
    },
    "no guidance, another size": {"prompt": "a star", "num": 2, "guidance": 1, "height": 40, "width": 24},
}


@pytest.fixture(scope="module")
def pipe(tiny_native_engine: Path) -> Iterator[Pipeline]:
    pipe = fastdiff.load(tiny_native_engine, threads=1)
    yield pipe
    pipe.close()


@pytest.fixture(scope="module")
def pool(tiny_native_engine: Path) -> Iterator[PipelinePool]:
    with fastdiff.load_many(tiny_native_engine, ["cpu", "cpu"], threads=2) as pool:
        yield pool


def assert_same_pictures(found: Result, wanted: Result) -> None:
    assert len(found.images) == len(wanted.images)
    for index, (our, their) in enumerate(zip(found.images, wanted.images, strict=True)):
        assert our.size == their.size
        assert psnr(our, their) >= MIN_PSNR, index
        assert_close(found.latents[index], wanted.latents[index], rel_l2=LATENTS, label=f"picture {index}")
    assert found.seed == wanted.seed
    assert found.metadata == wanted.metadata


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_the_pictures_of_one_process(pipe: Pipeline, pool: PipelinePool, call: dict[str, Any]) -> None:
    call = {"steps": 4, "seed": 11, **call}
    wanted, found = pipe(**call), pool(**call)
    assert_same_pictures(found, wanted)
    differences = [np.abs(a - b).max() for a, b in zip(wanted.latents[1:], wanted.latents, strict=False)]
    assert min(differences, default=1.0) > 0.01, "pictures of a call differ, so that their order is seen"


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_bits_where_batches_agree(pipe: Pipeline, pool: PipelinePool, eta: float) -> None:
    """A job of one picture is what a single process computes from that picture's noise."""
    call: dict[str, Any] = {"steps": 3, "sampler": "ddim", "seed": 5, "eta": eta}
    single = pool("a red circle", **call)
    np.testing.assert_array_equal(single.latents, pipe("a red circle", **call).latents)
    if eta:
        return
    together = pool("a red circle", num=3, **call)
    noise = Generator(5).randn((3, *together.latents.shape[1:]))
    for row in range(3):
        alone = pipe("a red circle", latents=noise[row : row + 1], **call)
        np.testing.assert_array_equal(together.latents[row : row + 1], alone.latents)
        np.testing.assert_array_equal(np.asarray(together.images[row]), np.asarray(alone.images[0]))


def test_given_latents_leave_the_generator_where_it_is(pipe: Pipeline, pool: PipelinePool) -> None:
    noise = Generator(99).randn((3, *pipe("a", steps=1, seed=0).latents.shape[1:]))
    call: dict[str, Any] = {"steps": 3, "sampler": "ddim", "eta": 0.6, "seed": 5, "num": 3, "latents": noise}
    found = pool("a red circle", **call)
    assert_same_pictures(found, pipe("a red circle", **call))
    assert found.metadata[2]["latents"] == "given"
    with pytest.raises(InputError, match="latents"):
        pool("a red circle", num=2, latents=noise)


def test_several_pictures_in_a_job(tiny_native_engine: Path, pipe: Pipeline) -> None:
    call: dict[str, Any] = {"num": 5, "steps": 3, "sampler": "ddim", "eta": 0.5, "seed": 2}
    with fastdiff.load_many(tiny_native_engine, ["cpu", "cpu"], threads=2, batch=2) as pool:
        found = pool(["a red circle", "a star"], **call)
        timings = found.timings
    assert_same_pictures(found, pipe(["a red circle", "a star"], **call))
    assert len(timings.steps) == 5 * 3, "ten pictures in five jobs"
    assert 0 < timings.vae < 2 * timings.total


def test_timings_and_progress(pool: PipelinePool, capfd: pytest.CaptureFixture[str]) -> None:
    result = pool("a red circle", num=3, steps=4, seed=0, sampler="ddim", progress=True)
    assert len(result.timings.steps) == 3 * 4
    assert 0 < max(result.timings.steps) < result.timings.total
    shown = capfd.readouterr().err
    assert "3/3" in shown
    assert "picture" in shown


def test_warnings_come_once(pool: PipelinePool) -> None:
    with pytest.warns(FastdiffWarning, match="no effect with guidance 1|dropped") as caught:
        pool("a " * 75 + "Zebra", negative="blue", num=3, steps=1, guidance=1, seed=0, long_prompts="cut")
    assert [str(warning.message).partition(":")[0] for warning in caught] == [
        "the prompt is longer than 77 tokens; dropped",
        "the negative prompt has no effect with guidance 1",
    ]
    assert {warning.filename for warning in caught} == {__file__}


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"steps": 0}, "steps is 0"),
        ({"num": 0}, "num is 0"),
        ({"height": 30}, "height is 30"),
        ({"sampler": "dpmp_2m"}, "unknown sampler"),
        ({"sampler": "euler", "eta": 0.5}, "eta"),
    ],
)
def test_bad_calls_reach_no_process(pool: PipelinePool, changes: dict[str, Any], says: str) -> None:
    before = children_of(os.getpid())
    with pytest.raises(InputError, match=says):
        pool("a red circle", **{"seed": 0, **changes})
    assert children_of(os.getpid()) == before
    assert pool("a", steps=1, seed=0).images


def test_bad_pools(tiny_native_engine: Path) -> None:
    before = children_of(os.getpid())
    with pytest.raises(InputError, match="batch is 0"):
        fastdiff.load_many(tiny_native_engine, ["cpu"], batch=0)
    with pytest.raises(InputError, match="no devices"):
        fastdiff.load_many(tiny_native_engine, [])
    with pytest.raises(InputError, match="threads is 0"):
        fastdiff.load_many(tiny_native_engine, ["cpu"], threads=0)
    with pytest.raises(InputError, match="device 0 is a GPU"):
        fastdiff.load_many(tiny_native_engine, ["cpu", 0])
    assert children_of(os.getpid()) == before


def test_closed_and_called_again(tiny_native_engine: Path) -> None:
    before = children_of(os.getpid())
    pool = fastdiff.load_many(tiny_native_engine, ["cpu", "cpu"], threads=2)
    first = pool("a red circle", num=2, steps=2, seed=0).latents
    assert len(children_of(os.getpid())) == len(before) + 2
    pool.close()
    assert children_of(os.getpid()) == before
    np.testing.assert_array_equal(pool("a red circle", num=2, steps=2, seed=0).latents, first)
    del pool
    wait_until(lambda: children_of(os.getpid()) == before)


def test_a_pool_outlives_the_thread_that_made_it(tiny_native_engine: Path) -> None:
    """The system kills a worker when the thread that started it ends: that is not the caller's."""
    made: list[PipelinePool] = []
    thread = threading.Thread(
        target=lambda: made.append(fastdiff.load_many(tiny_native_engine, ["cpu"], threads=1))
    )
    thread.start()
    thread.join()
    time.sleep(0.2)
    with made[0] as pool:
        assert pool("a red circle", steps=1, seed=0).images


def test_whoever_is_free_takes_the_next(tiny_native_engine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One of two processes stands still with its picture: the other makes all the rest."""
    done: list[int] = []

    class Bar:
        def update(self, pictures: int) -> None:
            done.append(pictures)
            if len(done) == 5:
                os.kill(still, signal.SIGCONT)

        def close(self) -> None:
            done.append(0)

    monkeypatch.setattr(pool_module, "progress_bar", lambda *args, **kwargs: Bar())
    before = children_of(os.getpid())
    with fastdiff.load_many(tiny_native_engine, ["cpu", "cpu"], threads=2) as pool:
        still = next(child for child in children_of(os.getpid()) if child not in before)
        os.kill(still, signal.SIGSTOP)
        result = pool("a red circle", num=6, steps=2, seed=0, progress=True)
    assert done == [1] * 6 + [0]
    assert len(result.images) == 6


def during(pool: PipelinePool, act: Callable[[], None]) -> None:
    """Call the pool for what takes minutes, and act while all processes compute."""
    timer = threading.Timer(0.5, act)
    timer.start()
    try:
        pool("a red circle", num=50, steps=900, sampler="ddim", seed=0)
    finally:
        timer.join()


def test_a_killed_process_is_named_and_ends_all(tiny_native_engine: Path) -> None:
    before = children_of(os.getpid())
    with fastdiff.load_many(tiny_native_engine, ["cpu", "cpu"], threads=2) as pool:
        victim = next(child for child in children_of(os.getpid()) if child not in before)
        with pytest.raises(TargetError, match=r"^CPU worker [12]: the process was killed.*fewer devices"):
            during(pool, lambda: os.kill(victim, signal.SIGKILL))
        assert children_of(os.getpid()) == before, "no orphan, no zombie"
        assert len(pool("a red circle", num=2, steps=1, seed=0).images) == 2, "it starts again"


def test_another_end_is_told_as_well(tiny_native_engine: Path) -> None:
    before = children_of(os.getpid())
    with fastdiff.load_many(tiny_native_engine, ["cpu"], threads=1) as pool:
        (victim,) = (child for child in children_of(os.getpid()) if child not in before)
        with pytest.raises(TargetError, match=r"^CPU: the process ended with SIGTERM$"):
            during(pool, lambda: os.kill(victim, signal.SIGTERM))
    assert children_of(os.getpid()) == before


def test_an_interrupt_ends_all_at_once(tiny_native_engine: Path) -> None:
    before = children_of(os.getpid())
    pool = fastdiff.load_many(tiny_native_engine, ["cpu", "cpu"], threads=2)
    ended = threading.Event()

    def interrupt() -> None:
        """Again where it was lost: Python ignores one that comes while it runs a destructor."""
        for _ in range(2):
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
            if ended.wait(4):
                return

    def call() -> None:
        try:
            pool("a red circle", num=50, steps=900, sampler="ddim", seed=0)
        finally:
            ended.set()

    timer = threading.Timer(0.5, interrupt)
    begin = time.monotonic()
    # shells let what they start in the background ignore it
    before_test = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        timer.start()
        with pytest.raises(KeyboardInterrupt):
            call()
    finally:
        signal.signal(signal.SIGINT, before_test)
    assert time.monotonic() - begin < 10
    timer.join()
    assert children_of(os.getpid()) == before


def test_an_error_of_a_process_keeps_its_kind_and_names_the_device(
    tiny_native_engine: Path,
) -> None:
    """Finite latents that pass every check of the call and overflow in the first step."""
    shape = fastdiff.load(tiny_native_engine, threads=1)("a", steps=1, seed=0).latents.shape[1:]
    huge = np.full((2, *shape), 3e38, np.float32)
    before = children_of(os.getpid())
    with fastdiff.load_many(tiny_native_engine, ["cpu", "cpu"], threads=2) as pool:
        with pytest.raises(NumericError, match=r"^CPU worker [12]: NaN or infinity in the latents"):
            pool("a red circle", num=2, steps=2, seed=0, sampler="ddim", latents=huge)
        assert children_of(os.getpid()) == before


def test_an_engine_that_was_built_again_meanwhile(tiny_native_engine: Path) -> None:
    with fastdiff.load_many(tiny_native_engine, ["cpu"], threads=1) as pool:
        pool.close()
        changed = replace(pool.engine.manifest, provenance={})
        pool.engine = type(pool.engine)(pool.engine.path, changed)
        with pytest.raises(EngineMismatchError, match="built again meanwhile"):
            pool("a", steps=1, seed=0)


def test_processes_die_with_a_parent_that_is_killed(
    tiny_native_engine: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv(MARK, str(tmp_path))
    code = (
        "import sys, time, fastdiff\n"
        "pool = fastdiff.load_many(sys.argv[1], ['cpu', 'cpu'], threads=2)\n"
        "print('open', flush=True)\n"
        "pool('a red circle', num=50, steps=900)\n"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", code, tiny_native_engine], stdout=subprocess.PIPE, env=environment()
    )
    assert parent.stdout is not None
    with parent, parent.stdout:
        assert parent.stdout.readline() == b"open\n"
        assert len(marked(str(tmp_path))) == 3
        parent.kill()
    wait_until(lambda: marked(str(tmp_path)) == [], 10)


def test_the_calling_process_loads_no_vendor_library(tiny_native_engine: Path) -> None:
    code = (
        "import sys, fastdiff\n"
        "with fastdiff.load_many(sys.argv[1], ['cpu'], threads=1) as pool: pool('a', steps=1)\n"
        "names = {name.partition('.')[0] for name in sys.modules}\n"
        "print(sorted(names & {'torch', 'triton', 'cuda', 'onnxruntime', 'tensorrt', 'transformers'}))"
    )
    run = subprocess.run(
        [sys.executable, "-c", code, tiny_native_engine],
        capture_output=True,
        text=True,
        env=environment(),
        timeout=120,
    )
    assert (run.stdout, run.stderr) == ("[]\n", "")
