"""Solvers in σ on data with a known denoiser: order of convergence, exact moments of the stochastic ones."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest

from fastdiff.samplers import SAMPLERS, NoiseSchedule, StepTable, make_table
from tests.samplers.exact import (
    GAUSSIAN,
    MIXTURE,
    flow,
    marginal,
    moments,
    order_of,
    point_of,
    slope_of_error,
    states,
    trajectory,
)

CHAIN = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
EDM = {"sigma_data": 0.5}
RANGE = {"sigma_min": 0.05, "sigma_max": 20.0}


def maker(name: str, options: dict, config: dict = EDM) -> Callable[[int], StepTable]:
    schedule = NoiseSchedule.from_config({**config, **RANGE})
    return lambda steps: make_table(name, schedule, steps, options=options)


DETERMINISTIC = [
    ("euler_ancestral", {"eta": 0.0}, 1),
    ("restart", {"restart_preset": "none"}, 2),
    ("dpm2_ancestral", {"eta": 0.0}, 2),
    ("dpmpp_2s_ancestral", {"eta": 0.0}, 2),
    ("dpmpp_sde", {"eta": 0.0}, 2),
    ("dpmpp_sde", {"eta": 0.0, "r": 0.4}, 2),
    ("dpmpp_2m_sde_eta", {"eta": 0.0}, 2),
    ("dpmpp_2m_sde_eta", {"eta": 0.0, "solver_type": "heun"}, 2),
    ("dpmpp_3m_sde", {"eta": 0.0}, 2),
    ("er_sde", {"noise_scale": "ode", "solver_order": 1}, 1),
    ("er_sde", {"noise_scale": "ode", "solver_order": 2}, 2),
    ("er_sde", {"noise_scale": "ode", "solver_order": 3}, 2),
    ("edm_dpmpp", {"solver_order": 1, "lower_order_final": False}, 1),
    ("edm_dpmpp", {"lower_order_final": False}, 2),
    ("edm_dpmpp", {"lower_order_final": False, "solver_type": "heun"}, 2),
    ("edm_dpmpp", {"lower_order_final": False, "solver_order": 3}, 2),
]


@pytest.mark.parametrize(("name", "options", "order"), DETERMINISTIC)
def test_order_of_convergence(name, options, order):
    """On a mixture, evenly in log σ, up to the last evaluation; the step to σ = 0 is none of this. What
    samplers do with their default options is in test_orders.py and test_moments.py.

    The third order of DPM-Solver++ and ER-SDE is of second order: `multistep_sde` and `er_sde_steps` say why.
    """
    make = maker(name, {"sigma_spacing": "log_snr", **options})
    assert slope_of_error(make, (48, 96, 192), MIXTURE) == pytest.approx(order, abs=0.15)


@pytest.mark.parametrize(
    ("name", "options"),
    [("dpmpp_3m_sde", {"eta": 0.0}), ("edm_dpmpp", {"solver_order": 3, "lower_order_final": False})],
)
def test_third_order_when_mended(name, options):
    """From much noise, where the lower orders of the first steps hardly count."""
    make = maker(name, {"sigma_spacing": "log_snr", "exact_third_order": True, **options})
    assert slope_of_error(make, (96, 192, 384), MIXTURE) == pytest.approx(3, abs=0.15)


@pytest.mark.parametrize("name", ["euler", "heun", "dpm2", "dpmpp_2m_sde_eta", "res_multistep"])
def test_order_on_a_chain_with_karras_levels(name):
    """Networks that predict v for a chain of timesteps: the levels between the timesteps are no matter."""
    options = {"use_karras_sigmas": True, "sigma_max": 12.0, **({"eta": 0.0} if "sde_eta" in name else {})}
    make = maker(name, options, {**CHAIN, "prediction_type": "v_prediction"})
    assert slope_of_error(make, (48, 96, 192), GAUSSIAN) == pytest.approx(SAMPLERS[name].order, abs=0.15)


def lms(order: int, high: float) -> Callable[[int], StepTable]:
    return maker("lms", {"order": order, "sigma_spacing": "log_snr", "sigma_max": high})


def error_from_an_exact_start(table: StepTable) -> float:
    """Of LMS at the last evaluation, with exact samples and slopes in place of those of the first rows."""
    points = [point_of(step) for step in table.steps]
    x, wanted = trajectory(MIXTURE, points[0], points[-1])
    slots = {}
    for i, (here, there) in enumerate(pairwise(points[: table.slots + 1])):
        slots[i] = (x - MIXTURE.denoise(x, 1.0, here.sigma)) / here.sigma
        x = flow(MIXTURE, x, here, there)
    rest = replace(table, steps=table.steps[table.slots :])
    return float(np.abs(states(rest, MIXTURE, x, slots)[-2] - wanted).max())


@pytest.mark.parametrize("order", [2, 3, 4, 5])
def test_order_of_lms_from_an_exact_start(order):
    counts = (128, 192, 256)
    found = order_of(counts, [error_from_an_exact_start(lms(order, 4.0)(count)) for count in counts])
    assert found == pytest.approx(order, abs=0.15)


@pytest.mark.parametrize(("order", "measured"), [(1, 1), (2, 2), (3, 2)])
def test_order_of_lms_with_its_own_start(order, measured):
    """Where the first steps matter, at a low level, Euler's first step leaves an error of second order."""
    counts = (192, 384, 768)
    assert slope_of_error(lms(order, 1.0), counts, MIXTURE) == pytest.approx(measured, abs=0.15)


