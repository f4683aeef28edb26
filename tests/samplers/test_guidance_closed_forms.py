"""Guidance where the answer is known: classes that are Gaussians, whose denoisers are exact."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
from scipy.integrate import solve_ivp
from scipy.stats import norm

from fastdiff.samplers import Guidance, NoiseSchedule, StepTable, make_table
from fastdiff.samplers.guidance import APG, CFGPlusPlus, CFGZeroStar, Interval, PerpNeg, Schedule
from tests.compare import assert_close
from tests.samplers.guided import Gaussian, Mixture, exact, guided_run, last, level

CONFIG = {
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "clip_sample": False,
    "set_alpha_to_one": True,
    "timestep_spacing": "trailing",
}
SCHEDULE = NoiseSchedule.from_config(CONFIG)
COND, UNCOND = Gaussian(0.8, 0.5), Gaussian(-0.2, 0.9)
SAME_SPREAD = Gaussian(-0.2, 0.5)
MIXTURE = Mixture((0.3, 0.7), (COND, UNCOND))
START = np.random.default_rng(5).standard_normal((3, 4))


def ends(table: StepTable) -> list[float]:
    """σ/α at every step and at the end."""
    alpha_sigma = [level(SCHEDULE, t) for t in table.timesteps]
    return [sigma / alpha for alpha, sigma in alpha_sigma] + [0.0]


def first_ratio_state(table: StepTable, start: np.ndarray) -> np.ndarray:
    """x/α at the first level."""
    x = start * table.init_noise_sigma
    return x if table.sampler == "euler" else x / level(SCHEDULE, table.timesteps[0])[0]


def solved(state: np.ndarray, rows: list[tuple[float, float, float]], c: Gaussian, u: Gaussian) -> np.ndarray:
    """The guided ODE's exact solution, in x/α, over pieces (σ, σ', w).

    dx/dσ = σ·(w·(x − μ_c)/(s_c² + σ²) + (1 − w)·(x − μ_u)/(s_u² + σ²)). For one spread it is that of a
    Gaussian with the mean μ_u + w·(μ_c − μ_u); for one mean μ, x − μ goes with
    (s_c² + σ²)^(w/2)·(s_u² + σ²)^((1 − w)/2).
    """
    assert c.spread == u.spread or c.mean == u.mean
    for sigma, following, w in rows:
        mean = u.mean + w * (c.mean - u.mean)
        growth = 1.0
        for one, weight in ((c, w), (u, 1 - w)):
            growth *= ((one.spread**2 + following**2) / (one.spread**2 + sigma**2)) ** (weight / 2)
        state = mean + growth * (state - mean)
    return state


def error(sampler: str, steps: int, guidance: Guidance, scales: object, uncond: Gaussian) -> float:
    """Largest difference to the exact solution with the same scale in each step."""
    table = make_table(sampler, SCHEDULE, steps)
    levels = ends(table)
    rows = [(*pair, w) for pair, w in zip(pairwise(levels), scales(levels), strict=True)]
    wanted = solved(first_ratio_state(table, START), rows, COND, uncond)
    found = last(guided_run(table, guidance, exact(SCHEDULE, COND, uncond), START))
    return float(np.abs(found - wanted).max())


KINDS = [
    pytest.param(Guidance(3.0), lambda s: [3.0] * (len(s) - 1), id="constant"),
    pytest.param(
        Guidance(3.0, interval=Interval(0.3, 4.0)),
        lambda s: [3.0 if 0.3 < sigma <= 4.0 else 1.0 for sigma in s[:-1]],
        id="interval",
    ),
    pytest.param(
        Guidance(2.0, schedule=Schedule("linear")),
        lambda s: [4.0 * (i + 0.5) / (len(s) - 1) for i in range(len(s) - 1)],
        id="linear",
    ),
    pytest.param(
        Guidance(2.0, schedule=Schedule("cosine", floor=0.5), original=True),
        lambda s: [
            1 + max(0.5, 2.0 * (1 - math.cos(math.pi * (i + 0.5) / (len(s) - 1)))) for i in range(len(s) - 1)
        ],
        id="cosine with a floor, original",
    ),
]


@pytest.mark.parametrize("uncond", [SAME_SPREAD, Gaussian(COND.mean, 0.9)], ids=["one spread", "one mean"])
@pytest.mark.parametrize(("guidance", "scales"), KINDS)
@pytest.mark.parametrize(("sampler", "order"), [("ddim", 1), ("euler", 1)])
def test_the_limit_of_many_steps(
    sampler: str, order: int, guidance: Guidance, scales: object, uncond: Gaussian
) -> None:
    """Samples go to the exact solution of the guided ODE, at the sampler's order."""
    coarse, fine = (error(sampler, steps, guidance, scales, uncond) for steps in (125, 500))
    assert fine < 0.02
    assert fine < coarse / (0.8 * 4**order)


