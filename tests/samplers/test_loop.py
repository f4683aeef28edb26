"""The loop: guidance, noise, buffers, callback, interruption."""

from __future__ import annotations

import math
import tracemalloc
from dataclasses import replace

import diffusers
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fastdiff.errors import InputError
from fastdiff.samplers import Generator, Langevin, NoiseSchedule, Threshold, Variance, make_table, sample
from fastdiff.samplers.extras import add_langevin, apply_threshold, deviation
from tests.compare import assert_close
from tests.samplers.configs import STABLE_DIFFUSION
from tests.samplers.oracle import EXACT, diffusers_run, model, prepare, table_run
from tests.samplers.random_tables import tables

SHAPE = (2, 4, 9, 7)
LATENTS = np.random.default_rng(1).standard_normal(SHAPE).astype(np.float32)
SCHEDULE = NoiseSchedule.from_config(STABLE_DIFFUSION)
RUNGE_KUTTA = NoiseSchedule.from_config({**STABLE_DIFFUSION, "skip_prk_steps": False})
CLIPPED = NoiseSchedule.from_config({**STABLE_DIFFUSION, "clip_sample": True})

TABLES = {
    **{name: make_table(name, SCHEDULE, 12) for name in EXACT},
    "pndm with Runge-Kutta start": make_table("pndm", RUNGE_KUTTA, 12),
    "ddim with clipping": make_table("ddim", CLIPPED, 12),
    "ddim with clipping and noise": make_table("ddim", CLIPPED, 12, eta=1.0),
    "ddim with noise": make_table("ddim", SCHEDULE, 12, eta=0.7),
}


def denoise(sample, timestep, guided):
    cond = model(sample, timestep).astype(np.float32)
    return cond, model(0.5 * sample, timestep).astype(np.float32) if guided else None


def guided_model(guidance):
    return lambda sample, t: model(0.5 * sample, t) + guidance * (model(sample, t) - model(0.5 * sample, t))


@pytest.mark.smoke
@pytest.mark.parametrize("guidance", [1.0, 0.0, 2.5, -1.0])
@pytest.mark.parametrize("name", TABLES)
def test_equals_the_table_in_float64(name, guidance):
    """Every row of every table through kernel, slots and exchanged buffers."""
    table = TABLES[name]
    found = []
    result = sample(
        table,
        denoise,
        LATENTS * np.float32(table.init_noise_sigma),
        guidance=guidance,
        noise=Generator(3),
        callback=lambda done, total, latents: found.append(latents.copy()),
    )
    noise = Generator(3)
    wanted = table_run(table, LATENTS, guided_model(guidance), noise=lambda: noise.randn(SHAPE))
    for done, (latents, (_, x)) in enumerate(zip(found, list(wanted)[1:], strict=True), start=1):
        assert_close(latents, x, rel_l2=1e-5, label=f"step {done}")
    assert np.array_equal(result, found[-1])
    assert result.dtype == np.float32


@settings(max_examples=120, deadline=None)
@given(
    table=tables(guidances=(None, None, 1.0, 2.0), extras=True), guidance=st.sampled_from([1.0, -0.5, 3.0])
)
def test_random_tables(table, guidance):
    """Everything that a row may say, against the formulas in float64."""
    shape = (2, 3, 5, 1)

    def cond(x, t):
        m = model(x, t).astype(np.float32)
        return np.concatenate([m, 0.5 + 0.5 * np.cos(3 * m)], axis=1) if table.variance_channels else m

    def uncond(x, t):
        return cond(0.5 * x, t + 10)

    def denoise(x, t, guided):
        asked.append(guided)
        return cond(x, t).astype(np.float32), uncond(x, t).astype(np.float32) if guided else None

    asked: list[bool] = []
    start = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    ours, theirs = Generator(3), Generator(3)
    found = []
    sample(
        table,
        denoise,
        start,
        guidance=guidance,
        noise=ours,
        callback=lambda _d, _t, x: found.append(x.copy()),
    )
    _, *wanted = table_run(
        table, start, cond, noise=lambda: theirs.randn(shape), uncond=uncond, guidance=guidance
    )
    largest = max(1.0, *(np.abs(x).max() for _, x in wanted))
    for done, (latents, (_, x)) in enumerate(zip(found, wanted, strict=True), start=1):
        assert_close(latents, x, max_abs=2e-5 * largest, label=f"step {done}")
    assert asked == [scale != 1 for scale in table.guidance_scales(guidance)]
    assert np.array_equal(ours.randn(3), theirs.randn(3))


