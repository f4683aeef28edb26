"""Paths, rows and options of the exponential integrators in λ, beyond what diffusers can say."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.integrate import quad

from fastdiff.errors import InputError
from fastdiff.samplers import (
    SAMPLERS,
    Linear,
    NoiseSchedule,
    Point,
    StepTable,
    Threshold,
    make_table,
    sampler_of,
)
from fastdiff.samplers.exponential import Form, interpolating, leg, phi
from fastdiff.samplers.moves import Move, rows_of
from fastdiff.samplers.spacing import align_your_steps, polyexponential_sigmas
from tests.samplers.configs import BETAS
from tests.samplers.exact import point_of
from tests.samplers.oracle import assert_follows_diffusers, dynamic_threshold, model, table_run
from tests.samplers.test_lambda_diffusers import ALL, INVERSE, MULTISTEP, UNIPC

SCHEDULE = NoiseSchedule.from_config(BETAS["scaled_linear"])
OURS = tuple(
    name for name, sampler in SAMPLERS.items() if any(class_name in ALL for class_name in sampler.classes)
)
START = np.random.default_rng(3).standard_normal((2, 3, 4))
FLOW = {"use_flow_sigmas": True, "prediction_type": "flow_prediction"}


def last_sample(table: StepTable) -> np.ndarray:
    *_, (_, x) = table_run(table, START, noise=lambda: np.zeros(START.shape))
    return x


@pytest.mark.parametrize("z", [-40.0, -3.0, -1.0, -0.3, -1e-9, 0.0, 1e-9, 0.5, 0.999, 1.0, 7.0])
@pytest.mark.parametrize("k", [1, 2, 3, 4, 5])
def test_phi(k, z):
    wanted, _ = quad(lambda v: math.exp((1 - v) * z) * v ** (k - 1) / math.factorial(k - 1), 0, 1)
    assert phi(k, z) == pytest.approx(wanted, rel=1e-9)


@pytest.mark.parametrize("form", Form)
@pytest.mark.parametrize("tau", [0.0, 0.7, 1.0])
def test_legs_move_a_polynomial_exactly(form, tau):
    """Against quadrature of the integral in the module's formula, for a cubic prediction."""
    s, t = Point(0, 0.6, 0.8), Point(0, 0.8, 0.6)
    motion = leg(s, t, form, tau)
    nodes = (0.0, -0.4, -0.9, 0.2)

    def cubic(u: float) -> float:
        return 0.3 + u - 2 * u**2 + 0.5 * u**3

    found = motion.scale * sum(c * cubic(u) for c, u in zip(interpolating(motion, nodes), nodes, strict=True))
    gain = 1 + tau**2
    if form is Form.DATA:
        wanted, _ = quad(lambda u: t.alpha * gain * math.exp(gain * (u - motion.h)) * cubic(u), 0, motion.h)
    else:
        wanted, _ = quad(lambda u: -t.sigma * gain * math.exp(motion.h - u) * cubic(u), 0, motion.h)
    assert found == pytest.approx(wanted, rel=1e-9)
    # What carries the noise and what is fresh make up the marginal's σ, along the ODE and the SDE in x₀.
    if form is Form.DATA:
        assert math.hypot(motion.carry * s.sigma, motion.noise) == pytest.approx(t.sigma)


@pytest.mark.parametrize("form", Form)
@pytest.mark.parametrize("threshold", [None, Threshold(0.8, 1.5)])
@pytest.mark.parametrize("seed", range(4))
def test_rows_of_any_moves(form, threshold, seed):
    """Rows with slots against the sum that a move is, with every sample and prediction at hand."""
    rng = np.random.default_rng(seed)
    points = [Point(float(i), 1.0, 2.0 ** (3 - i)) for i in range(9)]
    moves = []
    for i in range(8):
        earlier = rng.permutation(i)[: rng.integers(0, min(i, 3) + 1)]
        samples = {int(j): float(rng.normal(0, 0.3)) for j in (*earlier[:2], i)}
        estimates = {int(j): float(rng.normal(0, 0.3)) for j in (*earlier, i)}
        moves.append(Move(samples, estimates, 0.1 if seed % 2 else None))
    rows, slots = rows_of(points, moves, form, threshold)
    assert slots < 12
    table = StepTable("random", tuple(rows), slots=slots)
    noises = np.random.default_rng(9).standard_normal((8, *START.shape))
    drawn = iter(noises)
    found = [x for _, x in table_run(table, START, noise=lambda: next(drawn))]

    samples, predicted = [START], []
    for i, (point, move) in enumerate(zip(points, moves, strict=False)):
        x0 = samples[i] - point.sigma * model(samples[i], point.timestep)
        x0 = x0 if threshold is None else dynamic_threshold(x0, threshold)
        predicted.append(x0 if form is Form.DATA else (samples[i] - x0) / point.sigma)
        following = sum(c * samples[j] for j, c in move.samples.items())
        following = following + sum(c * predicted[j] for j, c in move.estimates.items())
        samples.append(following + (move.noise or 0.0) * noises[i])
    for x, wanted in zip(found, samples, strict=True):
        assert np.abs(x - wanted).max() < 1e-12 * max(1, np.abs(wanted).max())


