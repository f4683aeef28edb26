"""Solvers in σ that diffusers does not have, or not in full, against their papers' algorithms written out.

Each function below is a plain loop over levels in float64, with ``denoise(x, sigma)`` and ``noise()``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from scipy.integrate import quad

from fastdiff.samplers import NoiseSchedule, StepTable, make_table
from tests.samplers.oracle import model, table_run

Array = np.ndarray
Denoise = Callable[[Array, float], Array]
Noise = Callable[[], Array]

SHAPE = (2, 3, 4)
CONFIG = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
LOW, HIGH = 0.06, 12.0


def karras(steps: int, low: float = LOW, high: float = HIGH) -> list[float]:
    """Karras et al., Eq. 5."""
    roots = np.linspace(high ** (1 / 7), low ** (1 / 7), steps)
    return [*(float(root**7) for root in roots), 0.0]


def chain_denoiser(x: Array, sigma: float) -> Array:
    """That of a network which predicts ε for x/√(σ² + 1) and a timestep, found evenly in log σ."""
    sigmas = NoiseSchedule.from_config(CONFIG).sigmas().astype(float)
    timestep = np.interp(math.log(sigma), np.log(sigmas), np.arange(len(sigmas)))
    return x - sigma * model(x / math.sqrt(sigma**2 + 1), float(timestep))


def edm_denoiser(x: Array, sigma: float, data: float = 0.5) -> Array:
    """Karras et al., Eq. 7 with Table 1."""
    total = sigma**2 + data**2
    output = model(x / math.sqrt(total), math.log(sigma) / 4)
    return data**2 / total * x + sigma * data / math.sqrt(total) * output


def stochastic(
    denoise: Denoise,
    x: Array,
    t: Sequence[float],
    noise: Noise,
    churn: float = 0.0,
    low: float = 0.0,
    high: float = math.inf,
    s_noise: float = 1.0,
    method: str = "heun",
) -> Array:
    """Karras et al., Algorithm 2; "euler" and k-diffusion's "midpoint" instead of lines 9 to 11."""
    n = len(t) - 1
    for i in range(n):
        gamma = min(churn / n, math.sqrt(2) - 1) if low <= t[i] <= high else 0.0
        raised = t[i] + gamma * t[i]
        if gamma > 0:
            x = x + math.sqrt(raised**2 - t[i] ** 2) * s_noise * noise()
        slope = (x - denoise(x, raised)) / raised
        following = x + (t[i + 1] - raised) * slope
        if method == "heun" and t[i + 1] > 0:
            second = (following - denoise(following, t[i + 1])) / t[i + 1]
            following = x + (t[i + 1] - raised) * (slope + second) / 2
        if method == "midpoint" and t[i + 1] > 0:
            middle = math.exp((math.log(raised) + math.log(t[i + 1])) / 2)
            inner = x + (middle - raised) * slope
            following = x + (t[i + 1] - raised) * (inner - denoise(inner, middle)) / middle
        x = following
    return x


def up_and_down(sigma: float, following: float, eta: float) -> tuple[float, float]:
    """k-diffusion's get_ancestral_step: σ_up and σ_down."""
    up = min(following, eta * math.sqrt(following**2 * (sigma**2 - following**2) / sigma**2))
    return up, math.sqrt(following**2 - up**2)


def ancestral(
    denoise: Denoise, x: Array, t: Sequence[float], noise: Noise, eta: float, s_noise: float, method: str
) -> Array:
    """k-diffusion's sample_euler_ancestral, sample_dpm_2_ancestral and sample_dpmpp_2s_ancestral."""
    for sigma, following in pairwise(t):
        up, down = up_and_down(sigma, following, eta)
        clean = denoise(x, sigma)
        if method == "euler" or down == 0:
            x = x + (down - sigma) * (x - clean) / sigma
        elif method == "midpoint":
            middle = math.sqrt(sigma * down)
            inner = x + (middle - sigma) * (x - clean) / sigma
            x = x + (down - sigma) * (inner - denoise(inner, middle)) / middle
        else:
            h = math.log(sigma / down)
            inner = math.exp(-h / 2) * x - math.expm1(-h / 2) * clean
            x = math.exp(-h) * x - math.expm1(-h) * denoise(inner, sigma * math.exp(-h / 2))
        if following > 0 or method == "euler":
            x = x + s_noise * up * noise()
    return x


