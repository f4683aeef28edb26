"""Predictor–corrector samplers against score_sde's formulas, diffusers' schedulers and exact moments."""

from __future__ import annotations

import itertools
import math
import warnings
from dataclasses import replace

import diffusers
import numpy as np
import pytest
import torch
from diffusers.schedulers.deprecated import ScoreSdeVpScheduler

from fastdiff.errors import InputError
from fastdiff.samplers import NoiseSchedule, make_table, sampler_of
from tests.samplers.configs import STABLE_DIFFUSION
from tests.samplers.exact import MEAN, STD, marginal, moments, point_of
from tests.samplers.oracle import table_run

SCHEDULE = NoiseSchedule.from_config(STABLE_DIFFUSION)
PREDICTORS = ("euler_maruyama", "reverse_diffusion", "ancestral", "none")
SHAPE = (2, 3, 4)


def draws(seed: int = 0):
    """A source of noises that both sides of a comparison draw from, and the count of draws."""
    count = itertools.count(seed)
    return (lambda: np.random.default_rng(next(count)).standard_normal(SHAPE)), count


def epsilon_model(x, label):
    return np.tanh(0.6 * x + np.sin(np.arange(x.size).reshape(x.shape) + label / 150))


class ScoreSde:
    """sampling.py and sde_lib.py of yang-song/score_sde, in float64 and one function per update."""

    def __init__(self, kind, steps, *, snr, correct_steps, flow):
        self.kind, self.N, self.snr, self.correct_steps, self.flow = kind, steps, snr, correct_steps, flow
        self.beta_0, self.beta_1, self.sigma_min, self.sigma_max = 0.1, 20.0, 0.01, 50.0
        self.eps = 1e-5 if kind == "ve" else 1e-3
        self.discrete_betas = np.linspace(self.beta_0 / self.N, self.beta_1 / self.N, self.N)
        self.alphas = 1.0 - self.discrete_betas
        self.discrete_sigmas = np.exp(np.linspace(np.log(self.sigma_min), np.log(self.sigma_max), self.N))

    def std(self, t):
        if self.kind == "ve":
            return self.sigma_min * (self.sigma_max / self.sigma_min) ** t
        log_mean_coeff = -0.25 * t**2 * (self.beta_1 - self.beta_0) - 0.5 * t * self.beta_0
        square = 1 - np.exp(2.0 * log_mean_coeff)
        return np.sqrt(square) if self.kind == "vp" else square

    def score(self, x, t):
        if self.kind == "ve":
            return epsilon_model(x, self.std(t)) / self.std(t)
        return -epsilon_model(x, t * 999) / self.std(t)

    def sde(self, x, t):
        if self.kind == "ve":
            sigma = self.std(t)
            return 0 * x, sigma * np.sqrt(2 * (np.log(self.sigma_max) - np.log(self.sigma_min)))
        beta_t = self.beta_0 + t * (self.beta_1 - self.beta_0)
        discount = 1.0
        if self.kind == "sub_vp":
            discount = 1.0 - np.exp(-2 * self.beta_0 * t - (self.beta_1 - self.beta_0) * t**2)
        return -0.5 * beta_t * x, np.sqrt(beta_t * discount)

    def discretize(self, x, t):
        timestep = int(t * (self.N - 1))
        if self.kind == "ve":
            sigma = self.discrete_sigmas[timestep]
            adjacent = 0.0 if timestep == 0 else self.discrete_sigmas[timestep - 1]
            return 0 * x, np.sqrt(sigma**2 - adjacent**2)
        if self.kind == "vp":
            return np.sqrt(self.alphas[timestep]) * x - x, np.sqrt(self.discrete_betas[timestep])
        drift, diffusion = self.sde(x, t)
        return drift / self.N, diffusion * np.sqrt(1 / self.N)

    def predictor(self, name, x, t, randn):
        if name == "none":
            return x, x
        z, half = randn(), 0.5 if self.flow else 1.0
        score = self.score(x, t)
        if name == "euler_maruyama":
            drift, diffusion = self.sde(x, t)
            mean = x + (drift - diffusion**2 * score * half) * (-1.0 / self.N)
            return mean + (0 if self.flow else diffusion) * np.sqrt(1 / self.N) * z, mean
        if name == "reverse_diffusion":
            f, g = self.discretize(x, t)
            mean = x - (f - g**2 * score * half)
            return mean + (0 if self.flow else g) * z, mean
        timestep = int(t * (self.N - 1))
        if self.kind == "ve":
            sigma = self.discrete_sigmas[timestep]
            adjacent = 0.0 if timestep == 0 else self.discrete_sigmas[timestep - 1]
            mean = x + score * (sigma**2 - adjacent**2)
            return mean + np.sqrt((adjacent**2 * (sigma**2 - adjacent**2)) / (sigma**2)) * z, mean
        beta = self.discrete_betas[timestep]
        mean = (x + beta * score) / np.sqrt(1.0 - beta)
        return mean + np.sqrt(beta) * z, mean

    def corrector(self, name, x, t, randn):
        alpha = 1.0 if self.kind == "ve" else self.alphas[int(t * (self.N - 1))]
        for _ in range(self.correct_steps if name != "none" else 0):
            grad, noise = self.score(x, t), randn()
            if name == "langevin":
                grad_norm = np.linalg.norm(grad.reshape((grad.shape[0], -1)), axis=-1).mean()
                noise_norm = np.linalg.norm(noise.reshape((noise.shape[0], -1)), axis=-1).mean()
                step_size = (self.snr * noise_norm / grad_norm) ** 2 * 2 * alpha
            else:
                step_size = (self.snr * self.std(t)) ** 2 * 2 * alpha
            x = x + step_size * grad + noise * np.sqrt(step_size * 2)
        return x

    def sample(self, predictor, corrector, start, randn, *, denoise=True):
        x = mean = start * (self.sigma_max if self.kind == "ve" else 1.0)
        for t in np.linspace(1.0, self.eps, self.N):
            x = self.corrector(corrector, x, t, randn)
            x, mean = self.predictor(predictor, x, t, randn)
        return mean if denoise else x


