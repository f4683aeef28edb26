"""Noise processes: their relations, their inverses, and points that solvers step through."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest

from fastdiff.errors import InputError
from fastdiff.samplers import NoiseSchedule, Point, Prediction, StepTable, step_at
from fastdiff.samplers.dpm_multistep import dpm_multistep
from fastdiff.samplers.exponential import Form
from fastdiff.samplers.heun import heun_step
from fastdiff.samplers.moves import rows_of
from fastdiff.samplers.probability_flow import share_at, straight_point, straight_scale, straight_slope
from fastdiff.samplers.process import EDM, VE, VP, Chain, Flow, SubVP
from fastdiff.samplers.process_points import PROCESSES, chosen_times, process_of, process_points, rescaled
from tests.samplers.configs import STABLE_DIFFUSION
from tests.samplers.exact import GAUSSIAN, MEAN, flow, marginal, order_of, states

SCHEDULE = NoiseSchedule.from_config(STABLE_DIFFUSION)
RUNS = {
    "vp": VP(),
    "vp_steep": VP(0.01, 40.0, t_min=1e-5),
    "vp_constant": VP(3.0, 3.0),
    "sub_vp": SubVP(),
    "ve": VE(),
    "edm": EDM(),
    "flow": Flow(),
    "flow_shifted": Flow(3.0, t_max=0.99),
    "chain": Chain.of(SCHEDULE),
}
PARTS = pytest.mark.parametrize("process", RUNS.values(), ids=RUNS)


def inner_times(process):
    """Times away from a chain's nodes, where its slope jumps, and from a flow's last, which has no signal."""
    times = np.linspace(process.t_min, process.t_max, 41)[1:-1]
    return np.floor(times) + 0.5 if isinstance(process, Chain) else times


@PARTS
def test_drift_and_diffusion_are_those_of_alpha_and_sigma(process):
    """f = d log α/dt and g² = dσ²/dt − 2f·σ², by central differences."""
    for t in inner_times(process):
        h = 1e-4 * min(1.0, t)
        slope = (math.log(process.alpha(t + h)) - math.log(process.alpha(t - h))) / (2 * h)
        spread = (process.sigma(t + h) ** 2 - process.sigma(t - h) ** 2) / (2 * h)
        assert process.drift(t) == pytest.approx(slope, rel=1e-5, abs=1e-9)
        assert process.diffusion2(t) == pytest.approx(spread - 2 * slope * process.sigma(t) ** 2, rel=1e-5)


@PARTS
def test_time_at_inverts_log_snr(process):
    times = [process.t_min, *inner_times(process)]
    snrs = [process.log_snr(t) for t in times]
    assert snrs == sorted(snrs, reverse=True)
    assert [process.time_at(snr) for snr in snrs] == pytest.approx(times, rel=1e-9, abs=1e-9)


def test_relations_of_the_families():
    for t in (1e-3, 0.2, 0.7, 1.0):
        alpha = math.exp(-0.5 * (0.1 * t + 9.95 * t**2))
        assert VP().alpha(t) == pytest.approx(alpha)
        assert VP().alpha(t) ** 2 + VP().sigma(t) ** 2 == pytest.approx(1, rel=1e-14)
        assert SubVP().sigma(t) == pytest.approx(VP().sigma(t) ** 2, rel=1e-12)
        assert VE(0.01, 50).sigma(t) == pytest.approx(0.01 * 5000**t)
        assert Flow(3.0).alpha(t) + Flow(3.0).sigma(t) == pytest.approx(1, rel=1e-14)
    assert VP(3.0, 3.0).alpha(0.5) == pytest.approx(math.exp(-0.75))


def test_a_chain_is_the_schedule_at_its_timesteps():
    """ᾱ is the schedule's, and the noise spent between t − 1 and t is β_t, down to t = −1 without noise."""
    chain, alpha_bar = RUNS["chain"], SCHEDULE.alphas_cumprod().astype(float)
    for t in (0, 1, 500, 999):
        assert chain.alpha(t) ** 2 == pytest.approx(alpha_bar[t], rel=1e-12)
        assert chain.sigma(t) ** 2 == pytest.approx(1 - alpha_bar[t], rel=1e-10)
        assert math.exp(-chain.diffusion2(t)) == pytest.approx(1 - SCHEDULE.betas[t], rel=1e-6)
    assert (chain.alpha(-1), chain.sigma(-1)) == (1, 0)
    assert chain.alpha(0) < chain.alpha(-0.5) < 1
    zero_snr = Chain.of(SCHEDULE, zero_terminal_snr=True)
    assert zero_snr.alpha(999) == pytest.approx(2**-12, rel=1e-12)
    assert zero_snr.sigma(0) == pytest.approx(chain.sigma(0), rel=1e-4)


