"""Flow matching: against diffusers step by step, and where it has no such option."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from fastdiff.errors import InputError
from fastdiff.samplers import NoiseSchedule, make_table
from tests.samplers.exact import point_of
from tests.samplers.oracle import assert_follows_diffusers

STEPS = (5, 10, 25, 50)
EULER = "FlowMatchEulerDiscreteScheduler"
PLACED: list[dict[str, Any]] = [
    {},
    {"shift": 3.0},
    {"shift": 1.7, "num_train_timesteps": 400},
    {"shift_terminal": 0.1},
    {"invert_sigmas": True, "shift": 2.0},
    {"use_karras_sigmas": True},
    {"use_exponential_sigmas": True, "shift": 2.5},
    {"use_beta_sigmas": True, "invert_sigmas": True},
]
DYNAMIC: list[dict[str, Any]] = [
    {},
    {"time_shift_type": "linear"},
    {"base_shift": 0.3, "max_shift": 0.9, "shift_terminal": 0.05},
    {"base_image_seq_len": 100, "max_image_seq_len": 900, "use_beta_sigmas": True},
]


@pytest.mark.parametrize("steps", STEPS)
@pytest.mark.parametrize("config", PLACED)
def test_placement(config: dict[str, Any], steps: int) -> None:
    assert_follows_diffusers(EULER, config, steps)
    if "invert_sigmas" not in config:
        assert_follows_diffusers(EULER, {**config, "stochastic_sampling": True}, steps)
        assert_follows_diffusers("FlowMatchLCMScheduler", config, steps)


@pytest.mark.parametrize("steps", STEPS)
@pytest.mark.parametrize("config", DYNAMIC)
def test_dynamic_shift(config: dict[str, Any], steps: int) -> None:
    config = {"use_dynamic_shifting": True, **config}
    for class_name in (EULER, "FlowMatchLCMScheduler"):
        assert_follows_diffusers(class_name, config, steps, options={"mu": 0.8}, set_timesteps={"mu": 0.8})


def test_shift_of_a_picture_size() -> None:
    """Flux's: base_shift at base_image_seq_len tokens, max_shift at max_image_seq_len."""
    schedule = NoiseSchedule.from_config({"use_dynamic_shifting": True})
    for tokens, mu in ((256, 0.5), (4096, 1.15), (2176, 0.825)):
        by_size = make_table("flow_euler", schedule, 7, options={"image_seq_len": tokens})
        assert by_size.timesteps == pytest.approx(
            make_table("flow_euler", schedule, 7, options={"mu": mu}).timesteps
        )
    # Exponential shift by mu is static shift by e^mu, but for the lowest level, which is shifted but once.
    given = {"sigmas": [1.0, 0.6, 0.2]}
    static = NoiseSchedule.from_config({"shift": math.e})
    assert make_table("flow_euler", schedule, 3, options={"mu": 1, **given}).timesteps == pytest.approx(
        make_table("flow_euler", static, 3, options=given).timesteps
    )


@pytest.mark.parametrize("inverted", [False, True])
def test_given_levels_and_timesteps(inverted: bool) -> None:
    sigmas, timesteps = [1.0, 0.8, 0.33, 0.05], [1000.0, 700.0, 400.0, 30.0]
    config = {"shift": 2.0, "invert_sigmas": inverted}
    for given in (
        {"sigmas": sigmas},
        {"timesteps": timesteps},
        {"sigmas": sigmas, "timesteps": timesteps},
    ):
        assert_follows_diffusers(EULER, config, 4, options=given, set_timesteps=given)


@pytest.mark.parametrize("steps", [1, 2, *STEPS])
def test_heun(steps: int) -> None:
    for config in ({}, {"shift": 3.0}, {"num_train_timesteps": 200}):
        table = assert_follows_diffusers("FlowMatchHeunDiscreteScheduler", config, steps)
        assert table.evaluations == 2 * steps - 1


@pytest.mark.parametrize("steps", STEPS)
@pytest.mark.parametrize(
    "churn",
    [
        {"s_churn": 10.0},
        {"s_churn": 3.0, "s_tmin": 0.2, "s_tmax": 0.7, "s_noise": 1.1},
        {"s_churn": 500.0},
    ],
)
def test_heun_with_churn(churn: dict[str, float], steps: int) -> None:
    assert_follows_diffusers(
        "FlowMatchHeunDiscreteScheduler", {"shift": 2.0}, steps, options=churn, step_arguments=churn
    )


