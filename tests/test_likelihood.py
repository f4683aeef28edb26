"""The exact log-likelihood against densities in closed form."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from fastdiff.errors import InputError, NumericError
from fastdiff.likelihood import bits_per_dim, log_likelihood
from fastdiff.samplers import NoiseSchedule, Prediction
from fastdiff.samplers.process import EDM, VE, VP, Chain, Flow, SubVP

BIT = math.log(2)
# The processes end where nothing of the data is left, so that the prior is right to less than 1e-4 bits.
PROCESSES = {
    "vp": (VP(0.1, 40.0, t_min=1e-5), Prediction.EPSILON),
    "vp_v": (VP(0.1, 40.0, t_min=1e-5), Prediction.V),
    "sub_vp": (SubVP(0.1, 40.0, t_min=1e-3), Prediction.EPSILON),
    "ve": (VE(1e-3, 20_000.0), Prediction.SCORE),
    "edm": (EDM(1e-3, 20_000.0), Prediction.EPSILON),
    "flow": (Flow(3.0, t_min=1e-4), Prediction.FLOW),
    "chain": (
        Chain.of(NoiseSchedule.from_config({}), zero_terminal_snr=True),
        Prediction.SAMPLE,
    ),
}


@pytest.fixture(autouse=True)
def one_thread():
    """Threads cost more than they save with tensors this small."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


class Mixture:
    """Gaussians in ``dims`` dimensions, one per row of ``means``, with one covariance of any direction."""

    def __init__(self, means, weights, covariance):
        self.means, self.weights = torch.as_tensor(means), torch.as_tensor(weights)
        self.covariance = torch.as_tensor(covariance)

    def _parts(self, alpha, sigma, x):
        """Inverse covariance at a level, differences from the means, and log of each part's density."""
        dims = x.shape[1]
        total = alpha**2 * self.covariance + sigma**2 * torch.eye(dims)
        inverse = torch.linalg.inv(total)
        away = x[:, None] - alpha * self.means
        squares = torch.einsum("bki,ij,bkj->bk", away, inverse, away)
        logs = -0.5 * (squares + torch.logdet(total) + dims * math.log(2 * math.pi)) + self.weights.log()
        return inverse, away, logs

    def log_density(self, alpha, sigma, x):
        return self._parts(alpha, sigma, x)[2].logsumexp(1)

    def x0(self, alpha, sigma, x):
        inverse, away, logs = self._parts(alpha, sigma, x)
        parts = self.means + alpha * away @ inverse @ self.covariance
        return (logs.softmax(1)[..., None] * parts).sum(1)

    def model(self, process, prediction, time_of):
        """A network that predicts exactly, from the scaled sample and the timestep."""

        def call(y, timestep):
            point = process.point(time_of(timestep), prediction)
            x = y / point.input_scale
            x0 = self.x0(point.alpha, point.sigma, x.reshape(len(x), -1)).reshape(x.shape)
            return (x0 - point.x0.sample * x) / point.x0.output

        return call


TIMES = {
    "vp": lambda process, step: step / 999,
    "vp_v": lambda process, step: step / 999,
    "sub_vp": lambda process, step: step / 999,
    "ve": lambda process, step: process.time_at(-math.log(step)),
    "edm": lambda process, step: math.exp(4 * step),
    "flow": lambda process, step: step / (3000 - 2 * step),
    "chain": lambda process, step: step,
}
ROTATED = torch.tensor([[0.3, 0.2], [0.2, 0.25]], dtype=torch.float64)
GAUSSIAN = Mixture(torch.tensor([[0.3, -0.2]], dtype=torch.float64), torch.ones(1).double(), ROTATED)
MIXTURE = Mixture(
    torch.tensor([[-1.0, 0.5], [0.8, 0.6], [0.1, -1.2]], dtype=torch.float64),
    torch.tensor([0.2, 0.5, 0.3], dtype=torch.float64),
    0.2 * ROTATED,
)
POINTS = torch.tensor([[0.1, 0.2], [-0.9, 0.4], [0.5, -0.6], [1.5, 1.0]], dtype=torch.float64)


