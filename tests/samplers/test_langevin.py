"""Annealed Langevin dynamics of NCSN and NCSNv2."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from fastdiff.errors import InputError
from fastdiff.samplers import NoiseSchedule, StepTable, make_table
from fastdiff.samplers.langevin import annealed_langevin, level_count, ncsnv2_step_size
from fastdiff.samplers.process import VE, VP
from fastdiff.samplers.process_points import rescaled
from tests.samplers.configs import STABLE_DIFFUSION
from tests.samplers.exact import MEAN, STD, affine, marginal, moments
from tests.samplers.oracle import table_run

SCHEDULE = NoiseSchedule.from_config(STABLE_DIFFUSION)


@pytest.mark.parametrize("process", [VE(0.01, 10.0), VP()], ids=["ve", "vp"])
@pytest.mark.parametrize("share", [0.05, 0.5, 1.5])
def test_stationary_variance_of_the_discretised_chain(process, share):
    """x' = (1 − e/v)·x + √(2e)·z settles at v/(1 − e/(2v)), not at v, and its mean is the data's."""
    point = rescaled(process.point(0.6))
    mean, variance = marginal(point)
    e = share * variance
    (row,) = annealed_langevin([point], 1, e, denoise=False)
    assert affine(row, 0)[0][0, 0] == pytest.approx(1 - share, rel=1e-9)
    found_mean, found = moments(StepTable("settling", (row,) * 2000), start=(5.0, 9.0))
    assert found_mean == pytest.approx(mean, rel=1e-9)
    assert found == pytest.approx(variance / (1 - share / 2), rel=1e-9)


def test_algorithm_1_of_ncsn_literally():
    """αᵢ = ε·σᵢ²/σ_L², x + αᵢ/2·s(x, σᵢ) + √αᵢ·z, with the paper's ten levels from 1 to 0.01."""
    options = {"process": "ve", "sigma_min": 0.01, "sigma_max": 1.0, "sampling_eps": 1e-15}
    options |= {"inner_steps": 3, "step_size": 2e-5, "prediction_type": "score"}
    table = make_table("ncsn", SCHEDULE, 10, options=options)
    sigmas = np.exp(np.linspace(math.log(1.0), math.log(0.01), 10))
    assert table.evaluations == 30
    assert table.timesteps[::3] == pytest.approx(sigmas)

    def score(x, sigma):
        return np.sin(3 * x) / sigma

    rng = np.random.default_rng(5)
    start, noises = rng.standard_normal((2, 3)), rng.standard_normal((30, 2, 3))
    left = iter(noises)
    *_, (_, found) = table_run(table, start, score, lambda: next(left))
    x, left = start * 1.0, iter(noises)
    for sigma in sigmas:
        alpha = 2e-5 * sigma**2 / 0.01**2
        for _ in range(3):
            x = x + alpha / 2 * score(x, sigma) + math.sqrt(alpha) * next(left)
    np.testing.assert_allclose(found, x, rtol=1e-9)
    same = make_table("ncsn", SCHEDULE, 10, options={**options, "step_size": None})
    assert [s.noise_coef for s in same.steps] == pytest.approx([s.noise_coef for s in table.steps])


