"""LCM, TCD and consistency models: against diffusers step by step."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from fastdiff.errors import InputError
from fastdiff.samplers import NoiseSchedule, Step, StepTable, make_table
from tests.samplers.configs import BETAS, PREDICTIONS
from tests.samplers.exact import point_of
from tests.samplers.oracle import assert_follows_diffusers

STEPS = (1, 2, 4, 5, 10, 25, 50)
LCM_OPTIONS: list[dict[str, Any]] = [
    {},
    {"original_inference_steps": 100, "timestep_scaling": 3.0},
    {"clip_sample": True, "clip_sample_range": 0.7},
    {"thresholding": True, "dynamic_thresholding_ratio": 0.8, "sample_max_value": 1.4},
    {"timestep_spacing": "trailing", "steps_offset": 1, "set_alpha_to_one": False},
    {"beta_schedule": "linear", "trained_betas": BETAS["trained"]["trained_betas"]},
    {"rescale_betas_zero_snr": True, "prediction_type": "v_prediction"},
]


@pytest.mark.parametrize("steps", STEPS)
@pytest.mark.parametrize("config", LCM_OPTIONS)
def test_lcm(config: dict[str, Any], steps: int) -> None:
    for prediction in PREDICTIONS:
        assert_follows_diffusers("LCMScheduler", {"prediction_type": prediction, **config}, steps)


@pytest.mark.parametrize("steps", STEPS)
@pytest.mark.parametrize("config", LCM_OPTIONS)
def test_tcd(config: dict[str, Any], steps: int) -> None:
    for prediction, eta in zip(PREDICTIONS, (0.0, 0.3, 1.0), strict=True):
        assert_follows_diffusers(
            "TCDScheduler",
            {"prediction_type": prediction, **config},
            steps,
            options={"eta": eta},
            step_arguments={"eta": eta},
        )


@pytest.mark.parametrize("class_name", ["LCMScheduler", "TCDScheduler"])
def test_strength_and_given_timesteps(class_name: str) -> None:
    for strength, steps in ((0.8, 4), (0.5, 5), (0.5, 25)):
        assert_follows_diffusers(
            class_name,
            {},
            steps,
            options={"strength": strength},
            set_timesteps={"strength": strength},
        )
    timesteps = [999, 700, 333, 20]
    assert_follows_diffusers(
        class_name,
        {},
        4,
        options={"timesteps": timesteps},
        set_timesteps={"num_inference_steps": None, "timesteps": timesteps},
    )


def test_gamma_is_eta() -> None:
    schedule = NoiseSchedule.from_config({})
    assert make_table("tcd", schedule, 4, options={"gamma": 0.6}) == make_table("tcd", schedule, 4, eta=0.6)
    assert make_table("tcd", schedule, 4) == make_table("tcd", schedule, 4, eta=0.3)
    assert not make_table("tcd", schedule, 4, eta=0.0).stochastic


MEAN, STD = 0.7, 0.6


def moments_of(
    table: StepTable, outputs: Callable[[Step], tuple[float, float]], variance: float
) -> tuple[float, float]:
    """Mean and variance where the model's output is gain·x + shift, from the right mean and ``variance``."""
    mean = MEAN * point_of(table.steps[0]).alpha
    for step in table.steps:
        assert step.estimate is None
        assert not step.history
        gain, shift = outputs(step)
        factor = step.update.sample + step.update.output * gain
        mean = factor * mean + step.update.output * shift
        variance = factor**2 * variance + (step.noise_coef or 0.0) ** 2
    return mean, variance


@pytest.mark.parametrize("steps", [1, 2, 8, 30])
def test_perfect_consistency_model(steps: int) -> None:
    """For data N(μ, s²) the exact consistency function makes exact samples, at every number of steps.

    It leads to the lowest level: f = μ + (x − μ)·√((s² + σ_min²)/(s² + σ²)).
    """
    schedule = NoiseSchedule.from_config({"num_train_timesteps": 40, "clip_denoised": False})
    table = make_table("consistency", schedule, steps)

    def outputs(step: Step) -> tuple[float, float]:
        point = point_of(step)
        kept = math.sqrt((STD**2 + 0.002**2) / (STD**2 + point.sigma**2))
        f = point.x0
        return (kept - f.sample) / f.output, MEAN * (1 - kept) / f.output

    mean, variance = moments_of(table, outputs, STD**2 + point_of(table.steps[0]).sigma ** 2)
    assert mean == pytest.approx(MEAN, rel=1e-9)
    assert variance == pytest.approx(STD**2 + 0.002**2, rel=1e-5)  # levels are float32


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("steps", [1, 2, 8, 50])
def test_perfect_latent_consistency_model(steps: int, prediction: str) -> None:
    """The same for f = c_skip·x + c_out·x₀, which leads to the data itself."""
    table = make_table("lcm", NoiseSchedule.from_config({"prediction_type": prediction}), steps)

    def outputs(step: Step) -> tuple[float, float]:
        point, scaled = point_of(step), 10 * step.timestep
        c_skip, c_out = 0.25 / (scaled**2 + 0.25), scaled / math.sqrt(scaled**2 + 0.25)
        kept = STD / math.hypot(point.alpha * STD, point.sigma)
        x0 = point.x0
        gain = (kept - c_skip - c_out * x0.sample) / (c_out * x0.output)
        return gain, MEAN * (1 - point.alpha * kept) / (c_out * x0.output)

    first = point_of(table.steps[0])
    found = moments_of(table, outputs, (first.alpha * STD) ** 2 + first.sigma**2)
    assert found == pytest.approx((MEAN, STD**2), rel=1e-9)


