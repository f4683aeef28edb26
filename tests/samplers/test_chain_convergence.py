"""Samplers on chains and on straight lines where the answer is known: order of convergence, exact moments.

Chains with chosen levels have 7680 timesteps, so that even ones of them are even in what the levels are.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
import pytest

from fastdiff.samplers import NoiseSchedule, StepTable, make_table
from fastdiff.samplers.ddim import ddim_step
from fastdiff.samplers.flow_path import flow_points
from tests.samplers.exact import GAUSSIAN, MEAN, MIXTURE, STD, moments, order_of, slope_of_error

TIMESTEPS = 7680
COUNTS = (96, 192, 384)


def chain(levels: np.ndarray) -> NoiseSchedule:
    """The chain with the levels σ/α, which rise; sampling ends at the lowest."""
    alpha_bar = 1 / (1 + levels**2)
    betas = 1 - alpha_bar / np.concatenate([[1.0], alpha_bar[:-1]])
    return NoiseSchedule.from_config(
        {
            "num_train_timesteps": len(levels),
            "trained_betas": betas.tolist(),
            "set_alpha_to_one": False,
            "clip_sample": False,
        }
    )


LOG_SNR = chain(np.geomspace(0.05, 20, TIMESTEPS))
LOW_END = chain(np.geomspace(1e-3, 20, TIMESTEPS))
EVEN = chain(np.linspace(0.5, 5, TIMESTEPS))
FLOW = NoiseSchedule.from_config({})


def on_line(steps: int, low: float = 0.02, high: float = 0.98) -> dict[str, Any]:
    return {"sigmas": np.linspace(high, low, steps).tolist()}


@pytest.mark.parametrize(
    ("sampler", "order", "options"),
    [
        ("tcd", 1, {"gamma": 0.0, "original_inference_steps": TIMESTEPS}),
        ("pndm", 2, {"skip_prk_steps": True}),
    ],
)
def test_order_on_a_chain(sampler: str, order: int, options: dict[str, Any]) -> None:
    """Steps even in λ. Default options: test_orders.py."""
    slope = slope_of_error(lambda n: make_table(sampler, LOG_SNR, n, options=options), COUNTS, MIXTURE)
    assert slope == pytest.approx(order, abs=0.15)


@pytest.mark.parametrize("shift", [1.0, 3.0])
@pytest.mark.parametrize(
    ("sampler", "order", "options"),
    [("flow_euler", 1, {}), ("flow_heun", 2, {}), ("flow_ancestral", 1, {"eta": 0.0})],
)
def test_order_on_a_line(sampler: str, order: int, options: dict[str, Any], shift: float) -> None:
    counts = (192, 384, 576) if shift > 1 else COUNTS

    def table(n: int) -> StepTable:
        return make_table(sampler, FLOW, n, options={**options, **on_line(n), "shift": shift})

    assert slope_of_error(table, counts, MIXTURE) == pytest.approx(order, abs=0.15)


def test_f_pndm_has_order_four_on_even_levels() -> None:
    """Where its constant weights are those of Adams and Bashforth for the variable of integration, σ/α."""
    slope = slope_of_error(lambda n: make_table("f_pndm", EVEN, n), COUNTS, GAUSSIAN)
    assert slope == pytest.approx(4, abs=0.15)


@pytest.mark.parametrize("skip", [True, False])
def test_pndm_of_outputs_v_has_order_one(skip: bool) -> None:
    """diffusers' class turns a mean of several v into ε as if it were the last; "plms" turns each one."""
    options = {"prediction_type": "v_prediction", "skip_prk_steps": skip}
    for sampler, order in (("pndm", 1), ("plms" if skip else "f_pndm", 2)):
        own = options if sampler == "pndm" else {"prediction_type": "v_prediction"}
        slope = slope_of_error(
            lambda n, s=sampler, o=own: make_table(s, LOG_SNR, n, options=o), COUNTS, GAUSSIAN
        )
        assert slope == pytest.approx(order, abs=0.15)


def moment_errors(make: Callable[[int], StepTable], alpha: float, sigma: float) -> np.ndarray:
    """Errors of mean and variance at the level (alpha, sigma), by step count."""
    found = np.array([moments(make(count), MEAN, STD) for count in COUNTS])
    return np.abs(found - [alpha * MEAN, (alpha * STD) ** 2 + sigma**2])