@pytest.mark.parametrize("uncond", [SAME_SPREAD, Gaussian(COND.mean, 0.9)], ids=["one spread", "one mean"])
@pytest.mark.parametrize(("guidance", "scales"), [KINDS[0], KINDS[2], KINDS[3]])
def test_the_limit_of_a_multistep_solver(guidance: Guidance, scales: object, uncond: Gaussian) -> None:
    """Up to timestep 199, as the last step is of first order. Scales that change smoothly keep the order.

    The solver draws a line through the last two evaluations, each with its own scale, so that the scale of
    the interval between two steps is the mean of theirs.
    """
    errors = []
    for steps in (50, 200):
        table = make_table("dpmpp_2m", SCHEDULE, steps)
        levels, row = ends(table), table.timesteps.index(199)
        means = [(w + following) / 2 for w, following in pairwise(scales(levels))]
        rows = [(*pair, w) for pair, w in zip(pairwise(levels[:-1]), means, strict=True)][:row]
        wanted = solved(first_ratio_state(table, START), rows, COND, uncond)
        states = [x for _, x in guided_run(table, guidance, exact(SCHEDULE, COND, uncond), START)]
        errors.append(np.abs(states[row] / level(SCHEDULE, 199)[0] - wanted).max())
    assert errors[1] < 1e-3
    assert errors[1] < errors[0] / (0.8 * 4**2)


@pytest.mark.parametrize("w", [0.0, 1.0, 2.5, 7.0])
def test_the_guided_score_is_that_of_the_powers(w: float) -> None:
    """∇ log p(y|c)^w·p(y)^(1−w) at every level, for a class of a mixture, by differences of log densities."""
    alone = Mixture((1.0,), (COND,))
    y = np.linspace(-2.5, 2.5, 41)
    table = make_table("ddim", SCHEDULE, 6)
    seen: list[np.ndarray] = []

    def record(sample: np.ndarray, timestep: float, guided: int) -> tuple[np.ndarray, ...]:
        return exact(SCHEDULE, COND, MIXTURE)(y, timestep, 1)

    bound, call_scale, denoise = Guidance(w).bind(table, record)
    for step in bound.steps:
        alpha, sigma = level(SCHEDULE, step.timestep)
        scale = call_scale if step.guidance is None else step.guidance
        cond, uncond = denoise(y, step.timestep, 1)
        seen.append(uncond + scale * (cond - uncond))

        def log_power(at: np.ndarray, alpha: float = alpha, sigma: float = sigma) -> np.ndarray:
            return w * alone.log_density(at, alpha, sigma) + (1 - w) * MIXTURE.log_density(at, alpha, sigma)

        h = 1e-4 * sigma
        score = (log_power(y + h) - log_power(y - h)) / (2 * h)
        assert_close(seen[-1], -sigma * score, rel_l2=1e-6)


def ratio_solution(state: np.ndarray, w: float, sigma: float, end: float) -> np.ndarray:
    """The guided ODE for a class of `MIXTURE` in x/α, dx/dσ = ε, by a Runge-Kutta method of order 8."""

    def slope(at: float, x: np.ndarray) -> np.ndarray:
        uncond = MIXTURE.epsilon(x, 1.0, at)
        return uncond + w * (COND.epsilon(x, 1.0, at) - uncond)

    run = solve_ivp(slope, (sigma, end), state.ravel(), method="DOP853", rtol=1e-9, atol=1e-11)
    return run.y[:, -1].reshape(state.shape)


@pytest.mark.parametrize("w", [0.0, 1.0, 3.0])
@pytest.mark.parametrize(("sampler", "order"), [("ddim", 1), ("euler", 1), ("dpmpp_2m", 2)])
def test_a_class_of_a_mixture(sampler: str, order: int, w: float) -> None:
    """The states at timestep 199 go to those of the exact ODE, at the sampler's order."""
    denoise = exact(SCHEDULE, COND, MIXTURE)
    errors = []
    for steps in (50, 200):
        table = make_table(sampler, SCHEDULE, steps)
        levels, row = ends(table), table.timesteps.index(199)
        wanted = ratio_solution(first_ratio_state(table, START), w, levels[0], levels[row])
        states = [x for _, x in guided_run(table, Guidance(w), denoise, START)]
        alpha = 1.0 if sampler == "euler" else level(SCHEDULE, 199)[0]
        errors.append(np.abs(states[row] / alpha - wanted).max())
    assert errors[1] < {1: 0.02, 2: 1e-3}[order]
    assert errors[1] < errors[0] / (0.75 * 4**order)


