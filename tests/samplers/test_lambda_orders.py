"""Order of convergence of the exponential integrators in λ, and moments of their stochastic forms.

On a mixture of Gaussians the denoiser is exact and the ODE can be solved to 13 digits. Two grids:

- "even": even in λ, as in test_orders.py, which has the default options. A multistep method starts with one
  step of order 1, whose error of h² counts once, so that no method without corrector is better than order 2,
  and with corrector, which makes that first step one of order 2, than order 3.
- "growing": λ is quadratic in the step's number. The first steps are shorter by another factor of 1/n, which
  makes their errors h⁴ and h⁶ and shows the order of the method itself.

A corrector of order p adds 1 to a predictor of order p; the sample before the last evaluation, where errors
are measured, has not been corrected, which costs a local error of its order, not a global one.
"""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest

from fastdiff.samplers import NoiseSchedule, Point, StepTable, make_table
from tests.samplers.configs import BETAS
from tests.samplers.exact import (
    GAUSSIAN,
    MIXTURE,
    START,
    flow,
    marginal,
    moments,
    order_of,
    point_of,
    slope_of_error,
    states,
    trajectory,
)

SCHEDULE = NoiseSchedule.from_config(
    {**BETAS["scaled_linear"], "final_sigmas_type": "sigma_min", "lower_order_final": False}
)
HIGH, LOW = 10.0, 0.1


def grid(kind: str, count: int, low: float = LOW) -> list[float]:
    ramp = np.linspace(0, 1, count) ** {"even": 1, "growing": 2}[kind]
    return [float(level) for level in HIGH * (low / HIGH) ** ramp]


def slope(name: str, options: dict, kind: str, counts: tuple[int, ...]) -> float:
    def table(count: int) -> StepTable:
        return make_table(name, SCHEDULE, count, options={**options, "sigmas": grid(kind, count)})

    return slope_of_error(table, counts, MIXTURE)


def unipc(order: int, **options: object) -> tuple[str, dict]:
    return "unipc", {"solver_order": order, **options}


def sa_solver(predictor: int, corrector: int, kind: str) -> tuple[str, dict]:
    options = {"predictor_order": predictor, "corrector_order": corrector, "tau": 0.0}
    return "sa_solver", {**options, "algorithm_type": f"{kind}_prediction"}


FAMILIES = ("dpmpp", "dpm_solver")
HEUN, EXACT = {"solver_type": "heun"}, {"exact_third_order": True}
NOISE = {"predict_x0": False}
UNCORRECTED = {"disable_corrector": list(range(400))}
EVEN = [
    *(((f"{family}_{form}", HEUN), 2) for family, form in product(FAMILIES, ("2m", "2s"))),
    *(((f"{family}_3s", HEUN), 3) for family in FAMILIES),
    *(
        (unipc(order, solver_type=kind, predict_x0=x0), order + 1)
        for order, kind, x0 in product((1, 2), ("bh1", "bh2"), (True, False))
    ),
    *((unipc(order, **UNCORRECTED), order) for order in (1, 2)),
    *(
        (("deis", {"solver_order": order, "solver_type": kind}), order)
        for order, kind in product((1, 2), ("logrho", "rhoab"))
    ),
    *(
        (sa_solver(*orders, kind), max(orders))
        for orders, kind in product(((1, 0), (2, 0), (1, 2), (2, 3)), ("data", "noise"))
    ),
    (sa_solver(2, 2, "data"), 2),
]
GROWING = [
    (("dpmpp_3m", EXACT), 3),
    (("dpm_solver_3m", EXACT), 3),
    (unipc(3, **UNCORRECTED), 3),
    (unipc(4, **UNCORRECTED), 4),
    (unipc(4, solver_type="bh1"), 5),
    (unipc(4, solver_type="bh2"), 5),
    (("deis", {"solver_order": 3, "solver_type": "logrho"}), 3),
    (("deis", {"solver_order": 3, "solver_type": "rhoab"}), 3),
    (sa_solver(3, 0, "data"), 3),
    (sa_solver(4, 0, "data"), 4),
]
LATE = [
    (unipc(3), 4),
    (unipc(3, **NOISE), 4),
    (unipc(4, **NOISE), 5),
    (sa_solver(3, 4, "data"), 4),
    (sa_solver(3, 3, "noise"), 3),
]
"""As GROWING, with more steps: their asymptotic range begins late."""


def label(case: object) -> str | None:
    """Of a solver with its options."""
    if isinstance(case, tuple) and isinstance(case[0], str):
        return "-".join([case[0], *(str(value)[:9] for value in case[1].values())])
    return None


@pytest.mark.parametrize(("solver", "order"), EVEN, ids=label)
def test_order_on_even_steps(solver, order):
    # 3k + 1 and 2k + 1 steps end on a whole block of the singlestep solvers.
    assert slope(*solver, "even", (97, 145, 217)) == pytest.approx(order, abs=0.15)