def test_preconditioning_is_that_of_karras():
    """Table 1 of the paper: c_skip, c_out, c_in and c_noise."""
    sigma, data = 3.0, 0.5
    point = EDM(sigma_data=data).point(sigma)
    total = sigma**2 + data**2
    assert (point.alpha, point.sigma, point.timestep) == (1, sigma, pytest.approx(math.log(sigma) / 4))
    assert point.input_scale == pytest.approx(1 / math.sqrt(total))
    assert point.x0.sample == pytest.approx(data**2 / total)
    assert point.x0.output == pytest.approx(sigma * data / math.sqrt(total))
    negative = EDM(sigma_data=data).point(sigma, Prediction.V)
    assert negative.x0.output == -point.x0.output
    with pytest.raises(InputError, match=r"prediction_type 'sample', wanted 'epsilon'"):
        EDM().point(1.0, Prediction.SAMPLE)


def test_what_the_denoiser_is_told():
    assert VP().point(0.5).timestep == pytest.approx(499.5)
    assert SubVP().point(1.0).timestep == 999
    assert VE().point(1.0).timestep == pytest.approx(50)
    assert Flow(3.0).point(0.5).timestep == pytest.approx(750)
    assert RUNS["chain"].point(17.0).timestep == 17


@PARTS
@pytest.mark.parametrize(
    "spacing", ["uniform", "log_snr", "karras", "exponential", "polyexponential", "beta"]
)
@pytest.mark.parametrize("steps", [1, 2, 7])
def test_points_go_from_the_largest_level_down(process, spacing, steps):
    if isinstance(process, Flow) and process.t_max == 1 and spacing != "uniform":
        with pytest.raises(InputError, match="set sigma_max"):
            process_points(process, steps, spacing)
        return
    points = process_points(process, steps, spacing)
    assert len(points) == steps + 1
    assert points[0].ratio == pytest.approx(process.point(process.t_max).ratio)
    assert points[-1].sigma == 0
    assert points[-1].alpha == 1
    assert all(later.ratio < earlier.ratio for earlier, later in pairwise(points))
    kept = process_points(process, steps, spacing, denoise=False)
    assert len(kept) == steps + 1
    assert kept[-1].log_snr == pytest.approx(process.log_snr(process.t_min))


def test_spacings_are_even_where_they_should_be():
    points = process_points(VP(), 9, "log_snr", denoise=False)
    assert np.ptp(np.diff([point.log_snr for point in points])) < 1e-9
    points = process_points(Flow(t_max=0.99), 9, "karras", rho=3.0, denoise=False)
    assert np.ptp(np.diff([point.ratio ** (1 / 3) for point in points])) < 1e-9
    with pytest.raises(InputError, match=r"spacing 'cosine' is unknown; use one of uniform"):
        process_points(VP(), 3, "cosine")


def flow_error(process, steps: int, solver) -> float:
    """Of a solver's steps to ``t_min`` on a Gaussian; of x/α."""
    points = [
        rescaled(p) if solver is heun_step else p
        for p in process_points(process, steps, "karras", denoise=False)
    ]
    if solver is heun_step:
        rows = [row for here, there in pairwise(points) for row in heun_step(here, there)]
        slots = 1
    elif solver is dpm_multistep:
        rows, slots = rows_of(points, dpm_multistep(points, [1] + [2] * (steps - 1), Form.DATA), Form.DATA)
    else:
        rows, slots = [step_at(here, here.to(there)) for here, there in pairwise(points)], 0
    mean, variance = marginal(points[0], GAUSSIAN.means[0], GAUSSIAN.stds[0])
    start = mean + np.array([[-1.0], [0.5], [2.0]]) * math.sqrt(variance)
    found = states(StepTable("solver", tuple(rows), slots=slots), GAUSSIAN, start)[-1]
    return float(np.abs(found - flow(GAUSSIAN, start, points[0], points[-1])).max()) / points[-1].alpha


@pytest.mark.parametrize("name", ["vp", "sub_vp", "ve", "edm", "flow_shifted", "chain"])
@pytest.mark.parametrize(
    ("solver", "order"),
    [(Point.to, 1), (heun_step, 2), (dpm_multistep, 2)],
    ids=["euler", "heun", "dpmpp_2m"],
)
def test_solvers_over_points_run_on_every_process(name, solver, order):
    """With the order that they have elsewhere; Heun's method is for x/α, the others take any process."""
    counts = (100, 200, 400)
    errors = [flow_error(RUNS[name], steps, solver) for steps in counts]
    assert order_of(counts, errors) == pytest.approx(order, abs=0.15)
    assert errors[-1] < {1: 0.05, 2: 2e-3}[order]


@PARTS
def test_straight_coordinates_are_the_process(process):
    """One point of data: dy/du = ε − x₀ is constant, so that one step is exact."""
    x0, epsilon = 0.7, -1.3
    for u in np.linspace(share_at(process, process.t_min), share_at(process, process.t_max), 5):
        point = straight_point(process, u, Prediction.EPSILON)
        assert point.sigma / straight_scale(point) == pytest.approx(u, rel=1e-9)
        state = point.alpha * x0 + point.sigma * epsilon
        assert state / straight_scale(point) == pytest.approx((1 - u) * x0 + u * epsilon)
        if not point.alpha:
            continue
        output = (x0 - point.x0.sample * state) / point.x0.output
        linear = straight_slope(point)
        assert linear.sample * state + linear.output * output == pytest.approx(epsilon - x0, rel=1e-9)


