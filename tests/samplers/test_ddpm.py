"""DDPM and unCLIP: against diffusers step by step."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from fastdiff.errors import InputError
from fastdiff.samplers import NoiseSchedule, Variance, make_table
from tests.samplers.configs import BETAS, PREDICTIONS, SPACINGS
from tests.samplers.oracle import assert_follows_diffusers, model

STEPS = (5, 10, 25, 50)
FIXED = ("fixed_small", "fixed_small_log", "fixed_large")
OTHER_BETAS = {"sigmoid": {"beta_schedule": "sigmoid"}, "laplace": {"beta_schedule": "laplace"}}


def with_variance(sample: np.ndarray, timestep: float) -> np.ndarray:
    """A model whose second half of channels is a variance: above 0 as "learned" needs it, below 1."""
    second = 0.5 + 0.4 * np.sin(np.arange(sample.size).reshape(sample.shape) + timestep / 90)
    return np.concatenate([model(sample, timestep), second], axis=1)


@pytest.mark.parametrize("class_name", ["DDPMScheduler", "DDPMParallelScheduler"])
@pytest.mark.parametrize("steps", STEPS)
def test_variance_types(class_name: str, steps: int) -> None:
    for i, variance_type in enumerate(FIXED):
        config = {"variance_type": variance_type, "prediction_type": PREDICTIONS[i]}
        assert_follows_diffusers(class_name, config, steps)
    for variance_type in ("learned", "learned_range"):
        table = assert_follows_diffusers(
            class_name, {"variance_type": variance_type}, steps, model=with_variance
        )
        assert table.variance_channels
        assert table.steps[0].variance is not None
        assert table.steps[-1].variance is None  # the step from timestep 0 draws nothing


@pytest.mark.parametrize("steps", STEPS)
def test_spacings_and_schedules(steps: int) -> None:
    betas = [*BETAS.values(), *OTHER_BETAS.values()]
    for i, config in enumerate(betas):
        spacing, offset = SPACINGS[i % 3], i % 2
        assert_follows_diffusers(
            "DDPMScheduler", {**config, "timestep_spacing": spacing, "steps_offset": offset}, steps
        )


@pytest.mark.parametrize("steps", STEPS)
@pytest.mark.parametrize(
    "config",
    [
        {"clip_sample": False},
        {"clip_sample_range": 0.4},
        {"thresholding": True, "dynamic_thresholding_ratio": 0.7, "sample_max_value": 1.3},
        {"rescale_betas_zero_snr": True, "prediction_type": "v_prediction", "timestep_spacing": "trailing"},
        {"rescale_betas_zero_snr": True, "prediction_type": "sample", "timestep_spacing": "linspace"},
    ],
)
def test_options(config: dict[str, Any], steps: int) -> None:
    assert_follows_diffusers("DDPMScheduler", config, steps)


@pytest.mark.parametrize("timesteps", [[999], [999, 400, 0], [950, 700, 450, 200, 10]])
def test_given_timesteps(timesteps: list[int]) -> None:
    assert_follows_diffusers(
        "DDPMScheduler",
        {},
        len(timesteps),
        options={"timesteps": timesteps},
        set_timesteps={"num_inference_steps": None, "timesteps": timesteps},
    )


def test_as_many_steps_as_timesteps() -> None:
    assert_follows_diffusers("DDPMScheduler", {"num_train_timesteps": 200, "beta_end": 0.1}, 200)


def test_fixed_large_log_is_the_large_variance() -> None:
    """diffusers takes the root of log β, which is NaN."""
    tables = [
        make_table("ddpm", NoiseSchedule.from_config({"variance_type": kind}), 10)
        for kind in ("fixed_large_log", "fixed_large")
    ]
    assert tables[0] == tables[1]
    with pytest.raises(AssertionError, match="relative error nan"):
        assert_follows_diffusers("DDPMScheduler", {"variance_type": "fixed_large_log"}, 10)


def test_learned_range_lies_between_the_fixed_ones() -> None:
    ranged, small, large = (
        make_table("ddpm", NoiseSchedule.from_config({"variance_type": kind}), 20)
        for kind in ("learned_range", "fixed_small", "fixed_large")
    )
    for row, low, high in zip(ranged.steps[:-1], small.steps, large.steps, strict=False):
        assert isinstance(row.variance, Variance)
        assert row.noise_coef == 1
        assert math.exp(row.variance.low / 2) == pytest.approx(low.noise_coef)
        assert math.exp(row.variance.high / 2) == pytest.approx(high.noise_coef)


@pytest.mark.parametrize("steps", STEPS)
@pytest.mark.parametrize(
    "config",
    [
        {},
        {"prediction_type": "sample", "clip_sample_range": 0.5},
        {"variance_type": "learned_range", "clip_sample": False},
    ],
)
def test_unclip(config: dict[str, Any], steps: int) -> None:
    """With the timestep of the next step, as diffusers' pipeline gives it; all 1000 timesteps use β
    itself."""

    def tell_next(scheduler: Any) -> None:
        original, following = scheduler.step, [*scheduler.timesteps[1:], None]
        calls = iter(following)

        def step(*arguments: Any, **options: Any) -> Any:
            return original(*arguments, prev_timestep=next(calls), **options)

        scheduler.step = step

    learned = config.get("variance_type") == "learned_range"
    assert_follows_diffusers(
        "UnCLIPScheduler", config, steps, prepare=tell_next, model=with_variance if learned else model
    )


def test_unclip_on_every_timestep() -> None:
    assert_follows_diffusers("UnCLIPScheduler", {"num_train_timesteps": 60}, 60)


@pytest.mark.parametrize(
    ("sampler", "config", "steps", "message"),
    [
        ("ddpm", {"variance_type": "fixed"}, 10, "variance_type='fixed'"),
        ("ddpm", {"rescale_betas_zero_snr": True}, 10, "leaves no signal at the first step"),
        ("unclip", {}, 1, "wants 2 or more"),
        ("unclip", {"prediction_type": "v_prediction"}, 10, "use sampler 'ddpm'"),
        ("unclip", {"variance_type": "fixed_large"}, 10, "variance_type='fixed_large'"),
        ("ddpm", {"timesteps": [10, 20]}, 2, "wanted numbers that decrease"),
        ("ddpm", {"timesteps": [20, 20]}, 2, "wanted numbers that decrease"),
        ("ddpm", {"timesteps": [1000, 0]}, 2, "wanted integers from 0 to 999"),
        ("ddpm", {"timesteps": [10.5, 0]}, 2, "wanted integers from 0 to 999"),
        ("ddpm", {"timesteps": [10, 0]}, 3, "ask for 2 steps"),
        ("ddpm", {"dynamic_thresholding_ratio": 1.5, "thresholding": True}, 3, "a number from 0 to 1"),
    ],
)
def test_refused(sampler: str, config: dict[str, Any], steps: int, message: str) -> None:
    with pytest.raises(InputError, match=message):
        make_table(sampler, NoiseSchedule.from_config(config), steps)
