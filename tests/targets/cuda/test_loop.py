"""The loop on the device against `fastdiff.samplers.sample`, on a backend that allows what CUDA graphs do."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fastdiff.errors import InputError
from fastdiff.samplers import (
    Estimate,
    Generator,
    Langevin,
    Linear,
    NoiseSchedule,
    StepTable,
    Threshold,
    Variance,
    make_table,
    sample,
)
from fastdiff.targets.cuda import loop as loop_module
from fastdiff.targets.cuda.backend import Backend, EagerBackend
from fastdiff.targets.cuda.call import GraphedCall
from fastdiff.targets.cuda.graphs import CudaBackend, GraphCache
from fastdiff.targets.cuda.loop import DeviceLoop
from tests.compare import assert_close
from tests.samplers.configs import STABLE_DIFFUSION, every_table
from tests.samplers.oracle import EXACT
from tests.samplers.random_tables import tables
from tests.targets.cuda.denoisers import MadeUp
from tests.targets.cuda.recording import Misuse, RecordingBackend, table_step

SCHEDULE = NoiseSchedule.from_config(STABLE_DIFFUSION)
RUNGE_KUTTA = NoiseSchedule.from_config({**STABLE_DIFFUSION, "skip_prk_steps": False})
CLIPPED = NoiseSchedule.from_config({**STABLE_DIFFUSION, "clip_sample": True})
TABLES = {
    **{name: make_table(name, SCHEDULE, 12) for name in EXACT},
    "pndm with Runge-Kutta start": make_table("pndm", RUNGE_KUTTA, 12),  # 6 slots: more than the least
    "ddim with clipping": make_table("ddim", CLIPPED, 12),
    "ddim with clipping and noise": make_table("ddim", CLIPPED, 12, eta=1.0),
    "ddim with noise": make_table("ddim", SCHEDULE, 12, eta=0.7),
    "one step": make_table("dpmpp_2m", SCHEDULE, 1),
}
HUGE = 1 << 40

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")


def make_loop(backend: Backend | None = None, model: MadeUp | None = None) -> DeviceLoop:
    return DeviceLoop(GraphCache(backend or RecordingBackend(), HUGE), model or MadeUp(), table_step)


def arguments(batch: int, guidance: float, table: StepTable, seed: int = 1):
    """Latents of 3 × 5 pixels, so that no row is aligned, and the prompt's states."""
    rng = np.random.default_rng(seed)
    latents = rng.standard_normal((batch, 4, 3, 5)).astype(np.float32) * np.float32(table.init_noise_sigma)
    states = rng.standard_normal((batch * (1 if guidance == 1 else 2), 7, 6)).astype(np.float32)
    return latents, {"encoder_hidden_states": states}


def reference(table: StepTable, batch: int = 1, guidance: float = 2.5, dtype=torch.float32, callback=None):
    latents, inputs = arguments(batch, guidance, table)
    denoise = MadeUp(dtype).denoiser(inputs)
    return sample(table, denoise, latents, guidance=guidance, noise=Generator(3), callback=callback)


def run(loop: DeviceLoop, table: StepTable, batch: int = 1, guidance: float = 2.5, seed: int = 1, **options):
    latents, inputs = arguments(batch, guidance, table, seed)
    kept = latents.copy()
    result = loop.sample(table, latents, inputs, guidance, Generator(3), **options)
    np.testing.assert_array_equal(latents, kept)
    assert result.dtype == np.float32
    return result


def backend_of(loop: DeviceLoop) -> RecordingBackend:
    backend = loop._cache.backend
    assert isinstance(backend, RecordingBackend)
    return backend