@pytest.mark.parametrize(
    ("name", "options", "slots"),
    [
        ("dpmpp_1m", {}, 0),
        ("dpmpp_2m", {}, 1),
        ("dpmpp_3m", {}, 2),
        ("dpmpp_2s", {}, 2),
        ("dpmpp_3s", {}, 2),
        ("dpmpp_3s", {"solver_type": "heun"}, 3),
        ("unipc", {"solver_order": 3}, 3),
        ("deis", {"solver_order": 3}, 2),
        ("sa_solver", {"predictor_order": 3, "corrector_order": 2}, 3),
    ],
)
def test_slots_in_use(name, options, slots):
    """As many as the order needs: of a singlestep block its first sample, and one per earlier prediction.

    A corrector takes back what the predictor before it did, and so reaches one prediction further.
    """
    assert make_table(name, SCHEDULE, 30, options=options).slots == slots


@pytest.mark.filterwarnings("ignore:__array_wrap__ must accept:DeprecationWarning")
@pytest.mark.parametrize("class_name", ALL)
def test_very_few_steps(class_name):
    for steps in (1, 2, 3):
        assert_follows_diffusers(class_name, BETAS["scaled_linear"], steps)


@pytest.mark.parametrize("class_name", [MULTISTEP, UNIPC, INVERSE])
def test_repeated_timesteps(class_name):
    """Karras timesteps repeat after rounding: levels stay apart; inversion drops repeated timesteps."""

    def start_at_the_first(scheduler):
        scheduler._step_index = 0

    config = {**BETAS["scaled_linear"], "use_karras_sigmas": True}
    table = assert_follows_diffusers(class_name, config, 150, prepare=start_at_the_first)
    if class_name == INVERSE:
        assert table.evaluations < 150
    else:
        assert len(set(table.timesteps)) < 150 == len({point_of(step).sigma for step in table.steps})


@pytest.mark.parametrize("name", OURS)
def test_as_many_steps_as_timesteps(name):
    """Levels may be placed as densely as one likes, timesteps not."""
    table = make_table(name, SCHEDULE, 1000, options={"sigma_spacing": "karras"})
    assert table.evaluations == 1000 or name.endswith("_inverse")
    with pytest.raises(InputError, match=r"steps is 1000, but sampler .* wants at most 999 for this noise"):
        make_table(name, SCHEDULE, 1000)


@pytest.mark.parametrize("name", ["dpmpp_2m", "dpmpp_3m", "dpm_solver_3m", "unipc", "deis", "sa_solver"])
def test_a_last_step_of_no_length_keeps_the_sample(name):
    """Karras levels end at the lowest, where diffusers computes 0/0 in some forms."""
    options = {"use_karras_sigmas": True, "lower_order_final": False}
    if name not in ("deis", "sa_solver"):
        options["final_sigmas_type"] = "sigma_min"
    table = make_table(name, SCHEDULE, 20, options=options)
    samples = [x for _, x in table_run(table, START, noise=lambda: np.zeros(START.shape))]
    assert np.isfinite(samples[-1]).all()
    if name not in ("unipc", "sa_solver"):  # these still correct it
        assert np.abs(samples[-1] - samples[-2]).max() < 1e-6


@pytest.mark.parametrize(
    ("options", "levels"),
    [
        ({"sigma_spacing": "polyexponential", "rho": 2.0, "sigma_min": 0.1, "sigma_max": 9.0},
         polyexponential_sigmas(0.1, 9.0, 7, 2.0)),
        ({"sigma_spacing": "align_your_steps", "align_your_steps": "sdxl"}, align_your_steps("sdxl", 7)),
        ({"sigma_spacing": "log_snr", "sigma_min": 0.1, "sigma_max": 9.0},
         np.exp(np.linspace(np.log(9), np.log(0.1), 7))),
        ({"sigmas": [9.0, 5.0, 3.0, 2.0, 1.0, 0.5, 0.1]}, [9.0, 5.0, 3.0, 2.0, 1.0, 0.5, 0.1]),
    ],
)  # fmt: skip
@pytest.mark.parametrize("name", ["dpmpp_2m", "dpmpp_2s", "unipc", "deis", "sa_solver"])
def test_levels_beyond_diffusers(name, options, levels):
    """σ/α, also along a flow; the timesteps are those at which the model knows them."""
    points = [point_of(step) for step in make_table(name, SCHEDULE, 7, options=options).steps]
    assert [point.ratio for point in points] == pytest.approx(levels, rel=1e-6)
    wanted = np.interp(np.log(levels), np.log(SCHEDULE.sigmas()), np.arange(1000))
    assert [point.timestep for point in points] == pytest.approx(wanted, abs=0.51)
    if "sigmas" not in options:
        points = [point_of(s) for s in make_table(name, SCHEDULE, 7, options={**options, **FLOW}).steps]
        assert [point.ratio for point in points] == pytest.approx(levels, rel=1e-4)
        assert all(point.alpha + point.sigma == pytest.approx(1) for point in points)


