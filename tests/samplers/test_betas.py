"""The discrete chains against diffusers' classes."""

from __future__ import annotations

from typing import Any

import diffusers
import numpy as np
import pytest

from fastdiff.samplers import NoiseSchedule
from fastdiff.samplers.betas import CLASS_DEFAULTS, cumulative, shift_snr, zero_terminal_alpha_bar
from tests.samplers.diffusers_classes import scheduler_parameters

CHAIN_KEYS = {"num_train_timesteps", "beta_start", "beta_end", "beta_schedule"}
# The only classes that know these schedules.
OWNERS = {"sigmoid": "DDPMScheduler", "laplace": "DDPMScheduler", "exp": "HeunDiscreteScheduler"}


@pytest.mark.parametrize("count", [10, 333, 1000])
@pytest.mark.parametrize("name", OWNERS)
def test_rarer_schedules(name: str, count: int) -> None:
    config = {"beta_schedule": name, "num_train_timesteps": count, "beta_start": 0.0003, "beta_end": 0.01}
    theirs = getattr(diffusers, OWNERS[name])(**config)
    ours = NoiseSchedule.from_config(config)
    np.testing.assert_allclose(ours.betas, theirs.betas.numpy(), rtol=1e-6)
    np.testing.assert_allclose(ours.alphas_cumprod(), theirs.alphas_cumprod.numpy(), atol=2e-7)


@pytest.mark.parametrize("config", [{}, {"beta_schedule": "linear"}, {"rescale_betas_zero_snr": True}])
def test_shifted_signal_to_noise_ratio(config: dict[str, Any]) -> None:
    """As CogVideoX divides it: ᾱ'/(1 − ᾱ') is a third of ᾱ/(1 − ᾱ)."""
    plain = (
        diffusers.CogVideoXDDIMScheduler(**{**config, "snr_shift_scale": 1.0}).alphas_cumprod.double().numpy()
    )
    theirs = diffusers.CogVideoXDDIMScheduler(**config).alphas_cumprod.double().numpy()
    if "rescale_betas_zero_snr" in config:
        plain = diffusers.CogVideoXDDIMScheduler(snr_shift_scale=1.0).alphas_cumprod.numpy()
        ours = zero_terminal_alpha_bar(shift_snr(plain, 3.0))
        assert ours[-1] == 0
    else:
        ours = shift_snr(plain, 3.0)
        np.testing.assert_allclose(ours / (1 - ours) * 3, plain / (1 - plain), rtol=1e-9)
    np.testing.assert_allclose(ours, theirs, rtol=1e-6, atol=1e-9)


def test_missing_keys_mean_what_the_class_of_the_config_means() -> None:
    """For every scheduler class with a chain."""
    seen = 0
    for name, parameters in scheduler_parameters().items():
        if "beta_start" not in parameters and name not in CLASS_DEFAULTS:
            continue
        defaults = {key: parameters[key] for key in CHAIN_KEYS & parameters.keys()}
        ours = NoiseSchedule.from_config({"_class_name": name})
        theirs = NoiseSchedule.from_config(defaults)
        assert ours.betas.tobytes() == theirs.betas.tobytes(), name
        seen += 1
    assert seen > 20
    assert set(CLASS_DEFAULTS) <= set(scheduler_parameters())


def test_cumulative_product_is_that_of_the_betas() -> None:
    betas = NoiseSchedule.from_config({"beta_schedule": "sigmoid"}).betas
    np.testing.assert_allclose(cumulative(betas), np.cumprod(1 - betas.astype(float)), rtol=2e-5)
