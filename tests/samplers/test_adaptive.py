"""Samplers that choose their own steps: orders, tolerances, SciPy's solvers as oracle, options and errors."""

from __future__ import annotations

import itertools
import math
from functools import partial

import numpy as np
import pytest
import scipy.integrate

from fastdiff.errors import InputError, NumericError
from fastdiff.samplers import Generator, NoiseSchedule, Prediction, make_adaptive, make_table, sample_adaptive
from fastdiff.samplers.adaptive import flow_slope, probability_flow
from fastdiff.samplers.dpm_adaptive import Controller, dpm_adaptive, dpm_solver_pair
from fastdiff.samplers.probability_flow import share_at, straight_scale
from fastdiff.samplers.process import EDM, VE, VP, Chain, Flow, SubVP
from fastdiff.samplers.runge_kutta import (
    BOGACKI_SHAMPINE,
    DORMAND_PRINCE,
    fixed_steps,
    integrate,
    worst_rms,
)
from fastdiff.zoo.mixture import GaussianMixture
from tests.samplers.configs import STABLE_DIFFUSION
from tests.samplers.exact import (
    GAUSSIAN,
    MEAN,
    MIXTURE,
    NORMAL,
    STD,
    elementwise,
    flow,
    marginal,
    order_of,
    trajectory,
)

SCHEDULE = NoiseSchedule.from_config(STABLE_DIFFUSION)
PROCESSES = {
    "vp": VP(),
    "sub_vp": SubVP(),
    "ve": VE(),
    "edm": EDM(),
    "flow": Flow(3.0, t_max=0.999),
    "chain": Chain.of(SCHEDULE),
}
NAMES = ("rk45", "rk23", "dpm_adaptive")
PAIRS = pytest.mark.parametrize("pair", [DORMAND_PRINCE, BOGACKI_SHAMPINE], ids=lambda pair: pair.name)


def pendulum(u, y):
    """Rows of angle and speed."""
    return np.stack([y[:, 1], -np.sin(y[:, 0])], axis=1)


SWING = np.array([[2.0, 0.3]])
TRUTH = scipy.integrate.solve_ivp(
    lambda u, y: [y[1], -math.sin(y[0])], (0, 6), SWING[0], method="DOP853", rtol=1e-13, atol=1e-13
).y[:, -1]


@PAIRS
def test_order_of_the_pairs(pair):
    """With fixed steps; and the coefficients are consistent."""
    errors = [
        np.abs(fixed_steps(pendulum, SWING, np.linspace(0, 6, count + 1), pair) - TRUTH).max()
        for count in (80, 160, 320)
    ]
    slopes = [math.log2(coarse / fine) for coarse, fine in itertools.pairwise(errors)]
    assert slopes == pytest.approx([pair.order] * 2, abs=0.15)
    assert sum(pair.error) == pytest.approx(0, abs=1e-15)
    assert [sum(row) for row in pair.stages] == pytest.approx(pair.nodes)


@PAIRS
def test_solutions_and_costs_are_those_of_scipy(pair):
    """The same formulas with another controller: error and cost are much the same."""
    method = {5: "RK45", 3: "RK23"}[pair.order]
    previous = math.inf
    for tolerance in (1e-3, 1e-5, 1e-7):
        ours = integrate(
            pendulum, SWING, 0.0, 6.0, pair, rtol=tolerance, atol=tolerance, max_evaluations=10_000
        )
        theirs = scipy.integrate.solve_ivp(
            lambda u, y: [y[1], -math.sin(y[0])],
            (0, 6),
            SWING[0],
            method=method,
            rtol=tolerance,
            atol=tolerance,
        )
        error, allowed = np.abs(ours.y[0] - TRUTH).max(), np.abs(theirs.y[:, -1] - TRUTH).max()
        assert error < min(50 * tolerance, 4 * allowed)
        assert error < previous / 10
        previous = error
        assert ours.evaluations < 1.3 * theirs.nfev
        assert ours.evaluations == 2 + pair.evaluations * (ours.accepted + ours.rejected)