def assert_moments(errors: np.ndarray, order: float = 1.0) -> None:
    """The mean is exact at every step count, the variance converges."""
    assert (errors[:, 0] < 1e-8).all()
    assert order_of(COUNTS, errors[:, 1]) == pytest.approx(order, abs=0.15)
    assert errors[-1, 1] < 0.04 * STD**2


@pytest.mark.parametrize("eta", [0.0, 0.3, 0.7, 1.0])
def test_moments_of_ddim(eta: float) -> None:
    alpha_bar = float(LOW_END.alphas_cumprod()[0])
    errors = moment_errors(
        lambda n: make_table("ddim", LOW_END, n, eta=eta), alpha_bar**0.5, (1 - alpha_bar) ** 0.5
    )
    assert_moments(errors)


def test_moments_of_ddpm_with_large_variances() -> None:
    options = {"variance_type": "fixed_large"}
    errors = moment_errors(lambda n: make_table("ddpm", LOW_END, n, options=options), 1.0, 0.0)
    assert_moments(errors)


def test_moments_on_a_line() -> None:
    """Ends in the predicted sample at σ = 10⁻⁴, whose variance is short by no more than that squared."""

    def table(n: int) -> StepTable:
        return make_table("flow_ancestral", FLOW, n, eta=0.5, options=on_line(n, 1e-4, 0.9999))

    assert_moments(moment_errors(table, 1.0, 0.0))


def test_stochastic_ddim_on_a_line() -> None:
    """The chain's solvers hold for points of any process."""

    def table(n: int) -> StepTable:
        settings = NoiseSchedule.from_config(on_line(n, 1e-4, 0.9999)).settings("test")
        points = flow_points(settings, n)
        rows = [ddim_step(point, end, 0.8) for point, end in pairwise(points)]
        return StepTable("test", tuple(rows))

    assert_moments(moment_errors(table, 1.0, 0.0))


@pytest.mark.parametrize("steps", [1, 3, 50, 1000])
def test_large_variance_is_exact_for_unit_data(steps: int) -> None:
    """For N(μ, 1) the reverse of a noising step has variance β whatever its length (Ho et al., section 3.2),
    so that only the last step, which draws nothing, takes away what timestep 0 has of noise."""
    config = {"clip_sample": False, "variance_type": "fixed_large", "timestep_spacing": "trailing"}
    schedule = NoiseSchedule.from_config(config)
    table = make_table("ddpm", schedule, steps)
    mean, variance = moments(table, MEAN, 1.0)
    last = float(schedule.alphas_cumprod()[int(table.timesteps[-1])])
    noise = 0.0 if steps == 1000 else table.steps[-1].noise_coef or 0.0
    assert mean == pytest.approx(MEAN, rel=1e-9)
    assert variance - noise**2 == pytest.approx(last, rel=1e-9)


@pytest.mark.parametrize("steps", [1, 4, 50])
@pytest.mark.parametrize(
    ("sampler", "options"),
    [
        ("ddim", {}),
        ("ddim", {"eta": 1.0}),
        ("ddpm", {}),
        ("plms", {"set_alpha_to_one": True}),
        ("s_pndm", {"set_alpha_to_one": True}),
        ("f_pndm", {"set_alpha_to_one": True}),
        ("ipndm", {"set_alpha_to_one": True}),
        ("flow_euler", {}),
        ("flow_euler", {"stochastic_sampling": True}),
        ("flow_heun", {}),
        ("flow_lcm", {}),
        ("flow_ancestral", {}),
    ],
)
def test_one_picture_is_recovered_exactly(sampler: str, options: dict[str, Any], steps: int) -> None:
    """Small variances draw nothing that the next prediction does not take away."""
    config = {"beta_schedule": "scaled_linear", "beta_end": 0.012, "clip_sample": False, **options}
    if (sampler, steps) == ("f_pndm", 1):
        return  # refused
    mean, variance = moments(make_table(sampler, NoiseSchedule.from_config(config), steps), MEAN, 1e-9)
    assert mean == pytest.approx(MEAN, rel=1e-8)
    assert variance < 1e-9
