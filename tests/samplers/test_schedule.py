"""Schedule arithmetic: against torch, and properties that hold for every configuration."""

from __future__ import annotations

import diffusers
import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from fastdiff.errors import InputError
from fastdiff.samplers import Generator, NoiseSchedule, make_table, sample, sampler_of
from fastdiff.samplers.spacing import karras_sigmas, sigma_to_timestep, spaced_timesteps
from tests.samplers.configs import BETAS, SPACINGS, STABLE_DIFFUSION
from tests.samplers.oracle import CLASSES, EXACT, table_run

DEFAULT_CPU = torch.backends.cpu.get_cpu_capability() == "DEFAULT"


@pytest.mark.skipif(DEFAULT_CPU, reason="torch's linspace rounds otherwise without fused multiply-add")
@pytest.mark.parametrize("count", [2, 3, 7, 33, 100, 1000, 4001])
@pytest.mark.parametrize("name", ["linear", "scaled_linear", "cosine"])
def test_betas_and_alphas_are_those_of_diffusers_to_the_bit(name, count):
    config = {**BETAS[name], "num_train_timesteps": count}
    theirs, ours = diffusers.DDIMScheduler.from_config(config), NoiseSchedule.from_config(config)
    assert ours.betas.tobytes() == theirs.betas.numpy().tobytes()
    assert ours.alphas_cumprod().tobytes() == theirs.alphas_cumprod.numpy().tobytes()
    assert ours.num_train_timesteps == count


def test_trained_betas_are_those_of_diffusers_to_the_bit():
    theirs = diffusers.DDIMScheduler.from_config(BETAS["trained"])
    ours = NoiseSchedule.from_config(BETAS["trained"])
    assert ours.alphas_cumprod().tobytes() == theirs.alphas_cumprod.numpy().tobytes()


@pytest.mark.parametrize("name", BETAS)
def test_zero_terminal_snr(name):
    config = {**BETAS[name], "rescale_betas_zero_snr": True}
    theirs, ours = diffusers.DDIMScheduler.from_config(config), NoiseSchedule.from_config(config)
    rescaled = ours.alphas_cumprod(zero_terminal_snr=True)
    np.testing.assert_allclose(rescaled, theirs.alphas_cumprod.numpy(), rtol=1e-5, atol=1e-7)
    assert rescaled[-1] == 0
    assert rescaled[0] == pytest.approx(ours.alphas_cumprod()[0], rel=1e-6)
    assert ours.sigmas(zero_terminal_snr=True)[-1] == pytest.approx(4096, rel=1e-6)


def test_names_of_diffusers_classes():
    for name, class_name in CLASSES.items():
        assert sampler_of({"_class_name": class_name}) == name
    assert sampler_of({"_class_name": "VQDiffusionScheduler"}) is None
    assert sampler_of({}) is None


def test_config_is_kept_and_not_changed():
    config = dict(STABLE_DIFFUSION)
    schedule = NoiseSchedule.from_config(config)
    assert config == STABLE_DIFFUSION == schedule.config


@st.composite
def configurations(draw):
    """A config and a step count that every sampler may be asked for; some are refused."""
    train_steps = draw(st.integers(2, 1200))
    betas = draw(st.sampled_from(["linear", "scaled_linear", "cosine", "trained"]))
    start = draw(st.floats(1e-5, 5e-3))
    config = {
        "num_train_timesteps": train_steps,
        "prediction_type": draw(st.sampled_from(["epsilon", "v_prediction", "sample"])),
        "timestep_spacing": draw(st.sampled_from(SPACINGS)),
        "steps_offset": draw(st.integers(0, 2)),
        "set_alpha_to_one": draw(st.booleans()),
        "skip_prk_steps": draw(st.booleans()),
        "use_karras_sigmas": draw(st.booleans()),
        "final_sigmas_type": draw(st.sampled_from(["zero", "sigma_min"])),
        "solver_type": draw(st.sampled_from(["midpoint", "heun"])),
        "clip_sample": draw(st.booleans()),
    }
    if betas == "cosine":
        config["beta_schedule"] = "squaredcos_cap_v2"
    elif betas == "trained":
        seed = draw(st.integers(0, 1000))
        config["trained_betas"] = np.random.default_rng(seed).uniform(1e-4, 0.02, train_steps).tolist()
    else:
        config |= {"beta_schedule": betas, "beta_start": start, "beta_end": draw(st.floats(start, 0.03))}
    return config, draw(st.integers(1, train_steps))


def table_or_skip(sampler, config, steps, eta=0.0):
    """The table; configurations that are refused are not counted as examples."""
    try:
        return make_table(sampler, NoiseSchedule.from_config(config), steps, eta=eta)
    except InputError:
        assume(False)


@settings(deadline=None, max_examples=80)
@given(configurations())
def test_alphas_fall_and_sigmas_rise(configuration):
    config, _ = configuration
    schedule = NoiseSchedule.from_config(config)
    alpha_bar, sigmas = schedule.alphas_cumprod(), schedule.sigmas()
    assert alpha_bar.dtype == sigmas.dtype == np.float32
    assert 0 < alpha_bar[-1] < alpha_bar[0] < 1
    assert (np.diff(alpha_bar) < 0).all()
    assert (np.diff(sigmas) > 0).all()