@PAIRS
def test_one_step_is_that_of_scipy(pair):
    """Stages and error estimate of the tables, by a single step of the same size."""
    solver = {5: scipy.integrate.RK45, 3: scipy.integrate.RK23}[pair.order]
    theirs = solver(lambda u, y: pendulum(u, y[None])[0], 0.0, SWING[0], 0.5, first_step=0.5, rtol=1, atol=1)
    theirs.step()
    assert theirs.t == 0.5
    found = fixed_steps(pendulum, SWING, [0.0, 0.5], pair)
    np.testing.assert_allclose(found[0], theirs.y, rtol=1e-14)
    slopes = theirs.K
    wanted = sum(e * k for e, k in zip(pair.error, slopes, strict=True))
    np.testing.assert_allclose(np.abs(wanted), np.abs(slopes.T @ solver.E), rtol=1e-10)


def test_steps_are_rejected_where_the_solution_turns():
    """A kink costs rejections, both directions of time work, and u is exactly the end."""

    def kink(u, y):
        return np.where(u < 0.5, 0.0, 200.0) * np.ones_like(y) * np.cos(40 * u)

    seen = []
    run = integrate(
        kink,
        np.zeros((1, 1)),
        0.0,
        1.0,
        DORMAND_PRINCE,
        rtol=1e-6,
        atol=1e-6,
        max_evaluations=5000,
        observe=lambda u, y, n: seen.append((u, n)),
    )
    assert run.rejected > 3
    assert run.y[0, 0] == pytest.approx(5 * (math.sin(40) - math.sin(20)), abs=1e-4)
    assert (seen[-1], len(seen)) == ((1.0, run.evaluations), run.accepted)
    back = integrate(kink, run.y, 1.0, 0.0, DORMAND_PRINCE, rtol=1e-6, atol=1e-6, max_evaluations=5000)
    assert back.y[0, 0] == pytest.approx(0, abs=1e-4)


def test_norm_is_that_of_the_worst_image():
    errors = np.zeros((3, 2, 2))
    errors[1] = 2.0
    assert worst_rms(errors) == 2.0
    errors[2, 0, 0] = 10.0
    assert worst_rms(errors) == 5.0


def flow_map(process, x):
    """Where the probability-flow ODE takes samples x of Gaussian data from ``t_max`` to ``t_min``."""
    return flow(NORMAL, x, process.point(process.t_max), process.point(process.t_min))


def solvers(name, **options):
    """The float64 solver of a sampler, and what it has to be given."""
    if name == "dpm_adaptive":
        order = options.get("order", 3)
        return partial(dpm_adaptive, order=order, controller=lambda: Controller(0.05, order))
    return partial(probability_flow, pair={"rk45": DORMAND_PRINCE, "rk23": BOGACKI_SHAMPINE}[name])


@pytest.mark.parametrize("process", PROCESSES.values(), ids=PROCESSES)
@pytest.mark.parametrize("name", NAMES)
def test_error_falls_with_the_tolerance(name, process):
    """On Gaussian data, whose flow map is known; a tighter tolerance costs more and errs less."""
    start = marginal(process.point(process.t_max))
    x = start[0] + math.sqrt(start[1]) * np.array([[-1.5, 0.0, 2.0], [0.3, -0.4, 1.0]])
    wanted = flow_map(process, x)
    runs = []
    for tolerance in (1e-2, 1e-4, 1e-6):
        found, evaluations = solvers(name)(
            process,
            Prediction.EPSILON,
            elementwise(NORMAL),
            x,
            rtol=tolerance,
            atol=tolerance,
            max_evaluations=5000,
        )
        runs.append((np.abs(found - wanted).max(), evaluations))
    (rough, few), (middle, some), (fine, many) = runs
    assert few < some < many
    assert rough > 5 * middle > 25 * fine
    assert fine < 3e-5