def test_bh1_ends_without_noise():
    """Where diffusers computes 0·∞: the last step leads to the predicted x₀."""
    last = make_table("unipc", SCHEDULE, 10, options={"solver_type": "bh1"}).steps[-1]
    assert (last.update, last.history) == (point_of(last).x0, ())


@pytest.mark.parametrize(
    ("name", "alias", "option"),
    [
        ("dpmpp_2m", {"solver_type": "bh2"}, {"solver_type": "midpoint"}),
        ("dpmpp_2s", {"solver_type": "logrho"}, {"solver_type": "midpoint"}),
        ("dpmpp_2m_inverse", {"solver_type": "bh1"}, {"solver_type": "midpoint"}),
        ("unipc", {"solver_type": "heun"}, {"solver_type": "bh2"}),
        ("deis", {"solver_type": "bh2", "algorithm_type": "dpmsolver++"}, {"solver_type": "logrho"}),
    ],
)
def test_types_of_other_solvers(name, alias, option):
    """Read as diffusers reads them, so that a checkpoint's config of another multistep solver works."""
    tables = [make_table(name, SCHEDULE, 10, options=options) for options in (alias, option, {})]
    assert tables[0] == tables[1] == tables[2]


def test_a_name_wins_over_the_config():
    config = {**BETAS["scaled_linear"], "solver_order": 3, "algorithm_type": "sde-dpmsolver++"}
    assert make_table("dpmpp_2m", NoiseSchedule.from_config(config), 9) == make_table("dpmpp_2m", SCHEDULE, 9)


def test_a_class_with_options_that_no_sampler_has():
    with pytest.raises(InputError, match=r"no sampler is DPMSolverSinglestepScheduler with .*sde-dpmsolver"):
        sampler_of({"_class_name": "DPMSolverSinglestepScheduler", "algorithm_type": "sde-dpmsolver"})
    with pytest.raises(InputError, match=r"solver_order=4; correct the config or choose one of dpmpp_1m, "):
        sampler_of({"_class_name": MULTISTEP, "solver_order": 4})


def test_thresholding_where_diffusers_fails():
    """Singlestep and SA-Solver in ε: at order 1 they are the multistep solver, which does not fail."""
    threshold = {"thresholding": True, "dynamic_thresholding_ratio": 0.7, "sample_max_value": 1.7}
    base = {**threshold, "final_sigmas_type": "sigma_min"}
    wanted = last_sample(make_table("dpm_solver_1m", SCHEDULE, 9, options=base))
    assert np.array_equal(last_sample(make_table("dpm_solver_1s", SCHEDULE, 9, options=base)), wanted)
    plain = {"predictor_order": 1, "corrector_order": 0, "tau": 0.0, "algorithm_type": "noise_prediction"}
    found = last_sample(make_table("sa_solver", SCHEDULE, 9, options={**threshold, **plain}))
    assert np.abs(found - wanted).max() < 1e-9
    assert np.abs(found - last_sample(make_table("sa_solver", SCHEDULE, 9, options=plain))).max() > 1e-3


@pytest.mark.parametrize("name", ["dpmpp_2m", "dpmpp_2s"])
def test_eta_and_s_noise_along_the_sde(name):
    """Without η the ODE; with it, the samples' spread about their mean is s_noise times as wide."""
    ode = make_table(f"{name}_sde", SCHEDULE, 9, options={"eta": 0.0})
    assert ode.steps == make_table(name, SCHEDULE, 9).steps
    assert not ode.stochastic
    one, two = (
        make_table(f"{name}_sde", SCHEDULE, 9, options={"eta": 0.4, "s_noise": s}) for s in (1.0, 2.0)
    )
    assert [2 * step.noise_coef for step in one.steps] == [step.noise_coef for step in two.steps]
    assert [step.update for step in one.steps] == [step.update for step in two.steps]
    assert last_sample(one) == pytest.approx(last_sample(two))


def test_variance_channels_of_sa_solver():
    assert make_table("sa_solver", SCHEDULE, 9, options={"variance_type": "learned"}).variance_channels