def two_stage_sde(
    denoise: Denoise,
    x: Array,
    t: Sequence[float],
    noise: Noise,
    eta: float = 1.0,
    s_noise: float = 1.0,
    r: float = 0.5,
    brownian: bool = True,
) -> Array:
    """k-diffusion's sample_dpmpp_sde; the motion W(σ) is drawn from the top down."""
    for sigma, following in pairwise(t):
        clean = denoise(x, sigma)
        if following == 0:
            x = clean
            continue
        inner = math.exp(-(-math.log(sigma) + r * math.log(sigma / following)))
        first = noise()  # (W(σ) − W(inner))/√(σ − inner)
        up, down = up_and_down(sigma, inner, eta)
        u = down / sigma * x - math.expm1(math.log(down / sigma)) * clean + up * s_noise * first
        blend = (1 - 1 / (2 * r)) * clean + 1 / (2 * r) * denoise(u, inner)
        second = noise()
        if brownian:
            moved = math.sqrt(sigma - inner) * first + math.sqrt(inner - following) * second
            second = moved / math.sqrt(sigma - following)
        up, down = up_and_down(sigma, following, eta)
        x = down / sigma * x - math.expm1(math.log(down / sigma)) * blend + up * s_noise * second
    return x


def multistep_sde(
    denoise: Denoise,
    x: Array,
    t: Sequence[float],
    noise: Noise,
    order: int,
    eta: float,
    s_noise: float,
    heun: bool,
) -> Array:
    """k-diffusion's sample_dpmpp_2m_sde and sample_dpmpp_3m_sde."""
    old: list[tuple[float, Array]] = []  # λ and prediction, the newest first
    for sigma, following in pairwise(t):
        clean = denoise(x, sigma)
        here = -math.log(sigma)
        if following == 0:
            x = clean
            continue
        h = -math.log(following) - here
        decay = h * (eta + 1)
        phi = math.expm1(-decay) / decay + 1
        x = math.exp(-decay) * x - math.expm1(-decay) * clean
        if order == 3 and len(old) >= 2:
            r0, r1 = (here - old[0][0]) / h, (old[0][0] - old[1][0]) / h
            newer, older = (clean - old[0][1]) / r0, (old[0][1] - old[1][1]) / r1
            slope = newer + (newer - older) * r0 / (r0 + r1)
            x = x + phi * slope - (phi / decay - 0.5) * (newer - older) / (r0 + r1)
        elif old:
            slope = (clean - old[0][1]) / ((here - old[0][0]) / h)
            x = x + (phi if heun else -0.5 * math.expm1(-decay)) * slope
        if eta:
            x = x + following * math.sqrt(-math.expm1(-2 * h * eta)) * s_noise * noise()
        old = [(here, clean), *old]
    return x


def res(denoise: Denoise, x: Array, t: Sequence[float], noise: Noise, eta: float, s_noise: float) -> Array:
    """ComfyUI's res_multistep: Zhang et al., Table 2, on the way down to σ_down."""
    old_clean, old_down = None, math.nan
    for i, (sigma, following) in enumerate(pairwise(t)):
        clean = denoise(x, sigma)
        up, down = up_and_down(sigma, following, eta)
        if old_clean is None or down == 0:
            x = x + (down - sigma) * (x - clean) / sigma
        else:
            h = math.log(sigma / down)
            c2 = (-math.log(t[i - 1]) + math.log(old_down)) / h
            phi1 = math.expm1(-h) / -h
            phi2 = (phi1 - 1) / -h
            x = math.exp(-h) * x + h * ((phi1 - phi2 / c2) * clean + phi2 / c2 * old_clean)
        if eta and following > 0:
            x = x + up * s_noise * noise()
        old_clean, old_down = clean, down
    return x