@pytest.mark.parametrize("process", [VP(), SubVP(), VE(0.01, 50.0)], ids=["vp", "sub_vp", "ve"])
def test_the_ode_is_that_of_the_paper(process):
    """SciPy integrates f·x − ½g²·score in t, of a mixture; straight coordinates give the same sample."""
    data = GaussianMixture(np.array([0.3, 0.7]), np.array([[-1.0], [0.8]]), np.sqrt([0.05, 0.05]))

    def slope(t, x):
        alpha, sigma = process.alpha(t), process.sigma(t)
        score = (alpha * data.denoise(x[:, None], alpha, sigma)[:, 0] - x) / sigma**2
        return process.drift(t) * x - 0.5 * process.diffusion2(t) * score

    x = np.array([[-1.1, 0.2, 0.9]]) * process.init_noise_sigma
    wanted = scipy.integrate.solve_ivp(
        slope, (process.t_max, process.t_min), x[0], method="DOP853", rtol=1e-10, atol=1e-10
    ).y[:, -1]

    for name, tolerance, bound in (("rk45", 1e-8, 1e-6), ("rk23", 1e-6, 1e-4), ("dpm_adaptive", 1e-6, 1e-4)):
        found, _ = solvers(name)(
            process,
            Prediction.SCORE,
            elementwise(data),
            x,
            rtol=tolerance,
            atol=tolerance,
            max_evaluations=50_000,
        )
        np.testing.assert_allclose(found[0], wanted, rtol=0, atol=bound)


def gaussian_epsilon(lam, x):
    """E[ε | x] at λ for the state x₀ + e^−λ·ε."""
    return math.exp(-lam) * (x - MEAN) / (STD**2 + math.exp(-2 * lam))


@pytest.mark.parametrize("data", [GAUSSIAN, MIXTURE], ids=["gaussian", "mixture"])
@pytest.mark.parametrize(
    ("name", "order", "counts"),
    [
        ("rk45", 5, (36, 54, 81)),
        ("rk23", 3, (60, 120, 240)),
        ("dpm_adaptive", 3, (120, 240, 480)),
        ("dpm_adaptive", 2, (60, 120, 240)),
    ],
)
def test_order_of_convergence(name, order, counts, data):
    """With fixed steps: of the pairs in u, for the mixture even in λ, of DPM-Solver even in λ."""
    process = VP(t_min=0.02, t_max=0.9) if data is GAUSSIAN else VP(t_min=0.05, t_max=0.6)
    if order == 5 and data is MIXTURE:
        counts = (48, 96, 192)
    first, last = process.point(process.t_max), process.point(process.t_min)
    ends = share_at(process, process.t_max), share_at(process, process.t_min)
    slope = flow_slope(process, Prediction.EPSILON, lambda point, x: data.output(x, point))
    start, wanted = trajectory(data, first, last)

    def epsilon(at, x):
        point = process.point(process.time_at(at))
        return (x - data.denoise(point.alpha * x, point.alpha, point.sigma)) * math.exp(at)

    errors = []
    for count in counts:
        lambdas = np.linspace(first.log_snr, last.log_snr, count + 1)
        if name == "dpm_adaptive":
            x = start / first.alpha
            for now, following in itertools.pairwise(lambdas):
                x = dpm_solver_pair(epsilon, x, epsilon(now, x), now, following, order)[1]
            found = x * last.alpha
        else:
            shares = np.linspace(*ends, count + 1) if data is GAUSSIAN else 1 / (1 + np.exp(lambdas))
            pair = {5: DORMAND_PRINCE, 3: BOGACKI_SHAMPINE}[order]
            y = fixed_steps(slope, start / straight_scale(first), shares, pair)
            found = y * straight_scale(last)
        errors.append(np.abs(found - wanted).max())
    assert order_of(counts, errors) == pytest.approx(order, abs=0.15)