@pytest.mark.parametrize("ratio", [0.0, 0.3, 0.995, 1.0])
@pytest.mark.parametrize("maximum", [1.0, 1.5, 100.0])
def test_dynamic_thresholding_is_diffusers(ratio, maximum):
    d = (3 * np.random.default_rng(0).standard_normal((3, 4, 9, 7))).astype(np.float32)
    d[1] /= 10  # within ±1: stays
    scheduler = diffusers.DDPMScheduler(
        thresholding=True, dynamic_thresholding_ratio=ratio, sample_max_value=maximum
    )
    wanted = scheduler._threshold_sample(torch.from_numpy(d)).numpy()
    apply_threshold(d, Threshold(ratio, maximum))
    assert_close(d, wanted, max_abs=1e-6)


@pytest.mark.parametrize("kind", ["learned", "learned_range"])
def test_learned_variance_is_diffusers(kind):
    """Of a DDPM chain that takes every step, of which every row here has the variances."""
    scheduler = diffusers.DDPMScheduler(num_train_timesteps=50, beta_end=0.3, variance_type=kind)
    v = np.random.default_rng(0).uniform(0.1, 0.9, (2, 3, 5)).astype(np.float32)
    for t in (1, 20, 49):
        variance = Variance()
        if kind == "learned_range":
            low = math.log(scheduler._get_variance(t, variance_type="fixed_small"))
            variance = Variance(low, math.log(scheduler.betas[t]))
        theirs = scheduler._get_variance(t, predicted_variance=torch.from_numpy(v))
        wanted = theirs.sqrt() if kind == "learned" else (0.5 * theirs).exp()
        assert_close(deviation(v, variance), wanted.numpy(), rel_l2=1e-6)


def test_a_variance_that_no_step_reads_is_dropped():
    """As by diffusers' DDIM for a model with learned variance."""
    table = replace(TABLES["ddim"], variance_channels=True)

    def twice(sample, timestep, guided):
        both = denoise(sample, timestep, guided)
        return tuple(np.concatenate([m, np.full_like(m, np.nan)], axis=1) for m in both)

    found = sample(table, twice, LATENTS, guidance=2.0)
    assert np.array_equal(found, sample(TABLES["ddim"], denoise, LATENTS, guidance=2.0))


def test_a_score_of_zero_gives_nan_without_a_warning():
    noise = np.ones((1, 4), np.float32)
    assert np.isnan(add_langevin(np.zeros_like(noise), noise, Langevin(0.1))).all()


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_noise_comes_after_the_latents_from_one_generator(eta):
    """As StableDiffusionPipeline does with one generator and several pictures."""
    theirs = torch.Generator().manual_seed(11)
    start = torch.randn(SHAPE, generator=theirs).numpy()
    wanted = start
    scheduler = prepare("ddim", STABLE_DIFFUSION, 10)
    for t in scheduler.timesteps:
        output = torch.from_numpy(model(np.asarray(wanted), float(t)).astype(np.float32))
        step = scheduler.step(output, t, torch.from_numpy(np.asarray(wanted)), eta=eta, generator=theirs)
        wanted = step.prev_sample.numpy()

    ours = Generator(11)
    latents = ours.randn(SHAPE)
    found = sample(make_table("ddim", SCHEDULE, 10, eta=eta), denoise, latents, noise=ours)
    assert_close(found, wanted, rel_l2=1e-5)
    # Both have drawn the same amount, also where the last step's noise has no weight.
    assert np.array_equal(ours.randn(5), torch.randn(5, generator=theirs).numpy())


@pytest.mark.parametrize("name", EXACT)
def test_float32_latents_as_diffusers_runs_them(name):
    found = sample(TABLES[name], denoise, LATENTS * np.float32(TABLES[name].init_noise_sigma))
    *_, (_, wanted) = diffusers_run(
        name, STABLE_DIFFUSION, 12, LATENTS, lambda x, t: model(x, t).astype(np.float32)
    )
    assert_close(found, wanted, rel_l2=1e-5)


def test_guidance_one_asks_for_no_unconditional_half():
    asked = []

    def record(sample, timestep, guided):
        asked.append(guided)
        return denoise(sample, timestep, guided)

    sample(TABLES["ddim"], record, LATENTS, guidance=1)
    assert asked == [False] * 12
    asked.clear()
    sample(TABLES["ddim"], record, LATENTS, guidance=1.01)
    assert asked == [True] * 12