CONSISTENCY_OPTIONS: list[dict[str, Any]] = [
    {"num_train_timesteps": 60},
    {"num_train_timesteps": 151, "clip_denoised": False},
    {"num_train_timesteps": 80, "s_noise": 0.7, "rho": 5.0},
    {"num_train_timesteps": 50, "sigma_min": 0.01, "sigma_max": 20.0, "sigma_data": 0.8},
]


@pytest.mark.parametrize("steps", STEPS)
@pytest.mark.parametrize("config", CONSISTENCY_OPTIONS)
def test_consistency(config: dict[str, Any], steps: int) -> None:
    assert_follows_diffusers("CMStochasticIterativeScheduler", config, steps)


@pytest.mark.parametrize("timesteps", [[0], [22, 0], [17, 0], [106, 39, 12, 0], [39, 20, 3]])
def test_consistency_at_given_timesteps(timesteps: list[int]) -> None:
    assert_follows_diffusers(
        "CMStochasticIterativeScheduler",
        {} if timesteps[0] < 40 else {"num_train_timesteps": 151},
        len(timesteps),
        options={"timesteps": timesteps},
        set_timesteps={"num_inference_steps": None, "timesteps": timesteps},
    )


def test_consistency_function_keeps_the_lowest_level() -> None:
    """f(x, σ_min) = x, which makes the model's output consistent with itself."""
    options = {"timesteps": [39, 0]}
    table = make_table(
        "consistency", NoiseSchedule.from_config({"num_train_timesteps": 40}), 2, options=options
    )
    x0 = point_of(table.steps[-1]).x0
    assert (x0.sample, x0.output) == pytest.approx((1, 0), abs=1e-8)
    assert table.steps[-1].noise_coef == 0


def test_lcm_ends_at_the_consistency_function() -> None:
    """c_skip = 1 and c_out = 0 at timestep 0 (Eq. 7 of the paper)."""
    options = {"timesteps": [500, 0]}
    last = make_table("lcm", NoiseSchedule.from_config({}), 2, options=options).steps[-1]
    assert (last.update.sample, last.update.output) == (1, 0)


@pytest.mark.parametrize(
    ("sampler", "config", "steps", "message"),
    [
        ("lcm", {}, 51, "wants at most 50 for original_inference_steps=50"),
        ("tcd", {"strength": 0.1}, 6, "wants at most 5 for original_inference_steps=50 and strength=0.1"),
        ("lcm", {"strength": 1.5}, 2, "a number from 0 to 1"),
        ("lcm", {"original_inference_steps": 1001}, 4, "wants at most 1000"),
        ("lcm", {"timesteps": [500, 1], "strength": 0.5}, 2, "leave strength out"),
        ("lcm", {"timestep_scaling": 0}, 2, "a number above 0"),
        ("tcd", {"eta": 0.2, "gamma": 0.2}, 2, "keep one"),
        ("tcd", {"gamma": -0.2}, 2, "a number from 0 to 1"),
        ("tcd", {"rescale_betas_zero_snr": True}, 2, "leaves no signal"),
        ("consistency", {"num_train_timesteps": 40}, 41, "wants 1 to 40"),
        ("consistency", {"num_train_timesteps": 40, "timesteps": [40, 0]}, 2, "wanted integers from 0 to 39"),
        ("consistency", {"num_train_timesteps": 40, "sigma_min": 90.0}, 2, "wanted at most sigma_max"),
    ],
)
def test_refused(sampler: str, config: dict[str, Any], steps: int, message: str) -> None:
    with pytest.raises(InputError, match=message):
        make_table(sampler, NoiseSchedule.from_config(config), steps)


def test_equal_ends_are_one_level() -> None:
    config = {"num_train_timesteps": 40, "sigma_min": 2.0, "sigma_max": 2.0}
    table = make_table("consistency", NoiseSchedule.from_config(config), 3)
    assert [point_of(step).sigma for step in table.steps] == [2.0] * 3
    assert {step.noise_coef for step in table.steps} == {0.0}
    assert np.isfinite(list(table.steps[0].coefficients())).all()
