"""DDIM, its inversion and CogVideoX's: against diffusers step by step, and there and back."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from fastdiff.errors import InputError
from fastdiff.samplers import NoiseSchedule, make_table
from tests.samplers.configs import BETAS, PREDICTIONS, SPACINGS
from tests.samplers.exact import MIXTURE, START, states
from tests.samplers.oracle import assert_follows_diffusers

STEPS = (5, 10, 25, 50)
CLIPPINGS: list[dict[str, Any]] = [
    {"clip_sample": False},
    {"clip_sample_range": 0.6},
    {"thresholding": True},
    {"thresholding": True, "dynamic_thresholding_ratio": 0.8, "sample_max_value": 1.5},
]


@pytest.mark.parametrize("class_name", ["DDIMScheduler", "DDIMParallelScheduler"])
@pytest.mark.parametrize("steps", STEPS)
@pytest.mark.parametrize("clipping", CLIPPINGS)
def test_eta_and_clipping(class_name: str, clipping: dict[str, Any], steps: int) -> None:
    for i, eta in enumerate((0.0, 0.3, 1.0)):
        for clipped in (False, True):
            assert_follows_diffusers(
                class_name,
                {**clipping, "prediction_type": PREDICTIONS[i]},
                steps,
                options={"eta": eta, "use_clipped_model_output": clipped},
                step_arguments={"eta": eta, "use_clipped_model_output": clipped},
            )


@pytest.mark.parametrize("steps", STEPS)
@pytest.mark.parametrize("spacing", ["leading", "trailing"])
@pytest.mark.parametrize("to_one", [True, False])
def test_inversion(spacing: str, to_one: bool, steps: int) -> None:
    for i, (prediction, betas) in enumerate(zip(PREDICTIONS[:2], BETAS.values(), strict=False)):
        config = {
            **betas,
            "prediction_type": prediction,
            "timestep_spacing": spacing,
            "set_alpha_to_one": to_one,
            "steps_offset": i,
            "clip_sample": bool(i),
            "clip_sample_range": 0.8,
        }
        assert_follows_diffusers("DDIMInverseScheduler", config, steps)


@pytest.mark.parametrize("steps", STEPS)
def test_inversion_of_other_predictions(steps: int) -> None:
    assert_follows_diffusers(
        "DDIMInverseScheduler",
        {"prediction_type": "sample", "set_alpha_to_one": False, "clip_sample": False},
        steps,
    )
    config = {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True, "clip_sample": False}
    assert_follows_diffusers("DDIMInverseScheduler", {**config, "timestep_spacing": "trailing"}, steps)


def test_there_and_back() -> None:
    """From pictures to noise and back again: the error of both falls with the steps, to little."""
    errors = []
    for steps in (25, 100, 400):
        schedule = NoiseSchedule.from_config(
            {**BETAS["scaled_linear"], "set_alpha_to_one": False, "clip_sample": False}
        )
        noise = states(make_table("ddim_inverse", schedule, steps), MIXTURE, START)[-1]
        back = states(make_table("ddim", schedule, steps), MIXTURE, noise)[-1]
        errors.append(np.abs(back - START).max())
    assert errors[2] < errors[1] / 3 < errors[0] / 9
    assert errors[2] < 0.03


@pytest.mark.parametrize("steps", STEPS)
@pytest.mark.parametrize(
    "config",
    [
        {},
        {"beta_schedule": "linear", "snr_shift_scale": 1.0, "set_alpha_to_one": False},
        {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True, "timestep_spacing": "trailing"},
        {"beta_schedule": "squaredcos_cap_v2", "prediction_type": "sample", "timestep_spacing": "linspace"},
        {"trained_betas": BETAS["trained"]["trained_betas"], "snr_shift_scale": 2.0, "steps_offset": 1},
    ],
)
def test_cogvideox(config: dict[str, Any], steps: int) -> None:
    assert_follows_diffusers("CogVideoXDDIMScheduler", config, steps)


def test_given_timesteps_are_followed() -> None:
    """As the next timesteps of the list, where diffusers has no such option: even ones give the same
    table."""
    schedule = NoiseSchedule.from_config({})
    leading = make_table("ddim", schedule, 10)
    given = make_table("ddim", schedule, 10, options={"timesteps": list(range(900, -1, -100))})
    assert given == leading


@pytest.mark.parametrize(
    ("sampler", "config", "message"),
    [
        ("ddim_inverse", {"timestep_spacing": "linspace"}, "one of 'leading', 'trailing'"),
        ("ddim_inverse", {"prediction_type": "sample"}, "set set_alpha_to_one to false"),
        ("ddim_inverse", {"rescale_betas_zero_snr": True}, "leaves no signal"),
        ("ddim_cogvideox", {"snr_shift_scale": 0}, "a number above 0"),
        ("ddim", {"use_clipped_model_output": 1}, "true or false"),
    ],
)
def test_refused(sampler: str, config: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        make_table(sampler, NoiseSchedule.from_config(config), 10)


@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("steps", [1, 1000])
def test_fewest_and_most_steps(spacing: str, steps: int) -> None:
    assert_follows_diffusers("DDIMScheduler", {"timestep_spacing": spacing}, steps, shape=(1, 1, 2))