COMBINATIONS = [
    (kind, predictor, corrector)
    for kind, predictor, corrector in itertools.product(
        ("vp", "sub_vp", "ve"), PREDICTORS, ("langevin", "ald", "none")
    )
    # Nothing to do, and what the paper's code raises for: sub-VP has neither ancestral sampling nor alphas.
    if (predictor, corrector) != ("none", "none")
    and not (kind == "sub_vp" and (predictor == "ancestral" or corrector != "none"))
]


def drawing_always(table):
    """The table with draws where the paper's code draws and does not use it."""
    steps = tuple(replace(step, noise_coef=step.noise_coef or 0.0) for step in table.steps)
    return replace(table, steps=steps)


@pytest.mark.parametrize(("kind", "predictor", "corrector"), COMBINATIONS)
def test_follows_score_sde(kind, predictor, corrector):
    """Every combination: as SDE with denoising at the end, and as ODE, where there is one, without."""
    both = predictor in ("euler_maruyama", "reverse_diffusion")
    for steps, denoise, correct_steps in ((25, True, 1), (40, False, 2)):
        options: dict[str, object] = {
            "process": kind,
            "predictor": predictor,
            "corrector": corrector,
            "correct_steps": correct_steps,
            "snr": 0.2,
            "batch_mean": True,
            "final_sigmas_type": "zero" if denoise else "sigma_min",
            "prediction_type": "score" if kind == "ve" else "epsilon",
        }
        flow = both and not denoise
        options |= {"probability_flow": flow} if both else {}
        table = make_table("pc", SCHEDULE, steps, options=options)
        model = (lambda x, label: epsilon_model(x, label) / label) if kind == "ve" else epsilon_model
        start = np.random.default_rng(steps).standard_normal(SHAPE)

        noise, drawn = draws()
        *_, (_, found) = table_run(drawing_always(table), start, model, noise)
        count = next(drawn)
        noise, drawn = draws()
        paper = ScoreSde(kind, steps, snr=0.2, correct_steps=correct_steps, flow=flow)
        wanted = paper.sample(predictor, corrector, start, noise, denoise=denoise)
        assert next(drawn) == count
        np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-9 * np.abs(wanted).max())