@pytest.mark.parametrize(("solver", "order"), GROWING, ids=label)
def test_order_on_growing_steps(solver, order):
    assert slope(*solver, "growing", (97, 145, 217)) == pytest.approx(order, abs=0.15)


@pytest.mark.parametrize(("solver", "order"), LATE, ids=label)
def test_high_order_on_growing_steps(solver, order):
    assert slope(*solver, "growing", (289, 433, 577)) == pytest.approx(order, abs=0.15)


@pytest.mark.parametrize(
    ("solver", "order", "counts"),
    [(("dpmpp_3m", EXACT), 2, (385, 577)), (unipc(4, solver_type="bh1"), 3, (433, 577))],
    ids=label,
)
def test_the_start_limits_the_order_on_even_steps(solver, order, counts):
    assert slope(*solver, "even", counts) == pytest.approx(order, abs=0.15)


def variance_errors(name: str, options: dict, counts: tuple[int, ...]) -> list[float]:
    """Of the result for Gaussian data, against the marginal at the end of the path."""
    low = float(SCHEDULE.sigmas()[0])
    errors = []
    for count in counts:
        # SA-Solver's last step is one of length 0; the others' leads to the lowest level.
        levels = grid("even", count, low) if name == "sa_solver" else grid("even", count + 1, low)[:-1]
        table = make_table(name, SCHEDULE, count, options={**options, "sigmas": levels})
        alpha = 1 / np.hypot(1, low)
        mean, variance = moments(table)
        wanted = marginal(Point(0.0, alpha, low * alpha))
        assert mean == pytest.approx(wanted[0], abs=1e-6)
        errors.append(abs(variance - wanted[1]))
    return errors


def always(predictor: int, corrector: int, tau: float, kind: str = "data") -> tuple[str, dict]:
    name, options = sa_solver(predictor, corrector, kind)
    return name, {**options, "tau": tau, "tau_first": 1000, "tau_last": 0}


@pytest.mark.parametrize(
    ("solver", "order"),
    [
        (("dpmpp_2m_sde", HEUN), 2),
        (("dpmpp_3m_sde_diffusers", {}), 1),  # w₂ is too large by 1: see dpm_multistep
        (("dpmpp_3m_sde_diffusers", EXACT), 2),
        (("dpmpp_2s_sde", {}), 1),
        (("dpmpp_2s_sde", HEUN), 1),
        (("dpmpp_3s_sde", {}), 1),
        (("dpmpp_3s_sde", {**HEUN, **EXACT}), 1),
        (("dpm_solver_2m_sde", HEUN), 2),
        (always(1, 0, 0.5), 1),
        (always(2, 0, 0.5), 2),
        (always(2, 2, 0.5), 2),
        (always(2, 2, 1.0), 2),
        (always(3, 3, 1.0), 2),
        (always(2, 0, 1.0, "noise"), 2),
        (always(2, 2, 1.0, "noise"), 2),
    ],
    ids=label,
)
def test_weak_order_of_stochastic_forms(solver, order):
    """Mean and variance, exactly: the mean is right at once, and the variance's error falls at this order."""
    counts = (200, 280, 400)
    errors = variance_errors(*solver, counts)
    assert errors[-1] < 0.1
    assert order_of(counts, errors) == pytest.approx(order, abs=0.15)


def test_heun_of_order_3_along_the_sde_does_not_converge_in_diffusers():
    """Its w₂ is too large by 1 and the second derivative across a block is of order 1, by its own noise."""
    errors = variance_errors("dpmpp_3s_sde", HEUN, (100, 400))
    assert errors[1] > errors[0] > 1


def test_sa_solver_without_noise_is_unipc_of_its_orders():
    """A corrector of order 3 on a predictor of order 2 is UniPC-2, but for its last digits in x₀."""
    ours, theirs = (
        make_table(name, SCHEDULE, 12, options={**options, "sigmas": grid("even", 12)})
        for name, options in (sa_solver(2, 3, "data"), unipc(2, solver_type="bh1"))
    )
    start, _ = trajectory(MIXTURE, point_of(ours.steps[0]), point_of(ours.steps[-1]))
    found, wanted = (states(table, MIXTURE, start)[-2] for table in (ours, theirs))
    assert np.abs(found - wanted).max() < 1e-9


@pytest.mark.parametrize("name", ["dpmpp_2m_inverse", "dpm_solver_2m_inverse"])
def test_inversion_returns_to_the_noise(name):
    """From the end of the ODE back to its start, at order 2; then the way down again to the picture."""
    errors = []
    for count in (40, 80):
        table: StepTable = make_table(name, SCHEDULE, count, options={"sigma_spacing": "log_snr"})
        first, last = point_of(table.steps[0]), point_of(table.steps[-1])
        noise = np.hypot(last.alpha * 0.6, last.sigma) * START
        picture = flow(GAUSSIAN, noise, last, first)
        errors.append(np.abs(states(table, GAUSSIAN, picture)[-2] - noise).max())
    assert errors[0] / errors[1] == pytest.approx(4, rel=0.25)