@pytest.mark.parametrize(("batch", "guidance"), [(1, 2.5), (3, 1.0), (2, -1.0)])
@pytest.mark.parametrize("name", TABLES)
def test_equals_the_loop_of_the_samplers(name: str, batch: int, guidance: float) -> None:
    """Every row of every table, at every step; then all steps without a host that looks on."""
    table = TABLES[name]
    steps: tuple[list[np.ndarray], ...] = ([], [])
    wanted = reference(table, batch, guidance, callback=lambda _d, _t, x: steps[0].append(x.copy()))
    loop = make_loop()
    result = run(loop, table, batch, guidance, callback=lambda _d, _t, x: steps[1].append(x.copy()))
    for done, (found, expected) in enumerate(zip(steps[1], steps[0], strict=True), start=1):
        assert_close(found, expected, rel_l2=1e-5, label=f"step {done}")
    assert_close(result, wanted, rel_l2=1e-5)
    np.testing.assert_array_equal(result, steps[1][-1])
    np.testing.assert_array_equal(run(loop, table, batch, guidance), result)


EVERY = {name: table for name, table in every_table(4).items() if table.linear}
EVERY_LOOP, RANDOM_LOOP = (make_loop(RecordingBackend(lazy=False)) for _ in range(2))


@pytest.mark.parametrize("name", EVERY)
def test_every_sampler_equals_the_loop_of_the_samplers(name: str) -> None:
    largest = [1.0]
    note = largest.append
    wanted = reference(EVERY[name], callback=lambda _d, _t, x: note(float(np.abs(x).max())))
    assert_close(run(EVERY_LOOP, EVERY[name]), wanted, max_abs=2e-5 * max(largest))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", ["pndm", "ddim with clipping and noise", "euler"])
def test_the_model_has_a_type_of_its_own(name: str, dtype: torch.dtype) -> None:
    """Sample, slots and coefficients stay in float32. Both round the model's input and output alike."""
    table = TABLES[name]
    found = run(make_loop(model=MadeUp(dtype)), table)
    # An input that lies between two halves may round either way, once in a while.
    bound = {torch.float64: 1e-5, torch.float16: 1e-3, torch.bfloat16: 1e-2}[dtype]
    assert_close(found, reference(table, dtype=dtype), rel_l2=bound)


def test_an_eager_backend_runs_the_same_bodies() -> None:
    for name in ("pndm", "ddim with noise"):
        found = run(make_loop(EagerBackend()), TABLES[name])
        np.testing.assert_array_equal(found, run(make_loop(), TABLES[name]))


def test_one_capture_serves_samplers_and_step_counts() -> None:
    loop = make_loop()
    backend = backend_of(loop)
    for name, steps in (("dpmpp_2m", 20), ("euler", 64), ("ddim", 3), ("pndm", 50)):
        table = make_table(name, SCHEDULE, steps)
        assert_close(run(loop, table), reference(table), rel_l2=1e-5, label=name)
        counts = Counter(backend.log)
        assert (counts["capture"], counts["warm_up"]) == (3, 8), "start, window and step, twice warmed up"
        backend.log[:] = [call for call in backend.log if call in ("capture", "warm_up")]
        # Nothing is allocated for a run, on either side.
        assert name == "dpmpp_2m" or not {"zeros", "host"} & set(counts)
    assert (loop._cache.captures, loop._cache.hits) == (1, 3)


def test_shapes_guidance_and_noise_have_captures_of_their_own() -> None:
    loop = make_loop()
    runs = [("euler", 1, 2.5), ("euler", 2, 2.5), ("euler", 1, 1.0), ("ddim with noise", 1, 2.5)]
    for captures, (name, batch, guidance) in enumerate(runs, start=1):
        run(loop, TABLES[name], batch, guidance)
        assert loop._cache.captures == captures
    for name, batch, guidance in runs:
        wanted = reference(TABLES[name], batch, guidance)
        assert_close(run(loop, TABLES[name], batch, guidance), wanted, rel_l2=1e-5)
    assert (loop._cache.captures, loop._cache.hits) == (4, 4)