@pytest.mark.parametrize("steps", [5, 10, 25, 50, 1])
@pytest.mark.parametrize(
    "config",
    [
        {},
        {"correct_steps": 2, "snr": 0.3},
        {"correct_steps": 0, "sigma_min": 0.02, "sigma_max": 50.0},
        {"sampling_eps": 1e-3, "num_train_timesteps": 100, "sigma_max": 348.0},
    ],
)
def test_follows_score_sde_ve_scheduler(config, steps):
    """Correction and prediction of diffusers, in float64 from its float32 grids; batch means of the norms."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="__array__ implementation", category=DeprecationWarning)
        scheduler = diffusers.ScoreSdeVeScheduler.from_config(config)
        scheduler.set_timesteps(steps)
        scheduler.set_sigmas(steps)
    scheduler.discrete_sigmas = scheduler.discrete_sigmas.double()

    def score(x, sigma):
        return epsilon_model(x / (1 + sigma), sigma) / (sigma + 0.1)

    start = np.random.default_rng(steps).standard_normal(SHAPE)
    noise, theirs_drawn = draws()

    def randn_tensor(shape, *_, **__):
        return torch.from_numpy(noise())

    x, theirs = torch.from_numpy(start) * scheduler.init_noise_sigma, []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("diffusers.schedulers.scheduling_sde_ve.randn_tensor", randn_tensor)
        for t, sigma in zip(scheduler.timesteps, scheduler.sigmas.double(), strict=True):
            for _ in range(scheduler.config.correct_steps):
                output = torch.from_numpy(score(x.numpy(), float(sigma)))
                x = scheduler.step_correct(output, x).prev_sample
                theirs.append((float(sigma), x.numpy()))
            output = torch.from_numpy(score(x.numpy(), float(sigma)))
            step = scheduler.step_pred(output, t, x)
            x = step.prev_sample
            theirs.append((float(sigma), x.numpy()))
    theirs[-1] = (theirs[-1][0], step.prev_sample_mean.numpy())

    config = {"_class_name": "ScoreSdeVeScheduler", **config}
    assert sampler_of(config) == "score_sde_ve"
    table = make_table("score_sde_ve", NoiseSchedule.from_config(config), steps)
    noise, drawn = draws()
    _, *ours = table_run(table, start, score, noise)
    assert next(drawn) == next(theirs_drawn)
    assert_same(ours, theirs)


@pytest.mark.parametrize("steps", [5, 10, 25, 50, 1])
@pytest.mark.parametrize(
    "config", [{}, {"beta_min": 0.3, "beta_max": 12}, {"sampling_eps": 1e-2, "num_train_timesteps": 50}]
)
def test_follows_score_sde_vp_scheduler(config, steps):
    """Prediction of diffusers in float64 from its float32 times."""
    scheduler = ScoreSdeVpScheduler.from_config(config)
    scheduler.set_timesteps(steps)
    start = np.random.default_rng(steps).standard_normal(SHAPE)
    noise, theirs_drawn = draws()

    def randn_tensor(shape, *_, **__):
        return torch.from_numpy(noise())

    x, theirs = torch.from_numpy(start), []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("diffusers.schedulers.deprecated.scheduling_sde_vp.randn_tensor", randn_tensor)
        for t in scheduler.timesteps.double():
            label = float(t) * (steps - 1)
            output = torch.from_numpy(epsilon_model(x.numpy(), label))
            x, mean = scheduler.step_pred(output, x, t)
            theirs.append((label, x.numpy()))
    theirs[-1] = (theirs[-1][0], mean.numpy())

    config = {"_class_name": "ScoreSdeVpScheduler", **config}
    assert sampler_of(config) == "score_sde_vp"
    table = make_table("score_sde_vp", NoiseSchedule.from_config(config), steps)
    noise, drawn = draws()
    _, *ours = table_run(table, start, epsilon_model, noise)
    assert next(drawn) == next(theirs_drawn)
    assert_same(ours, theirs)


def assert_same(ours, theirs):
    """Timesteps, and every sample to 1e-5 of the largest."""
    assert [t for t, _ in ours] == pytest.approx([t for t, _ in theirs], rel=1e-6, abs=1e-6)
    scale = max(np.abs(x).max() for _, x in theirs)
    for (_, found), (_, wanted) in zip(ours, theirs, strict=True):
        assert np.abs(found - wanted).max() <= 1e-5 * scale


ENDS = {
    "vp": {"sampling_eps": 1e-6},
    "sub_vp": {"sampling_eps": 1e-6},
    "ve": {"sigma_min": 1e-3, "sigma_max": 20.0},
    "chain": {"sigma_max": 5.0, "sigma_spacing": "karras"},
    "edm": {"sigma_spacing": "karras", "sigma_min": 1e-3, "sigma_max": 20.0},
}
"""Small last levels; the chain's is not, and the sample is looked at before the step that removes it."""


