"""The sampling loop in C++ against the one in Python over the same session, bit for bit."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastdiff import _C
from fastdiff.config import SizeRange
from fastdiff.errors import InputError
from fastdiff.samplers import Generator, Langevin, NoiseSchedule, StepTable, make_table, sample
from tests.samplers.configs import STABLE_DIFFUSION, every_table
from tests.samplers.random_tables import tables
from tests.targets.native.graphs import GraphBuilder

ANY = SizeRange()
SCHEDULE = NoiseSchedule.from_config(STABLE_DIFFUSION)
RUNGE_KUTTA = NoiseSchedule.from_config({**STABLE_DIFFUSION, "skip_prk_steps": False})
CLIPPED = NoiseSchedule.from_config({**STABLE_DIFFUSION, "clip_sample": True})
TABLES = {
    **{name: table for name, table in every_table(4).items() if table.linear},
    "pndm with Runge-Kutta start": make_table("pndm", RUNGE_KUTTA, 6),
    "ddim with clipping and noise": make_table("ddim", CLIPPED, 6, eta=1.0),
    "ddim with noise": make_table("ddim", SCHEDULE, 6, eta=0.7),
}
PROMPT = np.random.default_rng(2).standard_normal((4, 5, 6)).astype(np.float32)


def unet(folder: Path, *, staged: bool) -> _C.NativeSession:
    """A convolution with a time vector, and attention over the prompt; in stages, or all in each step."""
    g = GraphBuilder(batch=ANY, height=ANY, width=ANY, tokens=ANY)
    rng = np.random.default_rng(0)
    prompt_stage, schedule_stage = ("prompt", "schedule") if staged else ("step", "step")

    def weight(*shape: int) -> np.ndarray:
        return (rng.standard_normal(shape) / np.sqrt(np.prod(shape[1:]))).astype(np.float32)

    x = g.input("sample", ("batch", 4, "height", "width"))
    t = g.input("timestep", ("batch",))
    prompt = g.input("encoder_hidden_states", ("batch", "tokens", 6))
    wave = g.node(
        "timestep_embedding",
        (t,),
        ("batch", 6),
        {"sine_first": 0},
        {"frequencies": np.array([1.0, 0.1, 0.01], np.float32)},
        stage=schedule_stage,
    )
    time = g.linear(wave, weight(8, 6), activation="silu", stage=schedule_stage)
    keys = g.linear(prompt, weight(8, 6), stage=prompt_stage)
    maps = ("batch", "height", "width")
    h = g.node("permute", (x,), (*maps, 4), {"axes": (0, 2, 3, 1)})
    h = g.conv2d(h, weight(8, 4, 3, 3), None, (*maps, 8), vector=time)
    rows = g.node("reshape", (h,), ("batch", ("height", "width", "*"), 8))
    shape = g.values[rows].shape
    a = g.node("attention", (rows, keys, keys), shape, {"heads": 2, "scale": 0.5, "causal": 0})
    a = g.node("add", (a, rows), shape)
    a = g.node("reshape", (a,), (*maps, 8))
    y = g.conv2d(a, weight(4, 8, 3, 3), None, (*maps, 4))
    y = g.node("permute", (y,), ("batch", 4, "height", "width"), {"axes": (0, 3, 1, 2)})
    return g.session(folder, y, threads=2)


def prompt_for(table, guidance: float) -> np.ndarray:
    return PROMPT if any(scale != 1 for scale in table.guidance_scales(guidance)) else PROMPT[2:]


def in_python(session: _C.NativeSession, guidance: float, table, latents, seed, callback=None):
    states = prompt_for(table, guidance)

    def denoise(x, timestep, guided):
        # Both halves in every step of a table that is guided anywhere, as in C++.
        batch = np.concatenate([x] * (len(states) // len(x)))
        inputs = {"sample": batch, "timestep": np.full(len(batch), timestep, np.float32)}
        (output,) = session.run(inputs | {"encoder_hidden_states": states}).values()
        return output[-len(x) :], output[: len(x)] if guided else None

    noise = Generator(seed)
    return sample(table, denoise, latents, guidance=guidance, noise=noise, callback=callback)


def in_cpp(session: _C.NativeSession, guidance: float, table, latents, seed, callback=None):
    states = prompt_for(table, guidance)
    return session.sample(
        table, latents, {"encoder_hidden_states": states}, guidance, _C.Randn(seed), callback
    )


@pytest.fixture(scope="module")
def staged(tmp_path_factory: pytest.TempPathFactory) -> _C.NativeSession:
    return unet(tmp_path_factory.mktemp("unet"), staged=True)


@settings(max_examples=60, deadline=None)
@given(table=tables(guidances=(None, None, 1.0, 2.0)), guidance=st.sampled_from([1.0, 3.0]))
def test_random_tables(staged: _C.NativeSession, table: StepTable, guidance: float) -> None:
    """Slots, estimates, noise at the start and in some steps, guidance in some steps: bit for bit."""
    latents = np.random.default_rng(3).standard_normal((2, 4, 3, 3)).astype(np.float32)
    steps: list[list[np.ndarray]] = [[], []]
    wanted = in_python(staged, guidance, table, latents, 5, lambda _d, _t, x: steps[0].append(x.copy()))
    found = in_cpp(staged, guidance, table, latents, 5, lambda _d, _t, x: steps[1].append(x.copy()))
    for one, other in zip(*steps, strict=True):
        np.testing.assert_array_equal(one, other)
    np.testing.assert_array_equal(found, wanted)


def test_what_is_not_linear_is_refused(staged: _C.NativeSession) -> None:
    (step,) = make_table("ddim", SCHEDULE, 1).steps
    table = StepTable("bent", (replace(step, langevin=Langevin(0.1)),))
    with pytest.raises(InputError, match="'bent' has steps that are not linear"):
        in_cpp(staged, 1.0, table, np.ones((2, 4, 3, 3), np.float32), 0)


@pytest.mark.parametrize("guidance", [1.0, 3.5])
@pytest.mark.parametrize("name", TABLES)
def test_equals_the_python_loop_bit_for_bit(name: str, guidance: float, tmp_path: Path) -> None:
    """Every row of every table; 5 × 7 maps, so that no block of a kernel is full."""
    table = TABLES[name]
    session = unet(tmp_path, staged=True)
    latents = np.random.default_rng(3).standard_normal((2, 4, 5, 7)).astype(np.float32)
    latents *= np.float32(table.init_noise_sigma)
    start = latents.copy()
    steps: list[list[np.ndarray]] = [[], []]
    wanted = in_python(session, guidance, table, latents, 5, lambda _d, _t, x: steps[0].append(x.copy()))
    found = in_cpp(session, guidance, table, latents, 5, lambda _d, _t, x: steps[1].append(x.copy()))
    np.testing.assert_array_equal(latents, start)
    for one, other in zip(*steps, strict=True):
        np.testing.assert_array_equal(one, other)
    np.testing.assert_array_equal(found, wanted)
    assert np.isfinite(found).all()


def test_a_module_without_stages_is_sampled_as_well(tmp_path: Path) -> None:
    session = unet(tmp_path, staged=False)
    latents = np.random.default_rng(3).standard_normal((2, 4, 3, 3)).astype(np.float32)
    wanted = in_python(session, 2.0, TABLES["ddim"], latents, 0)
    np.testing.assert_array_equal(in_cpp(session, 2.0, TABLES["ddim"], latents, 0), wanted)


def test_the_callback_sees_every_step_and_may_stop(tmp_path: Path) -> None:
    session = unet(tmp_path, staged=True)
    latents = np.ones((2, 4, 3, 3), np.float32)
    table = TABLES["pndm"]
    seen = []

    def stop(done: int, total: int, x: np.ndarray) -> None:
        assert x.shape == latents.shape
        assert not x.flags.writeable
        seen.append((done, total))
        if done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        in_cpp(session, 2.0, table, latents, 0, stop)
    assert seen == [(done, table.evaluations) for done in (1, 2, 3)]
    # The session goes on as if nothing had been.
    np.testing.assert_array_equal(
        in_cpp(session, 2.0, table, latents, 0), in_python(session, 2.0, table, latents, 0)
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"guidance": float("nan")}, "guidance is not finite"),
        ({"noise": None, "table": TABLES["ddim with noise"]}, "found no generator"),
        ({"latents": np.ones((2, 3, 3, 3), np.float32)}, "sample: found shape"),
        ({"latents": np.ones((2, 4, 3, 3))}, "latents: found dtype float64"),
        ({"inputs": {}}, "encoder_hidden_states is missing"),
        ({"inputs": {"encoder_hidden_states": PROMPT[1:]}}, "wanted"),
    ],
)
def test_wrong_arguments_are_refused(change, message, tmp_path: Path) -> None:
    arguments = {
        "table": TABLES["ddim"],
        "latents": np.ones((2, 4, 3, 3), np.float32),
        "inputs": {"encoder_hidden_states": PROMPT},
        "guidance": 2.0,
        "noise": _C.Randn(0),
    }
    with pytest.raises(InputError, match=message):
        unet(tmp_path, staged=True).sample(**(arguments | change))


def test_a_module_that_is_no_unet_is_refused(tmp_path: Path) -> None:
    g = GraphBuilder(batch=ANY)
    x = g.input("sample", ("batch", 3))
    session = g.session(tmp_path, g.node("silu", (x,), ("batch", 3)))
    with pytest.raises(InputError, match="no input timestep"):
        session.sample(TABLES["ddim"], np.ones((2, 3), np.float32), {})
