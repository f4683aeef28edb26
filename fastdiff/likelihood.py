"""The exact log-likelihood of data under a diffusion model, by its probability-flow ODE.

Song et al., "Score-Based Generative Modeling through Stochastic Differential Equations", section 4.3 and
Appendix D.2; Chen et al., "Neural Ordinary Differential Equations", for the change of variables; Hutchinson's
trace estimator as in Grathwohl et al., "FFJORD". Needs PyTorch, which is imported when a function is called.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from fastdiff.errors import InputError
from fastdiff.samplers.prediction import Prediction
from fastdiff.samplers.probability_flow import share_at, straight_point, straight_scale, straight_slope
from fastdiff.samplers.process import Process
from fastdiff.samplers.runge_kutta import DORMAND_PRINCE, integrate, worst_rms

if TYPE_CHECKING:
    import torch
    from torch import Tensor

__all__ = ["Likelihood", "bits_per_dim", "log_likelihood"]

Float64 = NDArray[np.float64]
TRACES = ("hutchinson", "exact")
PROBES = ("rademacher", "gaussian")


@dataclass(frozen=True)
class Likelihood:
    """What `log_likelihood` returns.

    nats         log p(x) of each sample, float64 [batch]
    latents      where the ODE takes the samples at ``t_max``, float64 [batch, …]
    evaluations  of the model; a trace by n probes, or of n dimensions, costs n vector–Jacobian products each
    """

    nats: Float64
    latents: Float64
    evaluations: int

    def bits_per_dim(self, *, levels: int | None = None, low: float = -1.0, high: float = 1.0) -> Float64:
        """`bits_per_dim` of the samples, float64 [batch]."""
        dims = self.latents[0].size
        return bits_per_dim(self.nats, dims, levels=levels, low=low, high=high)


def bits_per_dim(
    nats: Float64, dims: int, *, levels: int | None = None, low: float = -1.0, high: float = 1.0
) -> Float64:
    """−log₂ p per dimension, float64 [batch], of samples with ``dims`` numbers and log p = ``nats``.

    ``levels`` is the number of values of quantised data, such as 256, that lie evenly in ``low`` to ``high``:
    the density is then that of the data in units of one level, which adds log₂(levels/(high − low)), 7 bits
    for bytes scaled to −1 … 1. For data with uniform noise of a level's width that bounds the bits needed for
    the bytes from above (Theis et al., "A note on the evaluation of generative models"). Raises `InputError`
    for levels below 2 or an empty range.
    """
    if levels is None:
        return np.asarray(-nats / (dims * math.log(2)), dtype=np.float64)
    if levels < 2 or not high > low:
        raise InputError(f"{levels} levels from {low:g} to {high:g}, wanted at least 2 in a range above 0")
    return bits_per_dim(nats, dims) + math.log2(levels / (high - low))


def log_likelihood(
    model: Callable[[Tensor, float], Tensor],
    process: Process,
    x0: Tensor,
    *,
    prediction: Prediction = Prediction.EPSILON,
    trace: str = "hutchinson",
    distribution: str = "rademacher",
    probes: int = 1,
    seed: int = 0,
    rtol: float = 1e-5,
    atol: float = 1e-5,
    max_evaluations: int = 10_000,
) -> Likelihood:
    """The logarithm of p(x) of each sample of ``x0``, a floating-point tensor [batch, …] on any device.

    model         takes the scaled sample, of ``x0``'s shape, dtype and device, and the timestep, and returns
                  ``prediction``; it must be differentiable by its sample and treat samples independently
    process       runs from its ``t_min``, where the state is taken to be ``x0``, to its ``t_max``, where it
                  is taken to be normal with mean 0 and the standard deviation `Process.init_noise_sigma`
    trace         of the ODE's Jacobian: "hutchinson", an unbiased estimate with vectors of a random
                  ``distribution``, "rademacher" or "gaussian", which are drawn once by ``seed`` and number
                  ``probes`` for each sample; or "exact", by one vector–Jacobian product for every dimension
    rtol, atol    of the adaptive solver (Dormand–Prince), for the state and the logarithm of the volume

    Raises `InputError` for an unknown trace or distribution, no probes, data that is not floating-point, and
    when ``max_evaluations`` do not suffice; `NumericError` for NaN.
    """
    import torch

    if trace not in TRACES or distribution not in PROBES:
        raise InputError(
            f"trace is {trace!r} and distribution {distribution!r}; use {' or '.join(TRACES)}, and "
            f"{' or '.join(PROBES)}"
        )
    if probes < 1:
        raise InputError(f"probes is {probes}, wanted 1 or more")
    if not x0.is_floating_point() or x0.ndim < 2 or not len(x0):
        raise InputError(f"x0 is {x0.dtype} of shape {tuple(x0.shape)}, wanted floats of shape [batch, …]")
    batch, dims = len(x0), x0[0].numel()
    vectors = torch.eye(dims, dtype=x0.dtype)[:, None].expand(dims, batch, dims)
    if trace == "hutchinson":
        vectors = _probes(distribution, (probes, batch, dims), seed, x0.dtype)
    # Each sample's trace is the sum over the unit vectors, or the mean over the probes.
    weight = 1.0 if trace == "exact" else 1 / probes
    vectors = vectors.to(x0.device)

    def slope(u: float, state: Float64) -> Float64:
        """Change of y = x/(α + σ) and of the logarithm of the volume, the trace of the former's Jacobian."""
        point = straight_point(process, u, prediction)
        linear, scale = straight_slope(point), straight_scale(point)
        y = torch.from_numpy(state[:, :-1]).to(x0.device, x0.dtype)
        with torch.enable_grad():
            scaled = (point.input_scale * scale * y).reshape(x0.shape).requires_grad_()
            output = model(scaled, point.timestep)
            traces = torch.zeros(batch, dtype=torch.float64, device=x0.device)
            for i, vector in enumerate(vectors if output.requires_grad else ()):
                along = vector.reshape(x0.shape)
                (product,) = torch.autograd.grad(output, scaled, along, retain_graph=i + 1 < len(vectors))
                traces += (product * along).reshape(batch, -1).double().sum(1)
        # The output's derivative by y is the scale times its derivative by the model's input; the state's own
        # part of the slope is linear and its trace exact.
        traces = linear.output * point.input_scale * scale * weight * traces + linear.sample * scale * dims
        dy = linear.sample * scale * y + linear.output * output.detach().reshape(batch, -1)
        return np.concatenate([dy.double().cpu().numpy(), traces.cpu().numpy()[:, None]], axis=1)

    def norm(error: Float64) -> float:
        """Of state and volume, the worse: as one of many elements the volume would hardly count."""
        return max(worst_rms(error[:, :-1]), worst_rms(error[:, -1:]))

    first, last = (straight_scale(process.point(t, prediction)) for t in (process.t_min, process.t_max))
    start = np.zeros((batch, dims + 1))
    start[:, :-1] = x0.detach().double().cpu().numpy().reshape(batch, -1) / first
    solution = integrate(
        slope,
        start,
        share_at(process, process.t_min),
        share_at(process, process.t_max),
        DORMAND_PRINCE,
        rtol=rtol,
        atol=atol,
        max_evaluations=max_evaluations,
        norm=norm,
    )
    latents, volume = last * solution.y[:, :-1], solution.y[:, -1] + dims * math.log(last / first)
    return Likelihood(
        _normal_log_density(latents, process.init_noise_sigma) + volume,
        latents.reshape(tuple(x0.shape)),
        solution.evaluations,
    )


def _normal_log_density(x: Float64, std: float) -> Float64:
    """Of N(0, std²) for rows x, float64 [batch]."""
    squares = np.square(x / std).sum(axis=1)
    return np.asarray(-0.5 * squares - x.shape[1] * math.log(std * math.sqrt(2 * math.pi)))


def _probes(distribution: str, shape: tuple[int, ...], seed: int, dtype: torch.dtype) -> Tensor:
    """Vectors whose covariance is the unit matrix, in ``dtype``."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    if distribution == "gaussian":
        return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)
    return (2 * torch.randint(0, 2, shape, generator=generator) - 1).to(dtype)
