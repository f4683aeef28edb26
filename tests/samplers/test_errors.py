"""What cannot be used is refused in one line that names the value, what is wanted, and the way out."""

from __future__ import annotations

import json

import numpy as np
import pytest

from fastdiff.errors import FastdiffError, InputError
from fastdiff.samplers import SAMPLERS, NoiseSchedule, make_table
from tests.samplers.configs import STABLE_DIFFUSION
from tests.samplers.oracle import EXACT


def error_of(config: dict, sampler: str = "ddim", steps: object = 20, **arguments: float) -> str:
    with pytest.raises(InputError) as caught:
        make_table(sampler, NoiseSchedule.from_config(config), steps, **arguments)
    assert isinstance(caught.value, FastdiffError)
    assert isinstance(caught.value, ValueError)
    message = str(caught.value)
    assert "\n" not in message
    return message


@pytest.mark.smoke
@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("dpmpp2m", "dpmpp_2m"),
        ("dpm++_2m", "dpmpp_2m"),
        ("DDIM", "ddim"),
        ("Euler", "euler"),
        ("eular", "euler"),
        ("pmdn", "pndm"),
        ("euler_a", "euler"),
    ],
)
def test_unknown_sampler_with_a_near_match(name, near):
    message = error_of(STABLE_DIFFUSION, name)
    assert message.startswith(f"unknown sampler '{name}'; did you mean ")
    assert near in message.removesuffix("fastdiff samplers lists all")
    assert message.endswith(f"fastdiff samplers lists all {len(SAMPLERS)}")


@pytest.mark.parametrize("name", ["", "heun3", "XXXX", None, 3])
def test_unknown_sampler(name):
    message = error_of(STABLE_DIFFUSION, name)
    assert message.startswith(f"unknown sampler {name!r}")
    assert "fastdiff samplers" in message


@pytest.mark.parametrize("sampler", EXACT)
@pytest.mark.parametrize("steps", [0, -1, -1000, 1001, 10**9])
def test_step_count_out_of_range(sampler, steps):
    assert error_of(STABLE_DIFFUSION, sampler, steps).startswith(f"steps is {steps}, wanted 1 to 1000")


@pytest.mark.parametrize("steps", [2.0, "20", None, True, float("nan")])
def test_step_count_that_is_no_integer(steps):
    assert (
        error_of(STABLE_DIFFUSION, "ddim", steps) == f"steps is {steps!r}, wanted an integer from 1 to 1000"
    )


def test_numpy_step_count():
    schedule = NoiseSchedule.from_config(STABLE_DIFFUSION)
    assert make_table("ddim", schedule, np.int32(7)) == make_table("ddim", schedule, 7)


@pytest.mark.parametrize("sampler", EXACT)
def test_timesteps_beyond_the_training(sampler):
    """steps_offset=1 moves the first of 1000 steps to timestep 1000: an index error in diffusers."""
    if sampler in ("euler", "dpmpp_2m"):
        config = {**STABLE_DIFFUSION, "timestep_spacing": "leading"}
    else:
        config = STABLE_DIFFUSION
    message = error_of(config, sampler, 1000)
    assert "use fewer steps" in message
    assert "1000" in message


@pytest.mark.parametrize("spacing", ["leading", "linspace"])
def test_dpmpp_needs_one_timestep_more_than_steps(spacing):
    message = error_of({"timestep_spacing": spacing}, "dpmpp_2m", 1000)
    assert message == (
        f"steps is 1000, but sampler 'dpmpp_2m' with timestep_spacing='{spacing}' wants at most 999 "
        "for this noise schedule; use fewer steps"
    )


@pytest.mark.parametrize("steps", [1, 2, 3])
def test_runge_kutta_start_needs_four_steps(steps):
    message = error_of({}, "pndm", steps)
    assert message.startswith(f"steps is {steps}, but sampler 'pndm' with a Runge-Kutta start")
    assert "wants 4 or more" in message


@pytest.mark.parametrize("eta", [-0.1, 1.1, float("nan"), float("inf")])
def test_eta_out_of_range(eta):
    assert error_of(STABLE_DIFFUSION, eta=eta) == f"eta is {eta}, wanted 0 to 1"


@pytest.mark.parametrize("sampler", ["dpmpp_2m", "euler", "pndm"])
def test_eta_for_a_sampler_without_noise(sampler):
    assert error_of(STABLE_DIFFUSION, sampler, eta=0.5) == (
        f"eta is 0.5, but sampler '{sampler}' adds no noise; use eta 0 or sampler 'ddim'"
    )


def test_pndm_cannot_predict_the_sample():
    message = error_of({"prediction_type": "sample", "skip_prk_steps": True}, "pndm")
    assert (
        message
        == "sampler 'pndm' cannot use prediction_type='sample'; use sampler 'ddim', 'euler' or 'dpmpp_2m'"
    )