def test_longer_tables_and_more_slots_capture_once_more() -> None:
    loop = make_loop()
    long = make_table("euler", SCHEDULE, 65)  # one more than the tables of the first capture hold
    for captures, table in enumerate((TABLES["euler"], long, TABLES["pndm with Runge-Kutta start"]), start=1):
        assert_close(run(loop, table), reference(table), rel_l2=1e-5)
        assert loop._cache.captures == captures
    assert sum(graph.alive for graph in backend_of(loop).graphs) == 3, "the smaller ones are gone"
    for table in (long, TABLES["dpmpp_2m"]):
        assert_close(run(loop, table), reference(table), rel_l2=1e-5)
    assert (loop._cache.captures, loop._cache.evictions) == (3, 0)


def test_noise_that_is_too_large_comes_in_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    table = TABLES["ddim with clipping and noise"]
    monkeypatch.setattr(loop_module, "NOISE_BYTES", 11 * 4 * 15 * 4)  # of 11 steps: room for 8
    loop = make_loop()
    assert_close(run(loop, table), reference(table), rel_l2=1e-5)
    assert_close(run(loop, table, callback=lambda *_: None), reference(table), rel_l2=1e-5)
    (entry,) = loop._cache._entries.values()
    assert entry.inputs["noise"].tensor.shape == (8, 1, 4, 3, 5)


def test_the_generator_is_left_where_the_samplers_leave_it() -> None:
    table = TABLES["ddim with noise"]
    latents, inputs = arguments(1, 2.5, table)
    ours, theirs = Generator(3), Generator(3)
    make_loop().sample(table, latents, inputs, 2.5, ours)
    sample(table, MadeUp().denoiser(inputs), latents, guidance=2.5, noise=theirs)
    np.testing.assert_array_equal(ours.randn(5), theirs.randn(5))


def test_stages_run_once_per_capture_and_step_bodies_alone_are_replayed() -> None:
    model = MadeUp()
    loop = make_loop(model=model)
    run(loop, TABLES["pndm"])
    backend = backend_of(loop)
    first = Counter(model.calls)
    backend.log.clear()
    run(loop, TABLES["pndm"])
    again = Counter(model.calls) - first  # of the replays, which on a GPU call nothing
    assert again == {"prompt": 1, "schedule": 1, "step": 13}
    counts = Counter(backend.log)
    assert counts["replay"] == 2 + 13
    begin = backend.log.index("replay")
    between = backend.log[begin : len(backend.log) - backend.log[::-1].index("replay")]
    # Between the first replay and the last: tables, saves and timesteps go up, and a mark after eight steps.
    assert Counter(between) == {"replay": 15, "copy": 3, "record": 2}


def test_without_a_callback_the_host_is_a_few_chunks_ahead_at_most() -> None:
    loop = make_loop()
    run(loop, make_table("euler", SCHEDULE, 64))
    backend = backend_of(loop)
    assert 16 <= backend.most_ahead <= 32, "enough that the device never waits, few enough to interrupt"


@pytest.mark.parametrize(("chunk", "shown"), [(1, list(range(1, 14))), (4, [4, 8, 12, 13]), (100, [13])])
def test_the_callback_sees_every_chunk(chunk: int, shown: list[int]) -> None:
    table = TABLES["pndm"]
    wanted: dict[int, np.ndarray] = {}
    reference(table, callback=lambda done, _t, x: wanted.update({done: x.copy()}))
    seen = []

    def callback(done: int, total: int, latents: np.ndarray) -> None:
        seen.append(done)
        assert total == 13
        assert latents.dtype == np.float32
        assert_close(latents, wanted[done], rel_l2=1e-5)
        with pytest.raises(ValueError, match="read-only"):
            latents[...] = 0

    run(make_loop(), table, callback=callback, chunk=chunk)
    assert seen == shown


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError("enough")])
def test_stopping_from_the_callback(error: BaseException | type[BaseException]) -> None:
    loop = make_loop()
    seen = []

    def stop(done: int, total: int, latents: np.ndarray) -> None:
        seen.append(done)
        if done == 5:
            raise error

    for _ in range(2):
        seen.clear()
        with pytest.raises(error if isinstance(error, type) else type(error)):
            run(loop, TABLES["pndm"], callback=stop)
        assert seen == [1, 2, 3, 4, 5]
    np.testing.assert_array_equal(run(loop, TABLES["pndm"]), run(make_loop(), TABLES["pndm"]))
    assert loop._cache.captures == 1