def moment_errors(process, predictor, corrector, counts, **options):
    """Of mean and variance at the data, the larger, for tables of ``counts`` steps."""
    options |= {"process": process, "predictor": predictor, "corrector": corrector, **ENDS[process]}
    errors = []
    for count in counts:
        table = make_table("pc", SCHEDULE, count, options=options)
        wanted = MEAN, STD**2
        if process == "chain":
            end = point_of(table.steps[-1])
            wanted = marginal(end)
            table = replace(table, steps=tuple(step for step in table.steps if step.point != end))
        found = moments(replace(table, start_noise=None))
        errors.append(max(abs(a - b) for a, b in zip(found, wanted, strict=True)))
    return errors


def slopes(errors):
    return [math.log2(coarse / fine) for coarse, fine in itertools.pairwise(errors)]


@pytest.mark.parametrize("process", ENDS)
@pytest.mark.parametrize("predictor", PREDICTORS[:3])
def test_moments_reach_the_data_at_first_order(process, predictor):
    """Mean and variance, propagated exactly, miss the data's by an error that halves with the steps."""
    counts = (200, 400, 800)
    errors = moment_errors(process, predictor, "none", counts)
    assert slopes(errors) == pytest.approx([1, 1], abs=0.15)
    assert errors[-1] < 0.02
    if predictor != "ancestral":
        errors = moment_errors(process, predictor, "none", counts, probability_flow=True)
        assert slopes(errors) == pytest.approx([1, 1], abs=0.15)


@pytest.mark.parametrize("process", ENDS)
@pytest.mark.parametrize("predictor", PREDICTORS[:3])
def test_correctors_keep_the_order(process, predictor):
    """With more levels there are more corrections, too: the error falls at least as fast."""
    errors = moment_errors(process, predictor, "ald", (200, 400), snr=0.05)
    assert slopes(errors)[0] > 0.85


@pytest.mark.parametrize("snr", [0.05, 0.16, 0.5])
def test_stationary_variance_of_the_annealed_corrector(snr):
    """Without predictor the sample settles at v/(1 − e/(2v)) with e = 2·(snr·σ)²."""
    options = {"process": "ve", "predictor": "none", "corrector": "ald", "snr": snr, "correct_steps": 3000}
    options |= {"sigma_max": 3.0, "sampling_eps": 0.999}
    table = make_table("pc", SCHEDULE, 2, options=options)
    last = table.steps[-1].point
    mean, variance = marginal(last)
    found = moments(table, start=(0.0, 1.0))
    e = 2 * (snr * last.sigma) ** 2
    assert found == pytest.approx((mean, variance / (1 - e / (2 * variance))), rel=1e-6)


def test_langevin_corrector_in_many_dimensions():
    """Norms are then nearly √d, and a step multiplies the variance of a settled sample by 1 + 4·snr⁴."""
    options = {"process": "ve", "predictor": "none", "snr": 0.3, "prediction_type": "score"}
    table = make_table("pc", SCHEDULE, 1, options=options)
    variance = table.steps[0].point.sigma ** 2
    rng = np.random.default_rng(0)
    start = rng.standard_normal((1, 1_000_000)) * math.sqrt(variance) / table.init_noise_sigma
    *_, (_, x) = table_run(table, start, lambda x, _: -x / variance, lambda: rng.standard_normal(start.shape))
    assert np.var(x) / variance == pytest.approx(1 + 4 * 0.3**4, rel=0.005)