def test_algorithm_1_of_ncsnv2_literally():
    """αᵢ = ε·σᵢ²/σ_L², x + αᵢ·s + √(2αᵢ)·z, and x + σ_L²·s at the end."""
    options = {"process": "ve", "sigma_min": 0.01, "sigma_max": 50.0, "sampling_eps": 1e-15}
    options |= {"step_size": 6.2e-6, "prediction_type": "score"}
    table = make_table("ncsnv2", SCHEDULE, 12, options=options)
    assert table.evaluations == 61
    assert table.init_noise_sigma == pytest.approx(50)

    def score(x, sigma):
        return -x / (sigma**2 + 0.3) + 0.1 * np.cos(x)

    rng = np.random.default_rng(6)
    start, noises = rng.standard_normal((2, 3)), rng.standard_normal((60, 2, 3))
    left = iter(noises)
    *_, (_, found) = table_run(table, start, score, lambda: next(left))
    x, left = start * 50, iter(noises)
    sigmas = np.exp(np.linspace(math.log(50.0), math.log(0.01), 12))
    for sigma in sigmas:
        step = 6.2e-6 * (sigma / sigmas[-1]) ** 2
        for _ in range(5):
            x = x + step * score(x, sigma) + math.sqrt(2 * step) * next(left)
    np.testing.assert_allclose(found, x + 0.01**2 * score(x, sigmas[-1]), rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("sigma_max", "dims", "levels", "inner_steps", "step_size"),
    [
        (50, 3 * 32 * 32, 232, 5, 6.2e-6),
        (90, 3 * 64 * 64, 500, 5, 3.3e-6),
        (190, 3 * 128 * 128, 1086, 3, 1.8e-6),
        (348, 3 * 256 * 256, 2311, 3, 0.9e-6),
    ],
    ids=["cifar10", "celeba", "lsun", "ffhq"],
)
def test_techniques_give_what_the_paper_used(sigma_max, dims, levels, inner_steps, step_size):
    """The configurations published with NCSNv2: levels by technique 2, step sizes by technique 4."""
    assert level_count(0.01, sigma_max, dims) == pytest.approx(levels, rel=2e-3)
    ratio = (sigma_max / 0.01) ** (1 / (levels - 1))
    assert ncsnv2_step_size(ratio, inner_steps) * 0.01**2 == pytest.approx(step_size, rel=0.03)


def test_annealing_reaches_the_data():
    """Exact moments of the whole run: the error falls as 1/steps per level, whose step size stays the same.

    At low levels the dynamics are too slow to follow; what is left is the time spent in all.
    """
    errors = []
    for inner in (20, 40, 80):
        options = {"process": "ve", "sigma_max": 10.0, "inner_steps": inner, "step_size": 0.05 * 0.01**2}
        table = make_table("ncsnv2", SCHEDULE, 100, options=options)
        mean, variance = moments(table, start=(0.0, table.init_noise_sigma**2))
        assert mean == pytest.approx(MEAN, abs=1e-9)
        errors.append(abs(variance - STD**2))
    assert [math.log2(a / b) for a, b in itertools.pairwise(errors)] == pytest.approx([1, 1], abs=0.15)
    assert errors[-1] < 0.01


def test_a_checkpoint_of_stable_diffusion_runs():
    """The denoiser sees x/√(σ² + 1) at levels of the chain, and x has no factor on the signal."""
    table = make_table("ncsnv2", SCHEDULE, 8)
    assert table.timesteps[0] == 999
    assert table.timesteps[-1] == pytest.approx(0, abs=1e-9)
    assert table.init_noise_sigma == pytest.approx(14.6146, abs=1e-3)
    for step in table.steps:
        assert step.point.alpha == 1
        assert step.input_scale == pytest.approx(1 / math.sqrt(step.point.sigma**2 + 1), rel=1e-6)
    levels = [step.point.sigma for step in table.steps[:40:5]]
    assert np.ptp(np.diff(np.log(levels))) < 1e-9
    given = make_table("ncsn", SCHEDULE, 3, options={"sigmas": [3, 2, 1], "inner_steps": 1})
    assert [step.point.sigma for step in given.steps] == pytest.approx([3, 2, 1])
    assert make_table("ncsnv2", SCHEDULE, 1).evaluations == 6
    assert make_table("ncsn", SCHEDULE, 2, options={"variance_type": "learned"}).variance_channels


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"step_size": 0.1}, r"step size of 0.05 diverges at the last level, 0.029.*set step_size"),
        ({"inner_steps": 0}, "inner_steps=0.*1 or more"),
        ({"sigmas": [2, 1, 0]}, "sigmas end with 0"),
        ({"sigmas": [3, 2, 1], "use_karras_sigmas": True}, "keep one"),
        ({"thresholding": True}, "does not support thresholding"),
        ({"eta": 0.5}, "has no option|adds no noise"),
    ],
)
def test_options_that_cannot_be_used(options, message):
    with pytest.raises(InputError, match=message):
        make_table("ncsn", SCHEDULE, 3, options=options)