def test_flow_prediction_off_a_flow_is_read_as_diffusers_reads_it():
    table = make_table("dpmpp_1m", SCHEDULE, 3, options={"prediction_type": "flow_prediction"})
    for step in table.steps:
        point = point_of(step)
        assert point.x0 == Linear(1.0, pytest.approx(-point.ratio))


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        (
            "dpm_solver_2m",
            {"final_sigmas_type": "zero"},
            "cannot end at final_sigmas_type='zero'; set final_sig",
        ),
        ("dpm_solver_1m_sde", {"final_sigmas_type": "zero"}, "cannot end at final_sigmas_type='zero'"),
        ("unipc", {"solver_order": 7}, "solver_order is 7, but sampler 'unipc' wants 1 to 6"),
        ("unipc", {"solver_p": "x"}, "solver_p='x'"),
        ("unipc", {"disable_corrector": 3}, "disable_corrector=3, sampler 'unipc' wants a list of integers"),
        ("unipc", {"thresholding": True, "predict_x0": False}, "thresholding is true and predict_x0 false"),
        (
            "unipc",
            {"lower_order_final": False},
            "only with predict_x0 and lower_order_final; set final_sigmas",
        ),
        ("unipc", {"predict_x0": False}, "only with predict_x0 and lower_order_final"),
        ("unipc", {"shift_terminal": 0.1}, "shift_terminal is set, but use_flow_sigmas is false"),
        ("unipc", {**FLOW, "shift_terminal": 1.0}, "shift_terminal is 1, wanted 0 or more and less than 1"),
        ("unipc", {"use_dynamic_shifting": True}, "use_dynamic_shifting is true, but mu is missing"),
        (
            "dpmpp_2m",
            {"mu": 0.3},
            "mu is 0.3, but use_dynamic_shifting is false; set it to true or use flow_",
        ),
        (
            "dpmpp_2m",
            {"use_karras_sigmas": True, "sigma_min": 3.0, "sigma_max": 3.0},
            "wanted sigma_min below",
        ),
        (
            "dpmpp_2m",
            {"use_karras_sigmas": True, "timesteps": [5, 4, 3]},
            "both say where the steps lie; keep",
        ),
        ("dpmpp_2m", {**FLOW, "timesteps": [5, 4, 3]}, "timesteps and use_flow_sigmas both say"),
        (
            "dpmpp_2m",
            {"timesteps": [1000, 4, 3]},
            "timesteps starts with 1000, but the model was trained on 0",
        ),
        ("dpmpp_2m", {**FLOW, "sigmas": [1.2, 0.5, 0.1]}, "sigmas starts with 1.2, wanted 1 or less"),
        ("dpmpp_2m", {"dynamic_thresholding_ratio": 1.5}, "dynamic_thresholding_ratio is 1.5, wanted 0 to 1"),
        (
            "dpmpp_2m",
            {"variance_type": "fixed_small"},
            "variance_type='fixed_small', sampler 'dpmpp_2m' wants",
        ),
        ("dpmpp_2m", {"lambda_min_clipped": 100.0}, "lambda_min_clipped is 100, which skips all timesteps"),
        ("dpmpp_2m", {"solver_order": 3}, "sampler 'dpmpp_2m' has no option 'solver_order'"),
        ("dpmpp_2s", {"timestep_spacing": "leading"}, "sampler 'dpmpp_2s' has no option 'timestep_spacing'"),
        (
            "dpmpp_2m_sde",
            {"final_sigmas_type": "sigma_min", "sigmas": [3.0, 0.02, 0.01]},
            "noise level rises",
        ),
        (
            "deis",
            {"prediction_type": "flow_prediction"},
            "wants use_flow_sigmas=True for prediction_type='flow",
        ),
        ("deis", {"solver_order": 4}, "solver_order is 4, but sampler 'deis' wants 1 to 3"),
        ("dpmpp_2m_sde", {"eta": -0.5}, "eta is -0.5, wanted a number of 0 or more"),
        ("sa_solver", {"tau": -1.0}, "tau is -1, wanted a number of 0 or more"),
        ("sa_solver", {"tau_func": "t"}, "remove it and use tau, tau_first and tau_last"),
        (
            "sa_solver",
            {"predictor_order": 5},
            "predictor_order is 5 and corrector_order 2, but sampler 'sa_sol",
        ),
        ("dpmpp_2m_inverse", FLOW, "set it to false: there is no inversion of flows"),
        ("dpmpp_2m_inverse", {"sigma_min": 0.1}, "does not support sigma_min=0.1"),
    ],
)
def test_refused_options(name, options, message):
    with pytest.raises(InputError) as caught:
        make_table(name, SCHEDULE, 3, options=options)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_shift_terminal_needs_two_steps():
    with pytest.raises(InputError, match="shift_terminal wants 2 steps or more"):
        make_table("unipc", SCHEDULE, 1, options={**FLOW, "shift_terminal": 0.1})