def likelihood(name, data, x, **options):
    process, prediction = PROCESSES[name]
    model = data.model(process, prediction, lambda step: TIMES[name](process, step))
    return log_likelihood(model, process, x, prediction=prediction, **options)


def exact(name, data, x):
    """In nats, at the level that the ODE starts from."""
    process, _ = PROCESSES[name]
    return data.log_density(process.alpha(process.t_min), process.sigma(process.t_min), x).numpy()


@pytest.mark.parametrize("data", [GAUSSIAN, MIXTURE], ids=["gaussian", "mixture"])
@pytest.mark.parametrize("name", PROCESSES)
def test_exact_trace_gives_the_density(name, data):
    """To 1e-3 bits of the whole sample, of every process and prediction."""
    found = likelihood(name, data, POINTS, trace="exact", rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(found.nats / BIT, exact(name, data, POINTS) / BIT, rtol=0, atol=1e-3)
    assert found.nats.shape == (4,)
    assert found.latents.shape == (4, 2)


@pytest.mark.parametrize("data", [GAUSSIAN, MIXTURE], ids=["gaussian", "mixture"])
def test_the_start_is_near_enough_to_the_data(data):
    """The density of the data itself, without any noise."""
    found = likelihood("vp", data, POINTS, trace="exact", rtol=1e-6, atol=1e-6)
    wanted = data.log_density(1.0, 0.0, POINTS).numpy()
    np.testing.assert_allclose(found.nats / BIT, wanted / BIT, rtol=0, atol=1e-3)


def test_latents_are_those_of_the_flow():
    """A Gaussian goes to the prior by the map that keeps quantiles; this one is diagonal."""
    data = Mixture(
        torch.tensor([[0.3, -0.2]], dtype=torch.float64),
        torch.ones(1).double(),
        torch.diag(torch.tensor([0.3, 0.6])).double(),
    )
    found = likelihood("flow", data, POINTS, rtol=1e-7, atol=1e-7)
    wanted = (POINTS - data.means) / torch.diagonal(data.covariance).sqrt()
    np.testing.assert_allclose(found.latents, wanted, atol=1e-3)


@pytest.mark.parametrize("data", [GAUSSIAN, MIXTURE], ids=["gaussian", "mixture"])
def test_rademacher_probes_are_right_on_average(data):
    """In two dimensions a probe's only effect is the product of its signs: two values, each half the time."""
    found = likelihood("flow", data, POINTS[:1].expand(64, 2), rtol=1e-6, atol=1e-6).nats
    low, high = found.min(), found.max()
    assert high - low > 0.1
    assert np.minimum(found - low, high - found).max() < 1e-6
    assert 16 < (found > low + 0.05).sum() < 48
    assert (low + high) / 2 / BIT == pytest.approx(exact("flow", data, POINTS[:1])[0] / BIT, abs=1e-3)


def test_gaussian_probes_are_right_on_average():
    """Many copies of a sample, each with probes of its own; data near the prior keeps their spread small."""
    covariance = torch.eye(2).double() + 0.05 * torch.tensor([[0.5, 1.0], [1.0, -0.5]])
    data = Mixture(GAUSSIAN.means, GAUSSIAN.weights, covariance)
    copies = POINTS[:1].expand(8000, 2)
    found = likelihood("flow", data, copies, distribution="gaussian", probes=4, seed=3, rtol=1e-4, atol=1e-4)
    error = abs(found.nats.mean() - exact("flow", data, POINTS[:1])[0]) / BIT
    standard_error = found.nats.std() / BIT / math.sqrt(8000)
    assert 1e-5 < standard_error < 1e-3
    assert error < min(1e-3, 4 * standard_error)


def test_rademacher_is_exact_for_diagonal_jacobians():
    """One probe is then enough; a probe for every sign is enough for any Jacobian of two dimensions."""
    diagonal = Mixture(GAUSSIAN.means, GAUSSIAN.weights, torch.diag(torch.tensor([0.3, 0.6])).double())
    found = likelihood("vp", diagonal, POINTS, seed=1, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(found.nats / BIT, exact("vp", diagonal, POINTS) / BIT, rtol=0, atol=1e-3)
    seeds = [likelihood("vp", GAUSSIAN, POINTS, seed=seed).nats for seed in (0, 0, 1)]
    np.testing.assert_array_equal(seeds[0], seeds[1])
    assert np.abs(seeds[0] - seeds[2]).max() > 1e-3


def test_shapes_types_and_tolerances():
    """Images, float32 within its precision, a tighter tolerance with more evaluations."""
    x = POINTS.reshape(4, 1, 2, 1)
    wanted = exact("vp", MIXTURE, POINTS)
    rough = likelihood("vp", MIXTURE, x, trace="exact", rtol=1e-3, atol=1e-3)
    fine = likelihood("vp", MIXTURE, x, trace="exact", rtol=1e-6, atol=1e-6)
    assert fine.latents.shape == (4, 1, 2, 1)
    assert np.abs(fine.nats - wanted).max() < np.abs(rough.nats - wanted).max() / 10
    assert rough.evaluations < fine.evaluations
    single = log_likelihood(
        lambda y, step: MIXTURE.model(*PROCESSES["flow"], lambda s: TIMES["flow"](None, s))(
            y.double(), step
        ).float(),
        Flow(3.0, t_min=1e-2),
        POINTS.float(),
        prediction=Prediction.FLOW,
        trace="exact",
        rtol=1e-4,
        atol=1e-4,
    )
    process = Flow(3.0, t_min=1e-2)
    wanted = MIXTURE.log_density(process.alpha(1e-2), process.sigma(1e-2), POINTS).numpy()
    np.testing.assert_allclose(single.nats, wanted, atol=2e-3)


def test_a_model_that_ignores_its_input():
    """x₀ = 0 whatever the sample: the flow only scales, and the density is that of the prior, scaled."""
    found = log_likelihood(
        lambda y, step: torch.zeros_like(y), VP(), POINTS, prediction=Prediction.SAMPLE, rtol=1e-7, atol=1e-7
    )
    start, end = VP().sigma(VP().t_min), VP().sigma(1.0)
    latents = POINTS.numpy() * end / start
    wanted = -0.5 * (latents**2).sum(1) - math.log(2 * math.pi) + 2 * math.log(end / start)
    np.testing.assert_allclose(found.nats, wanted, rtol=1e-5)


def test_bits_per_dim():
    """Uniform bytes have 8 bits each: their density over −1 … 1 is 1/2 in every dimension."""
    nats = np.array([12 * math.log(0.5)])
    assert bits_per_dim(nats, 12) == pytest.approx([1.0])
    assert bits_per_dim(nats, 12, levels=256) == pytest.approx([8.0])
    assert bits_per_dim(nats, 12, levels=256, low=0.0, high=1.0) == pytest.approx([9.0])
    found = likelihood("flow", GAUSSIAN, POINTS[:1], trace="exact")
    assert found.bits_per_dim(levels=256) == pytest.approx(7 - found.nats / (2 * BIT))
    for levels, low, high in ((1, -1.0, 1.0), (256, 1.0, 1.0)):
        with pytest.raises(InputError, match="wanted at least 2 in a range above 0"):
            bits_per_dim(nats, 12, levels=levels, low=low, high=high)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"trace": "skilling"}, "trace is 'skilling'"),
        ({"distribution": "uniform"}, "distribution 'uniform'"),
        ({"probes": 0}, "probes is 0"),
        ({"max_evaluations": 20}, "20 model evaluations"),
    ],
)
def test_arguments_that_cannot_be_used(options, message):
    with pytest.raises(InputError, match=message):
        likelihood("vp", GAUSSIAN, POINTS, **options)


def test_data_that_cannot_be_used():
    for x in (POINTS[:0], POINTS[0], POINTS.long()):
        with pytest.raises(InputError, match=r"wanted floats of shape \[batch, …\]"):
            likelihood("vp", GAUSSIAN, x)
    with pytest.raises(NumericError, match="NaN"):
        log_likelihood(lambda y, step: y * math.nan, VP(), POINTS)