@pytest.mark.parametrize("replay", [1, 2, 3, 20])
def test_ctrl_c_while_steps_are_launched(replay: int) -> None:
    """What was launched is waited for, as the next run writes to memory that it reads."""
    loop = make_loop()
    table = make_table("pndm", SCHEDULE, 30)
    run(loop, table)
    backend = backend_of(loop)
    backend.interrupt_at = replay
    with pytest.raises(KeyboardInterrupt):
        run(loop, table, seed=2)
    assert backend.position == backend.reached
    assert_close(run(loop, table), reference(table), rel_l2=1e-5)


def test_nothing_is_left_of_a_run_that_gave_nan() -> None:
    loop = make_loop()
    for name in ("pndm", "dpmpp_2m"):
        latents, inputs = arguments(1, 2.5, TABLES[name])
        assert np.isnan(loop.sample(TABLES[name], latents * np.float32(np.nan), inputs, 2.5)).all()
    # Euler reads no slot, but the kernel multiplies all by 0.
    for name in ("euler", "pndm"):
        assert_close(run(loop, TABLES[name]), reference(TABLES[name]), rel_l2=1e-5)


def test_a_preview_may_run_another_module_from_the_callback() -> None:
    cache = GraphCache(RecordingBackend(), 0)  # the least memory: everything idle is evicted
    loop = DeviceLoop(cache, MadeUp(), table_step)
    decode = GraphedCall(cache, lambda tensors: {"sample": torch.tanh(tensors["latent_sample"]).flatten(2)})
    pictures = []

    def preview(done: int, total: int, latents: np.ndarray) -> None:
        picture = decode({"latent_sample": latents})["sample"]
        assert_close(picture, np.tanh(latents).reshape(1, 4, 15), rel_l2=1e-6)
        pictures.append(picture)

    found = run(loop, TABLES["pndm"], callback=preview)
    assert len(pictures) == 13
    assert_close(found, reference(TABLES["pndm"]), rel_l2=1e-5)


def test_a_loop_inside_its_own_callback_is_refused() -> None:
    loop = make_loop()

    def again(done: int, total: int, latents: np.ndarray) -> None:
        with pytest.raises(InputError, match="started from its own callback"):
            run(loop, TABLES["euler"])
        with pytest.raises(InputError, match="closed from its own callback"):
            loop.close()

    assert_close(run(loop, TABLES["euler"], callback=again), reference(TABLES["euler"]), rel_l2=1e-5)


def test_close_frees_everything_and_a_later_run_captures_again() -> None:
    loop = make_loop()
    first = run(loop, TABLES["euler"])
    loop.close()
    assert loop._cache.bytes == 0
    assert not any(graph.alive for graph in backend_of(loop).graphs)
    np.testing.assert_array_equal(run(loop, TABLES["euler"]), first)


class ReadsOnTheHost(MadeUp):
    def step(self, model_input, prompt, rows):
        return super().step(model_input, prompt, rows) * float(rows[0][0, 0])


class Counts(MadeUp):
    def step(self, model_input, prompt, rows):
        return super().step(model_input, prompt, rows) * len(self.calls)


class Keeps(MadeUp):
    def prompt(self, inputs):
        self.kept = super().prompt(inputs)
        return self.kept