def er_sde(
    denoise: Denoise, x: Array, t: Sequence[float], noise: Noise, phi: Callable, order: int, s_noise: float
) -> Array:
    """Cui et al., Algorithms 1 to 3 for the VE SDE, with SciPy's integrals in place of sums."""
    old: list[tuple[float, Array]] = []  # σ and prediction, the newest first
    old_slope = None
    for sigma, following in pairwise(t):
        clean = denoise(x, sigma)
        if following == 0:
            x = clean
            continue
        r = phi(following) / phi(sigma)
        x = r * x + (1 - r) * clean
        if order >= 2 and old:
            integral = quad(lambda s: 1 / phi(s), following, sigma, epsabs=0, epsrel=1e-12)[0]
            slope = (clean - old[0][1]) / (sigma - old[0][0])
            x = x + (following - sigma + phi(following) * integral) * slope
            if order == 3 and old_slope is not None:
                moment = quad(
                    lambda s, top: (s - top) / phi(s), following, sigma, args=(sigma,), epsabs=0, epsrel=1e-12
                )[0]
                bend = (slope - old_slope) / ((sigma - old[1][0]) / 2)
                x = x + ((following - sigma) ** 2 / 2 + phi(following) * moment) * bend
            old_slope = slope
        variance = following**2 - sigma**2 * r**2
        if r != following / sigma:  # without noise for the ODE
            x = x + math.sqrt(variance) * s_noise * noise()
        old = [(sigma, clean), *old]
    return x


def restart(
    denoise: Denoise, x: Array, t: Sequence[float], noise: Noise, intervals: Sequence, s_noise: float
) -> Array:
    """Xu et al., Algorithm 1, with t_min at the nearest level; intervals of N_Restart, K, t_min and t_max."""
    ends = {int(np.argmin([abs(level - low) for level in t])): (n, k, high) for n, k, low, high in intervals}
    for i in range(len(t) - 1):
        x = stochastic(denoise, x, t[i : i + 2], noise)
        n, k, high = ends.get(i + 1, (0, 0, 0))
        for _ in range(k):
            x = x + math.sqrt(high**2 - t[i + 1] ** 2) * s_noise * noise()
            x = stochastic(denoise, x, karras(n, t[i + 1], high)[:-1], noise)
    return x


def compare(
    table: StepTable, algorithm: Callable[[Denoise, Array, Noise], Array], denoise: Denoise = chain_denoiser
) -> None:
    """Same start and noises for both, and as many of them. Levels rounded to float32 leave 1e-6."""
    start = np.random.default_rng(3).standard_normal(SHAPE)
    drawn = {"table": 0, "paper": 0}

    def noise(who: str) -> Noise:
        def draw() -> Array:
            drawn[who] += 1
            return np.random.default_rng(drawn[who]).standard_normal(SHAPE)

        return draw

    found = [x for _, x in table_run(table, start, noise=noise("table"))]
    wanted = algorithm(denoise, start * table.init_noise_sigma, noise("paper"))
    error = float(np.abs(found[-1] - wanted).max() / max(np.abs(wanted).max(), 1))
    assert error <= 1e-6
    assert drawn["table"] == drawn["paper"]


def table_of(name: str, steps: int, options: dict[str, Any] | None = None) -> StepTable:
    given = {"sigmas": karras(steps)[:-1], **(options or {})}
    return make_table(name, NoiseSchedule.from_config(CONFIG), steps, options=given)


STEPS = (1, 2, 5, 10, 25, 50)
CHURNS = ({}, {"s_churn": 3.0, "s_tmin": 0.2, "s_tmax": 6.0}, {"s_churn": 90.0, "s_noise": 1.1})
PAPERS_CHURN = {"s_churn": 40.0, "s_tmin": 0.05, "s_tmax": 50.0, "s_noise": 1.003}
ARGUMENTS = {"s_churn": "churn", "s_tmin": "low", "s_tmax": "high", "s_noise": "s_noise"}
NOISES = ({}, {"eta": 0.4, "s_noise": 1.1}, {"eta": 0.0})


@pytest.mark.parametrize("steps", STEPS)
@pytest.mark.parametrize("name", ["euler", "heun", "dpm2", "edm_heun", "edm_stochastic"])
def test_churn(name, steps):
    method = {"euler": "euler", "dpm2": "midpoint"}.get(name, "heun")
    for options in CHURNS:
        merged = {**(PAPERS_CHURN if name == "edm_stochastic" else {}), **options}
        arguments = {ARGUMENTS[key]: value for key, value in merged.items()}
        compare(
            table_of(name, steps, options),
            lambda d, x, z, arguments=arguments: stochastic(
                d, x, karras(steps), z, method=method, **arguments
            ),
        )


@pytest.mark.parametrize("steps", STEPS)
def test_stochastic_sampler_of_edm(steps):
    schedule = NoiseSchedule.from_config({"sigma_data": 0.5})
    levels = karras(steps, 0.002, 80.0)
    compare(
        make_table("edm_heun", schedule, steps),
        lambda d, x, z: stochastic(d, x, levels, z),
        edm_denoiser,
    )
    compare(
        make_table("edm_stochastic", schedule, steps),
        lambda d, x, z: stochastic(d, x, levels, z, 40, 0.05, 50, 1.003),
        edm_denoiser,
    )


