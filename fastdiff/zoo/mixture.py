"""Gaussian mixtures: data whose perfect denoiser, score and density are known at every noise level.

A sampler that is run with the perfect denoiser shows its own error and nothing else.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fastdiff.samplers import Point

__all__ = ["GaussianMixture"]

Array = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class GaussianMixture:
    """K isotropic Gaussians in D dimensions.

    weights  [K], sum 1
    means    [K, D]
    stds     [K]
    """

    weights: Array
    means: Array
    stds: Array

    def draw(self, count: int, rng: np.random.Generator) -> Array:
        """``count`` samples of the data, [count, D]."""
        which = rng.choice(len(self.weights), count, p=self.weights)
        noise = rng.standard_normal((count, self.means.shape[1]))
        return np.asarray(self.means[which] + self.stds[which, None] * noise)

    def log_density(self, x: Array, alpha: float = 1.0, sigma: float = 0.0) -> Array:
        """Log p of α·x₀ + σ·ε at ``x`` [N, D]: [N], in nats."""
        terms = self._log_terms(x, alpha, sigma)
        top = terms.max(axis=1, keepdims=True)
        return np.asarray(top[:, 0] + np.log(np.exp(terms - top).sum(axis=1)))

    def denoise(self, x: Array, alpha: float, sigma: float) -> Array:
        """E[x₀ | α·x₀ + σ·ε = x] for ``x`` [N, D]: [N, D]."""
        terms = self._log_terms(x, alpha, sigma)
        share = np.exp(terms - terms.max(axis=1, keepdims=True))
        share /= share.sum(axis=1, keepdims=True)  # [N, K]
        variance = (alpha * self.stds) ** 2 + sigma**2
        pull = alpha * self.stds**2 / variance  # [K]: E[x₀ | x, k] = μ + pull·(x − α·μ)
        # Shares times pulls first: no array of [N, K, D] is needed.
        slope = (share * pull).sum(axis=1, keepdims=True)
        return np.asarray(share @ (self.means * (1 - alpha * pull)[:, None]) + slope * x)

    def output(self, x: Array, point: Point) -> Array:
        """What a perfect denoiser returns at ``point`` for the sampler's state ``x`` [N, D]."""
        x0 = point.x0
        return (self.denoise(x, point.alpha, point.sigma) - x0.sample * x) / x0.output

    def _log_terms(self, x: Array, alpha: float, sigma: float) -> Array:
        """Log of weight times density of each component, [N, K]."""
        variance = (alpha * self.stds) ** 2 + sigma**2
        centres = alpha * self.means
        square = (x**2).sum(1)[:, None] - 2 * x @ centres.T + (centres**2).sum(1)
        dimensions = x.shape[1]
        log_norm = dimensions / 2 * np.log(2 * np.pi * variance)
        return np.asarray(np.log(self.weights) - square / (2 * variance) - log_norm)