@pytest.mark.parametrize(
    ("model", "words"),
    [(ReadsOnTheHost, "waits for the device"), (Counts, "captured was"), (Keeps, "outlive")],
)
def test_models_that_could_not_be_captured_are_found(model: type[MadeUp], words: str) -> None:
    with pytest.raises(Misuse, match=words):
        run(make_loop(model=model()), TABLES["euler"])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"guidance": math.nan}, "guidance is nan, wanted a finite number"),
        ({"noise": None, "table": TABLES["ddim with noise"]}, "draws noise, got noise=None"),
        ({"latents": np.ones((1, 4, 3, 5))}, "latents have dtype float64, wanted float32"),
        ({"inputs": {"encoder_hidden_states": np.ones((1, 7, 6), np.float32)}}, "batch of 1, wanted 2 for 1"),
        ({"chunk": 0}, "chunk is 0, wanted 1 or more"),
    ],
)
def test_wrong_arguments_are_refused(change, words: str) -> None:
    latents, inputs = arguments(1, 2.5, TABLES["ddim"])
    given = {
        "table": TABLES["ddim"],
        "latents": latents,
        "inputs": inputs,
        "guidance": 2.5,
        "noise": Generator(0),
    }
    loop = make_loop()
    with pytest.raises(InputError, match=words):
        loop.sample(**(given | change))
    assert loop._cache.captures == 0


def test_a_table_without_steps_returns_a_copy() -> None:
    latents, inputs = arguments(1, 1.0, TABLES["ddim"])
    found = make_loop().sample(StepTable("none", ()), latents, inputs, 1.0)
    np.testing.assert_array_equal(found, latents)
    assert not np.shares_memory(found, latents)


@settings(max_examples=60, deadline=None)
@given(table=tables(guidances=(None, None, 1.0, 2.0)), guidance=st.sampled_from([1.0, 3.0]))
def test_random_tables(table: StepTable, guidance: float) -> None:
    """Steps that are not guided among those that are compute both halves, with the same result."""
    compare_with_the_samplers(RANDOM_LOOP, table, guidance)
    assert RANDOM_LOOP._cache.captures <= 4, "with and without guidance, with and without noise"


@settings(max_examples=25, deadline=None)
@given(table=tables(threshold=True), guidance=st.sampled_from([1.0, 3.0]))
def test_random_tables_with_dynamic_thresholding(table: StepTable, guidance: float) -> None:
    """The quantile is taken inside the captured step."""
    compare_with_the_samplers(make_loop(RecordingBackend(lazy=False)), table, guidance)


def compare_with_the_samplers(loop: DeviceLoop, table: StepTable, guidance: float, batch: int = 2) -> None:
    largest = [1.0]
    guided = any(scale != 1 for scale in table.guidance_scales(guidance))
    latents, inputs = arguments(batch, 3.0 if guided else 1.0, table)
    denoise = MadeUp().denoiser(inputs)

    def always_both(x: np.ndarray, timestep: float, _: bool):
        return denoise(x, timestep, guided)

    def note(done: int, total: int, x: np.ndarray) -> None:
        largest.append(float(np.abs(x).max()))

    ours, theirs = Generator(3), Generator(3)
    wanted = sample(table, always_both, latents, guidance=guidance, noise=theirs, callback=note)
    found = loop.sample(table, latents, inputs, guidance, ours)
    assert_close(found, wanted, max_abs=1e-5 * max(largest))
    np.testing.assert_array_equal(ours.randn(3), theirs.randn(3))


def with_steps(table: StepTable, **changes: object) -> StepTable:
    return replace(table, steps=tuple(replace(step, **changes) for step in table.steps))


CLIPPING = TABLES["ddim with clipping"]
THRESHOLDED = Estimate(Linear(1.0, -0.5), 0.5, threshold=Threshold(0.9, 2.0))


