"""Cases whose answer is known without another implementation."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from fastdiff.samplers import NoiseSchedule, make_table
from fastdiff.zoo.mixture import GaussianMixture
from tests.compare import assert_close
from tests.samplers.configs import PREDICTIONS
from tests.samplers.exact import states
from tests.samplers.oracle import EXACT, table_run

START = np.random.default_rng(2).standard_normal((3, 5))
X0 = np.random.default_rng(3).standard_normal((3, 5))
BASE = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012, "clip_sample": False}


def level(schedule: NoiseSchedule, timestep: float, sampler: str) -> tuple[float, float]:
    """α and σ of the variance-preserving sample that the model sees at a timestep."""
    if sampler == "euler":
        sigmas = schedule.sigmas().astype(float)
        sigma = np.interp(timestep, np.arange(len(sigmas)), sigmas)
        return 1 / np.sqrt(sigma**2 + 1), sigma / np.sqrt(sigma**2 + 1)
    alpha_bar = float(schedule.alphas_cumprod()[round(timestep)])
    return np.sqrt(alpha_bar), np.sqrt(1 - alpha_bar)


def perfect(schedule: NoiseSchedule, sampler: str):
    """The denoiser of a data set that holds X0 alone."""

    def model(x, timestep):
        alpha, sigma = level(schedule, timestep, sampler)
        epsilon = (x - alpha * X0) / sigma
        return {"epsilon": epsilon, "v_prediction": alpha * epsilon - sigma * X0, "sample": X0}[
            schedule.prediction
        ]

    return model


@pytest.mark.parametrize("steps", [1, 4, 5, 20, 100])
@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("sampler", EXACT)
def test_perfect_denoiser_recovers_the_sample(sampler, prediction, steps):
    """With one picture in the data set ε is constant along a trajectory, so every solver is exact.

    But PNDM extrapolates what the model predicts, as diffusers does, and v is not constant.
    """
    if sampler == "pndm" and (prediction == "sample" or (prediction == "v_prediction" and steps > 1)):
        return
    config = {
        **BASE,
        "prediction_type": prediction,
        "set_alpha_to_one": True,
        "skip_prk_steps": True,
        "timestep_spacing": "trailing",
    }
    schedule = NoiseSchedule.from_config(config)
    *_, (_, x) = table_run(make_table(sampler, schedule, steps), START, perfect(schedule, sampler))
    assert_close(x, X0, rel_l2=2e-6)


def test_ddim_on_a_gaussian_is_a_product():
    """x is only scaled, by √(ᾱ'/ᾱ)·(1 - σ·e) + √(1 - ᾱ')·e per step with e = ε/x (Eq. 12 of the paper)."""
    schedule = NoiseSchedule.from_config({**BASE, "set_alpha_to_one": True})
    spread = 0.5
    alpha_bar = [
        *schedule.alphas_cumprod()[[900, 800, 700, 600, 500, 400, 300, 200, 100, 0]].astype(float),
        1.0,
    ]
    factor = 1.0
    for a, following in itertools.pairwise(alpha_bar):
        e = np.sqrt(1 - a) / (a * spread**2 + 1 - a)
        factor *= np.sqrt(following / a) * (1 - np.sqrt(1 - a) * e) + np.sqrt(1 - following) * e
    data = GaussianMixture(np.ones(1), np.zeros((1, 5)), np.array([spread]))
    assert_close(states(make_table("ddim", schedule, 10), data, START)[-1], factor * START, rel_l2=1e-12)


def test_eta_one_is_ancestral_sampling():
    """At every timestep, DDIM with η = 1 is DDPM: mean and posterior variance of Ho et al., Eq. 7 and 11."""
    schedule = NoiseSchedule.from_config({**BASE, "num_train_timesteps": 100, "set_alpha_to_one": True})
    table = make_table("ddim", schedule, 100, eta=1.0)
    alpha_bar = schedule.alphas_cumprod().astype(float)
    for t, step in zip(range(99, 0, -1), table.steps, strict=False):
        beta = 1 - alpha_bar[t] / alpha_bar[t - 1]
        variance = (1 - alpha_bar[t - 1]) / (1 - alpha_bar[t]) * beta
        assert step.noise_coef == pytest.approx(np.sqrt(variance), rel=1e-12)
        mean = (1 / np.sqrt(1 - beta), -beta / np.sqrt((1 - alpha_bar[t]) * (1 - beta)))
        assert (step.update.sample, step.update.output) == pytest.approx(mean, rel=1e-6)


def test_stable_diffusion_timesteps():
    """What every Stable Diffusion 1 pipeline prints for 5 steps."""
    config = {**BASE, "steps_offset": 1, "skip_prk_steps": True}
    schedule = NoiseSchedule.from_config(config)
    assert make_table("pndm", schedule, 5).timesteps == (801, 601, 601, 401, 201, 1)
    config["timestep_spacing"] = "leading"
    assert make_table("ddim", schedule, 5).timesteps == (801, 601, 401, 201, 1)
    assert make_table("euler", NoiseSchedule.from_config(config), 5).timesteps == (801, 601, 401, 201, 1)


def test_euler_starts_from_the_largest_noise_level():
    schedule = NoiseSchedule.from_config(BASE)
    assert make_table("euler", schedule, 20).init_noise_sigma == pytest.approx(14.6146, abs=1e-3)
    for sampler in ("ddim", "dpmpp_2m"):
        assert make_table(sampler, schedule, 20).init_noise_sigma == 1