STOCHASTIC = [
    ("euler_ancestral", {"eta": 0.5}, 1),
    ("dpm2_ancestral", {"eta": 0.5}, 2),
    ("dpmpp_2s_ancestral", {"eta": 0.5}, 2),
    ("dpmpp_sde", {"eta": 0.5}, 2),
    ("dpmpp_sde", {"noise_sampler": "independent"}, 1),
    ("dpmpp_2m_sde_eta", {"eta": 0.5, "solver_type": "heun"}, 2),
    ("dpmpp_3m_sde", {"eta": 0.5}, 2),
    ("edm_dpmpp", {"algorithm_type": "sde-dpmsolver++", "solver_order": 1}, 1),
    ("edm_dpmpp", {"algorithm_type": "sde-dpmsolver++"}, 2),
    ("cosine_dpmpp_sde", {"lower_order_final": False}, 2),
    ("res_multistep_ancestral", {"eta": 0.5}, 2),
    ("er_sde", {"solver_order": 1}, 1),
    *(("er_sde", {"noise_scale": scale}, 2) for scale in ("er_sde_1", "er_sde_4")),
    *(("er_sde", {"noise_scale": scale, "solver_order": 2}, 2) for scale in ("er_sde_2", "er_sde_5")),
    ("er_sde", {"noise_scale": "sde"}, 2),
    ("edm_stochastic", {"s_churn": 10.0, "s_tmax": 10.0, "s_noise": 1.0}, 2),
    ("heun", {"s_churn": 10.0, "s_tmax": 10.0}, 2),
    ("dpm2", {"s_churn": 10.0, "s_tmax": 10.0}, 2),
    ("euler", {"s_churn": 10.0, "s_tmax": 10.0}, 1),
]


def error_of_moments(table: StepTable) -> tuple[float, float]:
    """Of mean and variance at the last evaluation's level, from the exact distribution at the first one's."""
    mean, variance = moments(replace(table, steps=table.steps[:-1]))
    wanted = marginal(point_of(table.steps[-1]))
    return abs(mean - wanted[0]), abs(variance - wanted[1])


@pytest.mark.parametrize(("name", "options", "order"), STOCHASTIC)
def test_moments_converge(name, options, order):
    """On Gaussian data, at every level: mean kept, and the variance's error falls at the stated order."""
    counts = (200, 400, 800)
    make = maker(name, {"sigma_spacing": "log_snr", **options})
    tables = [make(count) for count in counts]
    assert all(table.stochastic for table in tables)
    errors = [error_of_moments(table) for table in tables]
    assert max(error for error, _ in errors) <= 1e-12
    assert errors[-1][1] <= 2e-2
    assert order_of(counts, [error for _, error in errors]) == pytest.approx(order, abs=0.15)