@pytest.mark.parametrize(("w", "data"), [(0.0, MIXTURE), (1.0, Mixture((1.0,), (COND,)))])
def test_without_guidance_quantiles_go_to_quantiles(w: float, data: Mixture) -> None:
    """In one dimension the ODE keeps the order of states, so each goes to the same quantile of the data."""
    table = make_table("dpmpp_2m", SCHEDULE, 200)
    row, levels = table.timesteps.index(199), ends(table)
    states = [x for _, x in guided_run(table, Guidance(w), exact(SCHEDULE, COND, MIXTURE), START)]

    def quantile(x: np.ndarray, sigma: float) -> np.ndarray:
        parts = zip(data.weights, data.classes, strict=True)
        return sum(p * norm.cdf(x, one.mean, math.hypot(one.spread, sigma)) for p, one in parts)

    start = quantile(first_ratio_state(table, START), levels[0])
    assert_close(quantile(states[row] / level(SCHEDULE, 199)[0], levels[row]), start, rel_l2=1e-3)


def moments(table: StepTable, guidance: Guidance) -> tuple[float, float]:
    """Mean and standard deviation of the samples: the run is affine in the start, x = slope·z + mean."""
    zero, one = (
        last(guided_run(table, guidance, exact(SCHEDULE, COND, UNCOND), np.full((1, 1), z))).item()
        for z in (0.0, 1.0)
    )
    return zero, abs(one - zero)


@pytest.mark.parametrize("steps", [5, 20])
@pytest.mark.parametrize("w", [0.0, 0.6, 1.0, 1.5])
def test_moments_with_cfg_pp(w: float, steps: int) -> None:
    """Algorithm 2 of the paper on the mean and the slope, written with ᾱ and ε, against the folded table."""
    table = make_table("ddim", SCHEDULE, steps)
    alpha_bar = [float(SCHEDULE.alphas_cumprod()[round(t)]) for t in table.timesteps] + [1.0]
    mean, slope = 0.0, 1.0
    for a, following in pairwise(alpha_bar):
        root, sigma = math.sqrt(a), math.sqrt(1 - a)
        affine = []  # ε as (factor of x, constant)
        for one in (COND, UNCOND):
            variance = a * one.spread**2 + 1 - a
            affine.append((sigma / variance, -sigma * root * one.mean / variance))
        (k_c, b_c), (k_u, b_u) = affine
        k, b = k_u + w * (k_c - k_u), b_u + w * (b_c - b_u)
        x0 = ((1 - sigma * k) / root, -sigma * b / root)
        factor = math.sqrt(following) * x0[0] + math.sqrt(1 - following) * k_u
        mean = factor * mean + math.sqrt(following) * x0[1] + math.sqrt(1 - following) * b_u
        slope *= factor
    found = moments(table, Guidance(w, CFGPlusPlus()))
    assert found == pytest.approx((mean, abs(slope)), rel=1e-6)


def test_cfg_pp_at_zero_is_unconditional_and_moves_towards_the_class() -> None:
    table = make_table("ddim", SCHEDULE, 20)
    assert moments(table, Guidance(0.0, CFGPlusPlus())) == pytest.approx(moments(table, Guidance(0.0)))
    means = [moments(table, Guidance(w, CFGPlusPlus()))[0] for w in (0.0, 0.2, 0.4, 0.6)]
    assert means == sorted(means)
    assert means[0] < means[-1]


@pytest.mark.parametrize("sampler", ["ddim", "euler"])
def test_moments_of_plain_guidance(sampler: str) -> None:
    """With one spread, the mean moves on the line through both classes' means, and the spread is theirs."""
    table = make_table(sampler, SCHEDULE, 1000)
    uncond = SAME_SPREAD
    for w in (1.0, 2.0, 4.0):
        denoise = exact(SCHEDULE, COND, uncond)
        low, high = (
            last(guided_run(table, Guidance(w), denoise, np.full((1, 1), z))).item() for z in (-1.0, 1.0)
        )
        # the start is not yet N(α·mean, …) but N(0, 1) or N(0, σ²): the ODE carries that to the end
        sigma = ends(table)[0]
        mean = uncond.mean + w * (COND.mean - uncond.mean)
        shrink = COND.spread / math.hypot(COND.spread, sigma)
        at_start = first_ratio_state(table, np.ones(1)).item()
        assert (low + high) / 2 == pytest.approx(mean * (1 - shrink), abs=0.02)
        assert (high - low) / 2 == pytest.approx(shrink * at_start, abs=0.005)