def test_langevin_corrector_by_image_or_batch():
    """By default an image does not change with the others of its batch."""
    start = np.random.default_rng(1).standard_normal((3, 2, 5))
    for batch_mean in (False, True):
        table = make_table("pc", SCHEDULE, 4, options={"batch_mean": batch_mean})
        runs = []
        for rows in (slice(0, 3), slice(0, 1)):
            rng = np.random.default_rng(3)
            noise = rng.standard_normal((8, 3, 2, 5))
            left = iter(noise[:, rows])
            *_, (_, x) = table_run(table, start[rows], lambda x, t: np.tanh(x), left.__next__)
            runs.append(x[:1])
        same = np.allclose(*runs, rtol=1e-12)
        assert same is not batch_mean


@pytest.mark.parametrize("process", ["chain", "vp", "sub_vp", "ve", "edm"])
@pytest.mark.parametrize("name", ["pc", "euler_maruyama", "reverse_diffusion"])
def test_any_number_of_steps(name, process):
    for steps in (1, 2, 3, 1000):
        options = {"process": process}
        if process == "vp" and name != "euler_maruyama" and steps in (2, 3):
            with pytest.raises(InputError, match=r"wanted less than 1; use more than 20 steps"):
                make_table(name, SCHEDULE, steps, options=options)
            continue
        table = make_table(name, SCHEDULE, steps, options=options)
        assert table.evaluations == steps * (2 if name == "pc" else 1)
        assert table.is_finite()
        assert table.stochastic is (steps > 1 or name == "pc")
        assert all(step.point is not None for step in table.steps)


def test_a_checkpoint_of_stable_diffusion_runs():
    """Ancestral sampling of the chain is DDPM with its smaller variance; the last step predicts x₀."""
    table = make_table("pc", SCHEDULE, 1000, options={"predictor": "ancestral", "corrector": "none"})
    alpha_bar = SCHEDULE.alphas_cumprod().astype(float)
    for i in (0, 1, 500, 998):
        t = 999 - i
        step = table.steps[i]
        beta = 1 - alpha_bar[t] / alpha_bar[t - 1]
        assert step.timestep == t
        assert step.noise_coef**2 == pytest.approx(
            (1 - alpha_bar[t - 1]) / (1 - alpha_bar[t]) * beta, rel=1e-6
        )
        assert step.update.sample == pytest.approx(1 / math.sqrt(1 - beta), rel=1e-9)
        assert step.update.output == pytest.approx(
            -beta / math.sqrt((1 - alpha_bar[t]) * (1 - beta)), rel=1e-6
        )
    last = table.steps[-1]
    assert last.noise_coef is None
    assert (last.update.sample, last.update.output) == pytest.approx(
        (last.point.x0.sample, last.point.x0.output), rel=1e-9
    )


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("pc", {"predictor": "heun"}, r"predictor='heun'.*'reverse_diffusion'"),
        ("pc", {"corrector": "mcmc"}, r"corrector='mcmc'.*'langevin'"),
        ("pc", {"predictor": "none", "corrector": "none"}, "nothing to do"),
        ("pc", {"correct_steps": 0}, "correct_steps=0.*1 or more"),
        ("pc", {"snr": -1}, "snr=-1.*above 0"),
        ("pc", {"predictor": "ancestral", "probability_flow": True}, "no option 'probability_flow'"),
        ("pc", {"final_sigmas_type": "sigma_min"}, "at uniform times only"),
        ("pc", {"thresholding": True}, "does not support thresholding"),
        ("euler_maruyama", {"corrector": "ald"}, "no option 'corrector'"),
        ("reverse_diffusion", {"predictor": "none"}, "no option 'predictor'"),
        ("pc", {"process": "flow", "predictor": "ancestral"}, "no finite coefficients"),
        ("euler_maruyama", {"process": "flow"}, "infinite at t = 1"),
        (
            "score_sde_ve",
            {"prediction_type": "v_prediction"},
            "does not support prediction_type='v_pred",
        ),
        ("score_sde_ve", {"sigma_min": 3, "sigma_max": 2}, "sigma_max is 2, wanted more"),
        ("score_sde_vp", {"sampling_eps": 2}, "sampling_eps is 2, wanted less than 1"),
        ("score_sde_vp", {"snr": 0.1}, "no option 'snr'"),
    ],
)
def test_options_that_cannot_be_used(name, options, message):
    schedule = NoiseSchedule.from_config({}) if name.startswith("score_sde") else SCHEDULE
    with pytest.raises(InputError, match=message):
        make_table(name, schedule, 8, options=options)