@pytest.mark.parametrize("order", [2, 3])
def test_order_of_the_dpm_solver_pairs(order):
    """The two results of a step, repeated with fixed steps in λ, converge with order − 1 and order."""
    slope_of = {}
    for high in (False, True):
        errors = []
        for count in (40, 80, 160):
            lambdas = np.linspace(-2.0, 2.0, count + 1)
            x = MEAN + np.sqrt(STD**2 + math.exp(4.0)) * np.ones((1, 1))
            for now, following in itertools.pairwise(lambdas):
                x = dpm_solver_pair(gaussian_epsilon, x, gaussian_epsilon(now, x), now, following, order)[
                    high
                ]
            errors.append(abs(x[0, 0] - MEAN - np.sqrt(STD**2 + math.exp(-4.0))))
        slope_of[high] = [math.log2(a / b) for a, b in itertools.pairwise(errors)]
    assert slope_of[True][-1] == pytest.approx(order, abs=0.15)
    assert slope_of[False][-1] == pytest.approx(order - 1, abs=0.15)


def test_controller_literally():
    """k-diffusion's: factor 1 + atan(Π e^b − 1) of inverse errors now and at the last two accepted steps."""
    control = Controller(0.1, 3, 0.3, 0.9, 0.1, 0.81)
    b1, b2, b3 = 1.3 / 3, -0.5 / 3, 0.1 / 3
    history, h = None, 0.1
    for error in (0.5, 3.0, 1.2, 0.4, 0.9, 0.05):
        inverse = 1 / (error + 1e-8)
        history = history or [inverse, inverse, inverse]
        history[0] = inverse
        factor = 1 + math.atan(history[0] ** b1 * history[1] ** b2 * history[2] ** b3 - 1)
        h *= factor
        assert control.accepts(error) is (factor >= 0.81)
        assert control.h == pytest.approx(h)
        if factor >= 0.81:
            history[2], history[1] = history[1], history[0]


class GaussianDenoiser:
    """A float32 denoiser that knows the timestep only, and what it was asked."""

    def __init__(self, run):
        self.run, self.calls = run, []
        self.model = elementwise(NORMAL)

    def __call__(self, sample, timestep, guided):
        assert sample.dtype == np.float32
        assert not sample.flags.writeable
        self.calls.append((timestep, guided))
        point = self.point(timestep)
        output = self.model(point, sample / point.input_scale).astype(np.float32)
        return output, output if guided else None

    def point(self, timestep):
        process = self.run.process
        t = {
            "Chain": lambda: timestep,
            "VP": lambda: timestep / 999,
            "SubVP": lambda: timestep / 999,
            "VE": lambda: process.time_at(-math.log(timestep)),
            "EDM": lambda: math.exp(4 * timestep),
            "Flow": lambda: process.time_at(np.log(1000 / timestep - 1)) if timestep < 1000 else 1.0,
        }[type(process).__name__]()
        return process.point(t, self.run.prediction)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize("name", NAMES)
def test_sampling_gaussian_data(name, prediction):
    """From float32 noise to data with its mean and spread, with any prediction and with guidance."""
    options = {"prediction_type": prediction, "rtol": 1e-4, "atol": 1e-4, "final_sigmas_type": "sigma_min"}
    run = make_adaptive(name, SCHEDULE, options=options)
    latents = np.random.default_rng(0).standard_normal((2, 3, 5)).astype(np.float32)
    kept = latents.copy()
    plain, guided = GaussianDenoiser(run), GaussianDenoiser(run)
    seen = []
    found = sample_adaptive(run, plain, latents, callback=lambda *arguments: seen.append(arguments))
    assert found.dtype == np.float32
    np.testing.assert_array_equal(latents, kept)
    np.testing.assert_allclose(found, flow_map(run.process, latents.astype(float)), atol=2e-3)
    # Both outputs are the same, so guidance changes nothing but rounding.
    again = sample_adaptive(run, guided, latents, guidance=3.0)
    np.testing.assert_allclose(again, found, atol=1e-4)
    assert all(g for _, g in guided.calls)
    assert not any(g for _, g in plain.calls)
    done, total, last = seen[-1]
    assert done == total == len(plain.calls)
    assert all(done <= total for done, total, _ in seen)
    assert [done for done, *_ in seen] == sorted(done for done, *_ in seen)
    assert not last.flags.writeable
    np.testing.assert_array_equal(last, found)