@pytest.mark.parametrize(
    "table",
    [
        with_steps(CLIPPING, variance=Variance()),
        with_steps(CLIPPING, langevin=Langevin(0.1)),
        replace(CLIPPING, variance_channels=True),
        with_steps(CLIPPING, estimate=replace(THRESHOLDED, limit=0.5)),
        replace(
            CLIPPING,
            steps=(replace(CLIPPING.steps[0], estimate=THRESHOLDED), *CLIPPING.steps[1:]),
        ),
    ],
    ids=["variance", "Langevin", "variance channels", "limit and threshold", "thresholds that differ"],
)
def test_tables_for_the_host_alone_are_refused(table: StepTable) -> None:
    latents, inputs = arguments(1, 2.5, table)
    with pytest.raises(InputError, match="not linear"):
        make_loop().sample(table, latents, inputs, 2.5, Generator(0))


def test_noise_of_steps_that_draw_none_is_not_drawn() -> None:
    """And what an earlier run has left in its place counts nothing."""
    noisy = TABLES["ddim with noise"]
    rare = replace(
        noisy,
        steps=tuple(
            replace(step, noise_coef=step.noise_coef if done % 3 == 0 else None)
            for done, step in enumerate(noisy.steps)
        ),
        start_noise=0.25,
    )
    loop = make_loop()
    for table in (noisy, rare):
        assert_close(run(loop, table), reference(table), rel_l2=1e-5)
    assert loop._cache.captures == 1


@pytest.fixture(scope="module")
def gpu() -> CudaBackend:
    return CudaBackend()


@pytest.mark.gpu
@needs_gpu
@pytest.mark.parametrize(("batch", "guidance"), [(1, 2.5), (3, 1.0)])
@pytest.mark.parametrize("name", TABLES)
def test_on_a_gpu(name: str, batch: int, guidance: float, gpu: CudaBackend) -> None:
    """As on the CPU; sin and tanh differ there by an ulp or two, which the steps amplify."""
    table = TABLES[name]
    loop = make_loop(gpu, MadeUp(device="cuda"))
    steps: list[np.ndarray] = []
    wanted: list[np.ndarray] = []
    result = run(loop, table, batch, guidance, callback=lambda _d, _t, x: steps.append(x.copy()))
    reference(table, batch, guidance, callback=lambda _d, _t, x: wanted.append(x.copy()))
    for done, (found, expected) in enumerate(zip(steps, wanted, strict=True), start=1):
        assert_close(found, expected, rel_l2=1e-4, label=f"step {done}")
    np.testing.assert_array_equal(run(loop, table, batch, guidance), result)
    loop.close()


@pytest.mark.gpu
@needs_gpu
# PyTorch says once that the mode does not find everything.
@pytest.mark.filterwarnings("ignore:Synchronization debug mode")
def test_a_gpu_runs_without_synchronisation_and_allocation(gpu: CudaBackend) -> None:
    loop = make_loop(gpu, MadeUp(device="cuda"))
    table = make_table("pndm", SCHEDULE, 60)
    wanted = run(loop, table)
    before = torch.cuda.memory_stats()["allocation.all.allocated"]
    torch.cuda.set_sync_debug_mode("error")
    try:
        found = run(loop, table)
        after = torch.cuda.memory_stats()["allocation.all.allocated"]
        with pytest.raises(RuntimeError, match="synchronizing"):  # the mode is on
            torch.ones(1, device="cuda").item()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert after == before
    np.testing.assert_array_equal(found, wanted)
    loop.close()


@pytest.mark.gpu
@needs_gpu
def test_a_gpu_is_reusable_after_an_exception(gpu: CudaBackend) -> None:
    loop = make_loop(gpu, MadeUp(device="cuda"))
    wanted = run(loop, TABLES["pndm"])

    def stop(done: int, total: int, latents: np.ndarray) -> None:
        if done == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(loop, TABLES["pndm"], seed=2, callback=stop)
    np.testing.assert_array_equal(run(loop, TABLES["pndm"]), wanted)
    loop.close()