def test_no_signal_to_divide_by():
    message = error_of({"rescale_betas_zero_snr": True})
    assert "prediction_type='epsilon' with rescale_betas_zero_snr=True" in message
    assert "use sampler 'euler' or 'dpmpp_2m'" in message


@pytest.mark.parametrize(
    ("sampler", "key", "value"),
    [
        ("flow_lcm", "scale_factors", [2.0]),
        ("flow_lcm", "invert_sigmas", True),
        ("dpmpp_2m_inverse", "use_flow_sigmas", True),
        ("dpmpp_2m_inverse", "sigma_min", 0.1),
    ],
)
def test_settings_that_would_change_the_picture(sampler, key, value):
    message = error_of({key: value}, sampler)
    assert f"{key}={value!r}" in message
    assert f"sampler '{sampler}'" in message
    assert "; " in message
    # The neutral value and null are no obstacle, nor is the key for a sampler whose class does not have it.
    make_table("ddim", NoiseSchedule.from_config({key: value}), 5)


@pytest.mark.parametrize(
    ("key", "value", "wanted"),
    [
        ("beta_schedule", "quadratic", "one of 'linear', 'scaled_linear', 'squaredcos_cap_v2'"),
        ("beta_schedule", None, "one of 'linear'"),
        ("prediction_type", "trigflow", "one of 'epsilon', 'v_prediction', 'sample'"),
        ("timestep_spacing", "even", "one of 'leading', 'trailing', 'linspace'"),
        ("num_train_timesteps", 0, "an integer of 2 or more"),
        ("num_train_timesteps", "1000", "an integer of 2 or more"),
        ("num_train_timesteps", 1000.0, "an integer of 2 or more"),
        ("num_train_timesteps", True, "an integer of 2 or more"),
        ("beta_start", -0.1, "a number above 0"),
        ("beta_start", float("nan"), "a number"),
        ("beta_end", "0.02", "a number"),
        ("beta_end", float("inf"), "a number above 0"),
        ("steps_offset", -1, "an integer of 0 or more"),
        ("set_alpha_to_one", "yes", "true or false"),
        ("clip_sample", 1, "true or false"),
        ("clip_sample_range", 0, "a number above 0"),
        ("rescale_betas_zero_snr", "false", "true or false"),
    ],
)
def test_wrong_values(key, value, wanted):
    message = error_of({key: value})
    assert message.startswith(f"scheduler config has {key}=")
    assert wanted in message


@pytest.mark.parametrize(
    ("sampler", "key", "value"),
    [
        ("euler", "final_sigmas_type", "one"),
        ("dpmpp_2m", "final_sigmas_type", None),
        ("dpmpp_2m", "solver_type", "bh3"),
        ("dpmpp_2m", "lambda_min_clipped", float("nan")),
        ("dpmpp_2m", "lower_order_final", "no"),
        ("pndm", "skip_prk_steps", 3),
        ("euler", "use_karras_sigmas", "true"),
    ],
)
def test_wrong_values_of_one_sampler(sampler, key, value):
    message = error_of({key: value}, sampler)
    assert f"{key}={value!r}" in message
    assert f"sampler '{sampler}' wants" in message


@pytest.mark.parametrize(
    ("betas", "message"),
    [
        ([0.1] * 5, "has shape (5,), wanted (4,)"),
        ([[0.1] * 4], "has shape (1, 4), wanted (4,)"),
        (0.1, "has shape (), wanted (4,)"),
        (["a", "b", "c", "d"], "is not a list of numbers"),
        ([[0.1], [0.2, 0.3]], "is not a list of numbers"),
        ([0.1, 0.2, 1.0, 0.1], "gives a beta of 1, wanted between 0 and 1"),
        ([0.1, 0.0, 0.1, 0.1], "gives a beta of 0, wanted between 0 and 1"),
        ([0.1, float("nan"), 0.1, 0.1], "gives a beta of nan, wanted between 0 and 1"),
        ([1e-12, 0.1, 0.1, 0.1], "add no noise at the first"),
    ],
)
def test_trained_betas(betas, message):
    found = error_of({"num_train_timesteps": 4, "trained_betas": betas}, steps=2)
    assert message in found
    assert "correct" in found


def test_betas_that_leave_no_signal():
    message = error_of({"beta_start": 0.9, "beta_end": 0.99})
    assert "leave no signal at the last" in message


def test_config_from_a_json_file():
    """Floats, null and the infinity that diffusers writes for lambda_min_clipped."""
    text = json.dumps({**STABLE_DIFFUSION, "lambda_min_clipped": -float("inf"), "variance_type": None})
    table = make_table("dpmpp_2m", NoiseSchedule.from_config(json.loads(text)), 20)
    assert table == make_table("dpmpp_2m", NoiseSchedule.from_config(STABLE_DIFFUSION), 20)