@pytest.mark.parametrize("process", ["vp", "sub_vp", "ve", "edm", "flow"])
@pytest.mark.parametrize("name", NAMES)
def test_every_process_by_its_option(name, process):
    """Noise of the right size goes in, and with a last denoising step comes out as data."""
    options: dict[str, object] = {"process": process, "final_sigmas_type": "zero", "rtol": 1e-3, "atol": 1e-4}
    if process == "flow":
        options |= {"prediction_type": "flow_prediction", "sigma_max": 1000}
    run = make_adaptive(name, SCHEDULE, options=options)
    latents = np.array([[-1.0, 0.0, 1.0]], dtype=np.float32) * np.float32(run.init_noise_sigma)
    found = sample_adaptive(run, GaussianDenoiser(run), latents)
    wanted = flow_map(run.process, latents.astype(float))
    np.testing.assert_allclose(found, wanted, atol=0.03)


def test_a_flow_starts_without_signal():
    options = {
        "process": "flow",
        "shift": 3.0,
        "prediction_type": "flow_prediction",
        "final_sigmas_type": "zero",
    }
    run = make_adaptive("rk45", SCHEDULE, options={**options, "rtol": 1e-5, "atol": 1e-5})
    assert run.process.alpha(run.process.t_max) == 0
    latents = np.array([[-1.0, 0.0, 1.0]], dtype=np.float32)
    found = sample_adaptive(run, GaussianDenoiser(run), latents)
    np.testing.assert_allclose(found, MEAN + latents * STD, atol=2e-3)
    with pytest.raises(InputError, match="cannot start without signal; set sigma_max"):
        sample_adaptive(
            make_adaptive("dpm_adaptive", SCHEDULE, options=options), GaussianDenoiser(run), latents
        )


def test_ancestral_noise_of_dpm_adaptive():
    """With one picture in the data set, the sample at the last level is it with that level's noise."""
    run = make_adaptive("dpm_adaptive", SCHEDULE, options={"eta": 1.0, "rtol": 1e-2, "atol": 1e-2})
    assert run.stochastic
    x0 = 0.5

    def denoise(sample, timestep, guided):
        point = run.process.point(timestep)
        return ((sample - point.alpha * x0) / point.sigma).astype(np.float32), None

    latents = np.random.default_rng(1).standard_normal((1, 40_000)).astype(np.float32)
    first, again = (sample_adaptive(run, denoise, latents, noise=Generator(7)) for _ in range(2))
    np.testing.assert_array_equal(first, again)
    end = run.process.point(run.process.t_min)
    assert np.mean(first) == pytest.approx(end.alpha * x0, abs=1e-3)
    assert np.std(first) == pytest.approx(end.sigma, rel=0.02)
    correlation = np.corrcoef(first.ravel(), latents.ravel())[0, 1]
    assert abs(correlation) < 0.5
    with pytest.raises(InputError, match="draws noise, got noise=None"):
        sample_adaptive(run, denoise, latents)


def test_a_batch_is_as_good_as_its_images():
    """The steps are those of the image that needs most; every image keeps its tolerance."""
    process = VP()
    x = np.array([[0.5] * 4, [2.5] * 4])
    tolerance = {"rtol": 1e-5, "atol": 1e-5, "max_evaluations": 1000}
    solve = partial(solvers("rk45"), process, Prediction.EPSILON, elementwise(NORMAL))
    both, _ = solve(x, **tolerance)
    for i in range(2):
        alone, _ = solve(x[i : i + 1], **tolerance)
        np.testing.assert_allclose(both[i], alone[0], atol=1e-4)