@pytest.mark.parametrize("steps", STEPS)
@pytest.mark.parametrize(
    "config",
    [{}, {"eta": 0.0}, {"eta": 0.5, "s_noise": 0.8}, {"s_noise": 0.0}, {"num_train_timesteps": 300}],
)
def test_ancestral(config: dict[str, Any], steps: int) -> None:
    assert_follows_diffusers("LTXEulerAncestralRFScheduler", config, steps)


@pytest.mark.parametrize("steps", [1, 1000, 1500])
def test_time_is_continuous(steps: int) -> None:
    table = assert_follows_diffusers(EULER, {"shift": 3.0}, steps, shape=(1, 1, 2))
    assert point_of(table.steps[0]).sigma == 1


def test_other_placements() -> None:
    """Of the levels between the highest and the lowest, which diffusers' class does not have."""
    for spacing in ("log_snr", "polyexponential"):
        options = {"sigma_spacing": spacing, "sigma_min": 0.01, "sigma_max": 0.99}
        table = make_table("flow_euler", NoiseSchedule.from_config({}), 9, options=options)
        levels = np.array([point_of(step).sigma for step in table.steps])
        np.testing.assert_allclose(levels, np.geomspace(0.99, 0.01, 9), rtol=1e-6)


@pytest.mark.parametrize(
    ("sampler", "config", "steps", "message"),
    [
        ("flow_euler", {"use_dynamic_shifting": True}, 5, "set option image_seq_len"),
        ("flow_euler", {"time_shift_type": "quadratic"}, 5, "one of 'exponential', 'linear'"),
        ("flow_euler", {"use_dynamic_shifting": True, "time_shift_type": "linear", "mu": -1}, 5, "mu is -1"),
        ("flow_euler", {"shift": 0}, 5, "a number above 0"),
        ("flow_euler", {"shift_terminal": 1.0}, 5, "wanted between 0 and 1"),
        ("flow_euler", {"shift_terminal": 0.1}, 1, "use 2 steps or more"),
        ("flow_euler", {"stochastic_sampling": True, "invert_sigmas": True}, 5, "ends in noise; set it"),
        ("flow_lcm", {"invert_sigmas": True}, 5, "ends in noise; set it"),
        ("flow_euler", {"use_karras_sigmas": True, "use_beta_sigmas": True}, 5, "keep one"),
        ("flow_euler", {"sigmas": [1.2, 0.5]}, 2, "wanted at most 1"),
        ("flow_euler", {"sigmas": [0.5, 0.5]}, 2, "wanted numbers that decrease"),
        ("flow_euler", {"sigma_spacing": "align_your_steps"}, 5, "no levels for flow matching"),
        ("flow_euler", {"use_karras_sigmas": True, "sigma_min": 0.5, "sigma_max": 0.2}, 5, "in this order"),
        ("flow_euler", {"prediction_type": "epsilon", "invert_sigmas": True}, 5, "wanted 'flow_prediction'"),
        ("flow_lcm", {"scale_factors": [2.0]}, 5, "scale_factors"),
        ("flow_heun", {"s_churn": "much"}, 5, "wants a number"),
        ("flow_heun", {"s_churn": -1.0}, 5, "a number from 0 to inf"),
        ("flow_ancestral", {"s_noise": -1.0}, 5, "a number from 0 to inf"),
        (
            "flow_euler",
            {"use_dynamic_shifting": True, "image_seq_len": 10, "max_image_seq_len": 256},
            5,
            "wanted two sizes",
        ),
    ],
)
def test_refused(sampler: str, config: dict[str, Any], steps: int, message: str) -> None:
    with pytest.raises(InputError, match=message):
        make_table(sampler, NoiseSchedule.from_config(config), steps)


def test_equal_ends_are_one_level() -> None:
    config = {"use_karras_sigmas": True, "sigma_min": 0.5, "sigma_max": 0.5}
    table = make_table("flow_euler", NoiseSchedule.from_config(config), 4)
    assert [point_of(step).sigma for step in table.steps] == [0.5] * 4
