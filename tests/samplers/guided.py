"""Guided runs of a table in float64, and denoisers of class-conditional Gaussians, which are exact."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np

from fastdiff.samplers import Guidance, NoiseSchedule, StepTable
from tests.samplers.oracle import table_run

Pair = Callable[[np.ndarray, float, int], tuple[np.ndarray, ...]]


def guided_run(
    table: StepTable,
    guidance: float | Guidance,
    denoise: Pair,
    start: np.ndarray,
    noise: Callable[[], np.ndarray] | None = None,
) -> Iterator[tuple[float, np.ndarray]]:
    """What a loop that knows plain guidance alone makes of a bound guidance, row by row as `table_run`."""
    if isinstance(guidance, Guidance):
        table, guidance, denoise = guidance.bind(table, denoise)
    rows = iter(table.steps)

    def model(sample: np.ndarray, timestep: float) -> np.ndarray:
        own = next(rows).guidance
        scale = guidance if own is None else own
        cond, uncond = denoise(sample, timestep, int(scale != 1))[:2]
        return cond if scale == 1 else uncond + scale * (cond - uncond)

    plain = replace(table, steps=tuple(replace(step, guidance=None) for step in table.steps))
    return table_run(plain, start, model, noise)


def last(run: Iterator[tuple[float, np.ndarray]]) -> np.ndarray:
    *_, (_, x) = run
    return x


@dataclass(frozen=True)
class Gaussian:
    """A class of data: N(mean, spread²) in each element."""

    mean: float
    spread: float

    def epsilon(self, y: np.ndarray, alpha: float, sigma: float) -> np.ndarray:
        """E[ε | α·x₀ + σ·ε = y]."""
        return sigma * (y - alpha * self.mean) / (alpha**2 * self.spread**2 + sigma**2)


@dataclass(frozen=True)
class Mixture:
    """Classes with weights, whose unconditional distribution is their mixture."""

    weights: tuple[float, ...]
    classes: tuple[Gaussian, ...]

    def log_density(self, y: np.ndarray, alpha: float, sigma: float) -> np.ndarray:
        parts = []
        for weight, one in zip(self.weights, self.classes, strict=True):
            variance = alpha**2 * one.spread**2 + sigma**2
            exponent = -((y - alpha * one.mean) ** 2) / (2 * variance)
            parts.append(np.log(weight) + exponent - 0.5 * np.log(2 * np.pi * variance))
        return np.logaddexp.reduce(parts)

    def epsilon(self, y: np.ndarray, alpha: float, sigma: float) -> np.ndarray:
        """−σ·∇ log p(y): the classes' ε weighted with their posteriors."""
        whole = self.log_density(y, alpha, sigma)
        total = np.zeros_like(y)
        for weight, one in zip(self.weights, self.classes, strict=True):
            alone = Mixture((1.0,), (one,)).log_density(y, alpha, sigma) + np.log(weight)
            total += np.exp(alone - whole) * one.epsilon(y, alpha, sigma)
        return total


def level(schedule: NoiseSchedule, timestep: float) -> tuple[float, float]:
    """α and σ of the variance-preserving sample that the model sees at a timestep, fractional ones too."""
    sigmas = schedule.sigmas().astype(float)
    ratio = float(np.interp(timestep, np.arange(len(sigmas)), sigmas))
    return 1 / np.hypot(1, ratio), ratio / np.hypot(1, ratio)


def exact(schedule: NoiseSchedule, cond: Gaussian, uncond: Gaussian | Mixture, *others: Gaussian) -> Pair:
    """The denoiser of a model that predicts ε, with the prompt, without it and with a negative prompt."""

    def denoise(y: np.ndarray, timestep: float, guided: int) -> tuple[np.ndarray, ...]:
        alpha, sigma = level(schedule, timestep)
        branches = itertools.islice((cond, uncond, *others), guided + 1)
        outputs = tuple(branch.epsilon(y, alpha, sigma) for branch in branches)
        return outputs if guided else (*outputs, None)

    return denoise