SAME = [
    pytest.param(Guidance(4.0, interval=Interval()), id="an interval of all levels"),
    pytest.param(Guidance(4.0, interval=Interval(0.0, 1.0, "share")), id="an interval of all steps"),
    pytest.param(Guidance(4.0, APG(1.0, 0.0, math.inf)), id="APG with eta 1"),
    pytest.param(Guidance(4.0, APG(1.0, 0.0, math.inf, "output", "uncond")), id="APG on the output"),
    pytest.param(Guidance(4.0, APG(1.0, 0.0, 1e9)), id="APG with a high threshold"),
    pytest.param(Guidance(4.0, PerpNeg(0.0)), id="a negative prompt without weight"),
    pytest.param(Guidance(4.0, rescale=1e-300), id="hardly a rescale"),
    pytest.param(Guidance(2.0, schedule=Schedule("constant", floor=4.0)), id="a floor"),
    pytest.param(Guidance(3.0, original=True), id="original"),
]


@pytest.mark.parametrize("guidance", SAME)
@pytest.mark.parametrize("sampler", ["ddim", "euler"])
def test_what_equals_plain_guidance(sampler: str, guidance: Guidance) -> None:
    table = make_table(sampler, SCHEDULE, 10)
    denoise = exact(SCHEDULE, COND, MIXTURE, Gaussian(-1.0, 0.4))
    wanted = last(guided_run(table, 4.0, denoise, START))
    assert_close(last(guided_run(table, guidance, denoise, START)), wanted, rel_l2=1e-10)


def test_zero_star_where_the_halves_are_parallel() -> None:
    """uncond = k·cond has s = 1/k, and s·uncond = cond: no scale changes anything."""
    table = make_table("ddim", SCHEDULE, 10)

    def denoise(y: np.ndarray, timestep: float, guided: int) -> tuple[np.ndarray, ...]:
        cond = COND.epsilon(y, *level(SCHEDULE, timestep))
        return cond, 0.4 * cond

    wanted = last(guided_run(table, 1.0, denoise, START))
    assert_close(last(guided_run(table, Guidance(6.0, CFGZeroStar(0)), denoise, START)), wanted, rel_l2=1e-12)


def test_zero_star_where_s_is_one() -> None:
    """With cond = uncond + something at right angles s is 1, and the method is plain guidance."""
    table = make_table("ddim", SCHEDULE, 10)

    def denoise(y: np.ndarray, timestep: float, guided: int) -> tuple[np.ndarray, ...]:
        uncond = UNCOND.epsilon(y, *level(SCHEDULE, timestep))
        across = np.roll(uncond, 1, axis=1) * [1, -1, 1, -1]
        across -= (across * uncond).sum(1, keepdims=True) / (uncond**2).sum(1, keepdims=True) * uncond
        return uncond + 0.1 * across, uncond

    wanted = last(guided_run(table, 6.0, denoise, START))
    assert_close(last(guided_run(table, Guidance(6.0, CFGZeroStar(0)), denoise, START)), wanted, rel_l2=1e-12)


def test_rescaled_output_has_the_spread_of_the_conditional_one() -> None:
    table = make_table("ddim", SCHEDULE, 10)
    seen = []

    def denoise(y: np.ndarray, timestep: float, guided: int) -> tuple[np.ndarray, ...]:
        pair = exact(SCHEDULE, COND, UNCOND)(y, timestep, 1)
        seen.append((pair[0].std(axis=1), pair))
        return pair

    bound, _, wrapped = Guidance(9.0, rescale=1.0).bind(table, denoise)
    for step in bound.steps:
        guided = wrapped(START, step.timestep, 0)[0]
        spread, (cond, uncond) = seen[-1]
        assert guided.std(axis=1) == pytest.approx(spread, rel=1e-12)
        plain = uncond + 9.0 * (cond - uncond)
        assert_close(guided / plain, np.broadcast_to((guided / plain)[:, :1], guided.shape), rel_l2=1e-12)