@settings(deadline=None, max_examples=200)
@given(
    spacing=st.sampled_from(SPACINGS),
    train_steps=st.integers(2, 3000),
    share=st.floats(0, 1),
    offset=st.integers(0, 3),
)
def test_timesteps_descend_within_the_training(spacing, train_steps, share, offset):
    steps = 1 + int(share * (train_steps - 1))
    try:
        timesteps = spaced_timesteps(spacing, train_steps, steps, offset)
    except InputError:
        assert spacing == "leading"
        assert (steps - 1) * (train_steps // steps) + offset >= train_steps
        return
    assert len(timesteps) == steps
    assert (np.diff(timesteps) < 0).all()
    assert 0 <= timesteps[-1] <= timesteps[0] < train_steps
    if spacing != "linspace":
        assert (timesteps == timesteps.round()).all()


@settings(deadline=None, max_examples=60)
@given(sampler=st.sampled_from(EXACT), configuration=configurations(), eta=st.sampled_from([0.0, 0.3, 1.0]))
def test_tables_are_finite_and_refer_to_saved_slots(sampler, configuration, eta):
    config, steps = configuration
    table = table_or_skip(sampler, config, steps, eta if sampler == "ddim" else 0.0)
    train_steps = config["num_train_timesteps"]
    assert table.is_finite()
    assert table.sampler == sampler
    assert all(0 <= t < train_steps for t in table.timesteps)
    if sampler != "pndm":
        assert (np.diff(table.timesteps) <= 0).all()
        assert table.evaluations == steps
    saved = set()
    for step in table.steps:
        assert {slot for slot, _ in step.history} <= saved
        saved |= {step.save_output, step.save_sample} - {None}
        assert all(slot < table.slots for slot in saved)
        assert len(step.history) <= 8  # what the kernel takes
        assert step.noise_coef is None or step.noise_coef >= 0
        assert 0 < step.input_scale <= 1


@settings(deadline=None, max_examples=60)
@given(sampler=st.sampled_from(EXACT), configuration=configurations())
def test_perfect_denoiser_stays_on_the_line(sampler, configuration):
    """A data set of one picture: the sample stays α·x₀ + σ·ε with one x₀ and one ε, whatever the settings.

    For DDIM and PNDM with "leading" timesteps: as in diffusers they always step by T // steps, so that with
    other spacings a step may end beside the timestep that follows.
    """
    config, steps = configuration
    config = {**config, "clip_sample": False, "prediction_type": "epsilon", "use_karras_sigmas": False}
    if sampler in ("ddim", "pndm"):
        config["timestep_spacing"] = "leading"
    steps = min(steps, 60)
    table = table_or_skip(sampler, config, steps)
    schedule = NoiseSchedule.from_config(config)
    epsilon = np.random.default_rng(0).standard_normal(7)
    x0 = np.random.default_rng(1).standard_normal(7)
    alpha_bar, sigmas = schedule.alphas_cumprod().astype(float), schedule.sigmas().astype(float)
    first = table.timesteps[0]
    if sampler == "euler":
        start = x0 + np.interp(first, np.arange(len(sigmas)), sigmas) * epsilon
    else:
        start = np.sqrt(alpha_bar[int(first)]) * x0 + np.sqrt(1 - alpha_bar[int(first)]) * epsilon
    *_, (_, x) = table_run(table, start / table.init_noise_sigma, lambda x, t: epsilon)
    if sampler in ("ddim", "pndm"):
        after = int(table.timesteps[-1]) - schedule.num_train_timesteps // steps
        beyond = 1.0 if config["set_alpha_to_one"] else alpha_bar[0]
        a = alpha_bar[after] if after >= 0 else beyond
    else:
        a = 1.0 if config["final_sigmas_type"] == "zero" else alpha_bar[0]
    wanted = np.sqrt(a) * x0 + np.sqrt(1 - a) * epsilon
    if sampler == "euler":
        wanted = wanted / np.sqrt(a)
    scale = np.sqrt(1 / alpha_bar[int(first)])
    assert np.abs(x - wanted).max() <= 2e-6 * scale


@settings(deadline=None, max_examples=20)
@given(sampler=st.sampled_from(EXACT), configuration=configurations(), guidance=st.floats(-3, 20))
def test_loop_runs_every_table(sampler, configuration, guidance):
    config, steps = configuration
    table = table_or_skip(sampler, config, min(steps, 30), 0.5 if sampler == "ddim" else 0.0)
    generator = Generator(0)
    latents = generator.randn((1, 4, 3, 5)) * np.float32(table.init_noise_sigma)
    zero = np.zeros_like(latents)
    result = sample(table, lambda x, t, guided: (zero, zero), latents, guidance=guidance, noise=generator)
    assert np.isfinite(result).all()


@given(low=st.floats(1e-3, 1.0), ratio=st.floats(1.1, 1e4), steps=st.integers(1, 200))
@settings(deadline=None)
def test_karras_levels(low, ratio, steps):
    sigmas = karras_sigmas(low, low * ratio, steps)
    assert len(sigmas) == steps
    assert (np.diff(sigmas) < 0).all()
    assert sigmas[0] == pytest.approx(low * ratio, rel=1e-9)
    if steps > 1:
        assert sigmas[-1] == pytest.approx(low, rel=1e-9)


def test_timestep_of_a_level_inverts_the_schedule():
    sigmas = NoiseSchedule.from_config(STABLE_DIFFUSION).sigmas()
    t = np.array([999.0, 500.0, 1.0, 0.0])
    np.testing.assert_allclose(sigma_to_timestep(sigmas[t.astype(int)].astype(float), sigmas), t, atol=1e-4)
    assert sigma_to_timestep(np.array([1e6]), sigmas)[0] == 999
    assert sigma_to_timestep(np.array([0.0]), sigmas)[0] == 0