@pytest.mark.parametrize("name", TABLES)
def test_counts_and_timesteps(name):
    table = TABLES[name]
    seen, called = [], []

    def record(sample, timestep, guided):
        seen.append(timestep)
        return denoise(sample, timestep, guided)

    def count(done, total, latents):
        called.append((done, total))

    sample(table, record, LATENTS, noise=Generator(0), callback=count)
    assert tuple(seen) == table.timesteps
    extra = {"pndm": 1, "pndm with Runge-Kutta start": 9}.get(name, 0)
    assert table.evaluations == 12 + extra
    assert called == [(i, table.evaluations) for i in range(1, table.evaluations + 1)]


@pytest.mark.parametrize("name", TABLES)
def test_inputs_stay_as_they_are(name):
    """Neither the latents nor the denoiser's outputs are written to, and the denoiser cannot write either."""
    latents = LATENTS.copy()
    outputs = []

    def keep(sample, timestep, guided):
        assert not sample.flags.writeable
        pair = denoise(sample, timestep, guided)
        outputs.extend((array, array.copy()) for array in pair)
        return pair

    sample(TABLES[name], keep, latents, guidance=3.0, noise=Generator(0))
    assert np.array_equal(latents, LATENTS)
    assert all(np.array_equal(array, copy) for array, copy in outputs)


def test_callback_sees_read_only_latents():
    def write(done, total, latents):
        latents[...] = 0

    with pytest.raises(ValueError, match="read-only"):
        sample(TABLES["euler"], denoise, LATENTS, callback=write)


@pytest.mark.parametrize("where", ["denoiser", "callback"])
def test_interruption_passes_through_and_leaves_nothing(where):
    latents = LATENTS.copy()
    wanted = sample(TABLES["pndm"], denoise, latents)

    def interrupt(done, total, latents):
        if done == 5:
            raise KeyboardInterrupt

    def interrupted(sample, timestep, guided):
        if timestep < 500:
            raise KeyboardInterrupt
        return denoise(sample, timestep, guided)

    model, callback = (interrupted, None) if where == "denoiser" else (denoise, interrupt)
    with pytest.raises(KeyboardInterrupt):
        sample(TABLES["pndm"], model, latents, callback=callback)
    assert np.array_equal(latents, LATENTS)
    assert np.array_equal(sample(TABLES["pndm"], denoise, latents), wanted)


@pytest.mark.parametrize("name", TABLES)
def test_steps_allocate_no_latents(name):
    latents = np.zeros((1, 4, 128, 128), np.float32)
    outputs = (np.ones_like(latents), np.zeros_like(latents))
    peaks = []

    def constant(sample, timestep, guided):
        peaks.append(tracemalloc.get_traced_memory()[1] - tracemalloc.get_traced_memory()[0])
        tracemalloc.reset_peak()
        return outputs

    tracemalloc.start()
    try:
        sample(TABLES[name], constant, latents, guidance=2.0, noise=Generator(0))
    finally:
        tracemalloc.stop()
    assert max(peaks[1:]) < latents.nbytes / 4


def test_latents_in_another_memory_order():
    transposed = np.ascontiguousarray(LATENTS.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2)
    assert not transposed.flags.c_contiguous
    assert np.array_equal(
        sample(TABLES["euler"], denoise, transposed), sample(TABLES["euler"], denoise, LATENTS)
    )


@pytest.mark.parametrize("guidance", [float("nan"), float("inf"), -float("inf")])
def test_guidance_that_is_not_finite(guidance):
    with pytest.raises(InputError, match=f"guidance is {guidance}, wanted a finite number"):
        sample(TABLES["ddim"], denoise, LATENTS, guidance=guidance)


def test_noise_that_is_missing():
    with pytest.raises(InputError, match="'ddim' draws noise, got noise=None; pass a Generator"):
        sample(TABLES["ddim with noise"], denoise, LATENTS)


def test_latents_of_another_type():
    with pytest.raises(InputError, match="latents have dtype float64, wanted float32"):
        sample(TABLES["ddim"], denoise, LATENTS.astype(np.float64))


def test_unconditional_half_that_is_missing():
    def conditional(sample, timestep, guided):
        return denoise(sample, timestep, False)

    with pytest.raises(InputError, match="guidance is 2, but the denoiser gave no output without the prompt"):
        sample(TABLES["ddim"], conditional, LATENTS, guidance=2)