@pytest.mark.parametrize("name", NAMES)
def test_options_and_their_errors(name):
    run = make_adaptive(name, SCHEDULE)
    assert run.sampler == name
    assert run.init_noise_sigma == 1
    assert run.denoise is (name != "dpm_adaptive")
    assert make_adaptive(name, SCHEDULE, options={"process": "ve"}).init_noise_sigma == pytest.approx(50)
    for options, message in (
        ({"rtol": 0.0}, "rtol=0.0.*above 0"),
        ({"max_evaluations": 3}, "max_evaluations=3.*10 or more"),
        ({"final_sigmas_type": "last"}, "final_sigmas_type='last'"),
        ({"thresholding": True}, "does not support thresholding"),
        ({"variance_type": "learned_range"}, "learned variance"),
        ({"tolerance": 1}, "no option 'tolerance'"),
        ({"process": "sde"}, "process='sde'"),
    ):
        with pytest.raises(InputError, match=message):
            make_adaptive(name, SCHEDULE, options=options)
    with pytest.raises(InputError, match="chooses its own steps and has no table of 20"):
        make_table(name, SCHEDULE, 20)
    with pytest.raises(InputError, match=r"'ddim' has fixed steps; use make_table, or one of rk45"):
        make_adaptive("ddim", SCHEDULE)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"solver_order": 4}, "solver_order is 4"),
        ({"solver_order": 1}, "2 or more"),
        ({"eta": 2}, "eta is 2"),
    ],
)
def test_options_of_dpm_adaptive(options, message):
    assert make_adaptive("dpm_adaptive", SCHEDULE, options={"solver_order": 2, "eta": 0.5}).stochastic
    with pytest.raises(InputError, match=message):
        make_adaptive("dpm_adaptive", SCHEDULE, options=options)


@pytest.mark.parametrize("name", NAMES)
def test_runs_that_fail(name):
    options = {"rtol": 1e-5, "atol": 1e-5, "max_evaluations": 12}
    run = make_adaptive(name, SCHEDULE, options=options)
    latents = np.ones((1, 2), dtype=np.float32)
    denoiser = GaussianDenoiser(run)
    with pytest.raises(
        InputError, match=r"1[12] model evaluations .* loosen rtol and atol, or raise max_eval"
    ):
        sample_adaptive(run, denoiser, latents)
    assert len(denoiser.calls) == 12 - run.denoise
    run = make_adaptive(name, SCHEDULE)
    with pytest.raises(NumericError, match="NaN or infinity"):
        sample_adaptive(run, lambda x, t, g: (x * np.float32("nan"), None), latents)
    with pytest.raises(InputError, match="latents have dtype float64, wanted float32"):
        sample_adaptive(run, denoiser, latents.astype(np.float64))
    with pytest.raises(InputError, match="guidance is nan"):
        sample_adaptive(run, denoiser, latents, guidance=math.nan)
    with pytest.raises(InputError, match="gave no output without the prompt"):
        sample_adaptive(run, lambda x, t, g: (x, None), latents, guidance=2.0)
    with pytest.raises(KeyboardInterrupt):
        sample_adaptive(run, denoiser, latents, callback=interrupt)


def interrupt(*_):
    raise KeyboardInterrupt


def test_tolerances_below_the_rounding_error():
    """A model that jitters in the last float32 bits cannot be followed to 1e-13."""

    def jitter(u, y):
        return np.float32(y) * (1 + 1e-7 * np.sin(1e9 * u))

    with pytest.raises((NumericError, InputError), match="loosen"):
        integrate(
            jitter, np.ones((1, 1)), 0.0, 1.0, DORMAND_PRINCE, rtol=1e-13, atol=1e-15, max_evaluations=3000
        )