@pytest.mark.parametrize("steps", STEPS)
@pytest.mark.parametrize("name", ["euler_ancestral", "dpm2_ancestral", "dpmpp_2s_ancestral"])
def test_ancestral(name, steps):
    method = {"euler_ancestral": "euler", "dpm2_ancestral": "midpoint"}.get(name, "2s")
    for options in NOISES[:2]:
        values = {"eta": 1.0, "s_noise": 1.0, **options}
        compare(
            table_of(name, steps, options),
            lambda d, x, z, values=values: ancestral(d, x, karras(steps), z, method=method, **values),
        )


@pytest.mark.parametrize("steps", STEPS)
@pytest.mark.parametrize(
    "options", [*NOISES[:2], {"r": 0.3}, {"noise_sampler": "independent"}, {"s_noise": 0.0}]
)
def test_dpmpp_sde(options, steps):
    values = {key: value for key, value in options.items() if key != "noise_sampler"}
    brownian = options.get("noise_sampler") != "independent"
    compare(
        table_of("dpmpp_sde", steps, options),
        lambda d, x, z: two_stage_sde(d, x, karras(steps), z, brownian=brownian, **values),
    )


@pytest.mark.parametrize("steps", STEPS)
@pytest.mark.parametrize(
    ("name", "order", "heun"),
    [("dpmpp_2m_sde_eta", 2, False), ("dpmpp_2m_sde_eta", 2, True), ("dpmpp_3m_sde", 3, True)],
)
def test_multistep_sde(name, order, heun, steps):
    for options in NOISES:
        values = {"eta": 1.0, "s_noise": 1.0, **options}
        kind = {"solver_type": "heun" if heun else "midpoint"} if order == 2 else {}
        compare(
            table_of(name, steps, {**options, **kind}),
            lambda d, x, z, v=values: multistep_sde(d, x, karras(steps), z, order, heun=heun, **v),
        )


@pytest.mark.parametrize("steps", STEPS)
@pytest.mark.parametrize(("name", "eta"), [("res_multistep", 0.0), ("res_multistep_ancestral", 1.0)])
def test_res(name, eta, steps):
    for options in NOISES:
        values = {"eta": eta, "s_noise": 1.0, **options}
        compare(
            table_of(name, steps, options),
            lambda d, x, z, values=values: res(d, x, karras(steps), z, **values),
        )


SCALES = {
    "ode": lambda x: x,
    "sde": lambda x: x**2,
    "er_sde_1": lambda x: x * (math.exp(-1 / x) + 10),
    "er_sde_2": lambda x: x**1.5,
    "er_sde_3": lambda x: x**2.5,
    "er_sde_4": lambda x: x**0.9 * math.log10(1 + 100 * x**1.5),
    "er_sde_5": lambda x: x * (math.exp(x**0.3) + 10),
}


@pytest.mark.parametrize("steps", STEPS)
@pytest.mark.parametrize("scale", SCALES)
def test_er_sde(scale, steps):
    for order in (1, 2, 3):
        compare(
            table_of("er_sde", steps, {"noise_scale": scale, "solver_order": order, "s_noise": 0.9}),
            lambda d, x, z, order=order: er_sde(d, x, karras(steps), z, SCALES[scale], order, 0.9),
        )


@pytest.mark.parametrize("steps", [5, 10, 25, 50])
@pytest.mark.parametrize(
    ("options", "intervals"),
    [
        ({"restarts": [3, 2, 0.06, 0.3]}, [(3, 2, 0.06, 0.3)]),
        ({"restarts": [4, 1, 0.3, 5, 5, 3, 2, 9]}, [(4, 1, 0.3, 5), (5, 3, 2, 9)]),
        ({"restart_preset": "none"}, []),
    ],
)
def test_restart(options, intervals, steps):
    table = table_of("restart", steps, {**options, "s_noise": 1.003})
    compare(table, lambda d, x, z: restart(d, x, karras(steps), z, intervals, 1.003))
    more = sum(2 * k * (n - 1) for n, k, _, _ in intervals)
    assert table.evaluations == 2 * steps - 1 + more