@pytest.mark.parametrize("process", [VP(), EDM(), RUNS["chain"]])
def test_rescaled_points_see_the_same(process):
    """For x/α the denoiser gets the same input, and means the same clean sample."""
    point = process.point(0.3 * process.t_max + 1e-3)
    scaled = rescaled(point)
    x = 1.7
    assert (scaled.alpha, scaled.sigma) == (1, point.sigma / point.alpha)
    assert scaled.input_scale * x / point.alpha == pytest.approx(point.input_scale * x)
    assert scaled.x0.sample * x / point.alpha == pytest.approx(point.x0.sample * x)
    assert scaled.x0.output == pytest.approx(point.x0.output)
    assert MEAN * scaled.alpha == marginal(scaled)[0]


def chosen(config: dict, steps: int = 4):
    schedule = NoiseSchedule.from_config({**STABLE_DIFFUSION, **config})
    settings = schedule.settings("test")
    process = process_of(schedule, settings)
    return process, chosen_times(process, settings, steps)


def test_a_config_chooses_the_process():
    kinds = {name: type(chosen({"process": name})[0]) for name in PROCESSES}
    assert kinds == {"chain": Chain, "vp": VP, "sub_vp": SubVP, "ve": VE, "edm": EDM, "flow": Flow}
    assert type(chosen({})[0]) is Chain
    assert chosen({"process": "vp", "beta_min": 0.2, "beta_max": 15, "sampling_eps": 0.01})[0] == VP(
        0.2, 15, t_min=0.01
    )
    assert chosen({"process": "ve", "sigma_min": 0.02, "sigma_max": 90.0})[0] == VE(0.02, 90.0)
    assert chosen({"process": "edm", "sigma_min": 0.1, "sigma_max": 20, "sigma_data": 1.0})[0] == EDM(
        pytest.approx(0.1), pytest.approx(20), 1.0
    )
    flow, _ = chosen({"process": "flow", "shift": 3, "sigma_max": 50})
    assert flow.shift == 3
    assert flow.log_snr(flow.t_max) == pytest.approx(-math.log(50))
    chain, _ = chosen({"sigma_min": 0.1, "sigma_max": 5})
    assert math.exp(-chain.log_snr(chain.t_min)) == pytest.approx(0.1)
    assert math.exp(-chain.log_snr(chain.t_max)) == pytest.approx(5)
    chain, _ = chosen({"sigma_min": 0.029, "sigma_max": 14.62})
    assert (chain.t_min, chain.t_max) == (0, 999), "rounded levels are those of the chain"


def test_a_config_chooses_the_times():
    _, times = chosen({})
    assert times == pytest.approx([999, 666, 333, 0])
    process, times = chosen({"use_karras_sigmas": True})
    levels = [process.point(t).ratio for t in times]
    assert np.ptp(np.diff(np.power(levels, 1 / 7))) < 1e-6
    process, times = chosen({"process": "vp", "sigmas": [10.0, 3.0, 1.0, 0.1]})
    assert [process.point(t).ratio for t in times] == pytest.approx([10, 3, 1, 0.1])
    _, times = chosen({"process": "vp", "timesteps": [0.9, 0.5, 0.3, 0.1]})
    assert times == pytest.approx([0.9, 0.5, 0.3, 0.1])


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"process": "cosine"}, r"process='cosine'.*wants one of 'chain'"),
        ({"process": "vp", "beta_min": 2.0, "beta_max": 1.0}, "beta_max is 1, wanted at least beta_min, 2"),
        ({"process": "ve", "sigma_min": 2.0, "sigma_max": 1.0}, "sigma_max is 1, wanted more than sigma_min"),
        ({"sigma_min": 2.0, "sigma_max": 1.0}, "sigma_min is not below sigma_max"),
        ({"process": "vp", "sampling_eps": 1.0}, "sampling_eps is 1, wanted less than 1"),
        ({"timesteps": [4, 3, 2, 1], "sigmas": [4, 3, 2, 1]}, "more than one of sigma_spacing"),
        ({"timesteps": [1500, 3, 2, 1]}, "timesteps run from 1500 to 1, wanted within 999 to 0"),
        ({"sigmas": [4, 3, 2, 0]}, "sigmas end with 0"),
        ({"sigmas": [40, 3, 2, 1]}, r"a noise level is 40, wanted 0.029\d+ to 14.6\d+, the range"),
        ({"sigma_max": 500}, r"a noise level is 500, wanted 0.029\d+ to 14.6\d+, the range"),
        ({"process": "vp", "sigma_min": 1e-4}, r"a noise level is 0.0001, wanted 0.01\d+ to 152"),
        ({"process": "flow", "use_karras_sigmas": True}, "set sigma_max"),
    ],
)
def test_configs_that_cannot_be_used(config, message):
    with pytest.raises(InputError, match=message):
        chosen(config)


def test_a_flow_has_no_drift_without_signal():
    with pytest.raises(InputError, match="infinite at t = 1"):
        Flow().drift(1.0)
    assert Flow().point(1.0) == Point(1000.0, 0.0, 1.0)
