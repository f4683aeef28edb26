"""Noise processes in continuous time: x_t = α(t)·x₀ + σ(t)·ε, the solution of dx = f(t)·x dt + g(t) dw.

f = d log α/dt and g² = dσ²/dt − 2f·σ², which Song et al., "Score-Based Generative Modeling through Stochastic
Differential Equations", define the other way round, from f and g. Times are such that noise grows with t.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fastdiff.errors import InputError
from fastdiff.samplers.path import Point
from fastdiff.samplers.prediction import Linear, Prediction
from fastdiff.samplers.schedule import NoiseSchedule

__all__ = ["EDM", "VE", "VP", "Chain", "Flow", "Process", "SubVP"]


class Process(ABC):
    """A noise process between ``t_min`` and ``t_max``, the times that samplers start from and end at.

    ``t_zero`` is where a step that ends without noise ends, for solvers that need a time for it.
    """

    t_min: float
    t_max: float
    t_zero: float = 0.0

    @abstractmethod
    def alpha(self, t: float) -> float:
        """α(t), the factor of the signal."""

    @abstractmethod
    def sigma(self, t: float) -> float:
        """σ(t), the standard deviation of the noise."""

    @abstractmethod
    def drift(self, t: float) -> float:
        """f(t)."""

    @abstractmethod
    def diffusion2(self, t: float) -> float:
        """g(t)²."""

    @abstractmethod
    def time_at(self, log_snr: float) -> float:
        """The time at which log(α/σ) is ``log_snr``: the inverse of `log_snr`, in closed form."""

    @abstractmethod
    def timestep(self, t: float) -> float:
        """What the denoiser is told at time ``t``."""

    @property
    def init_noise_sigma(self) -> float:
        """The standard deviation of the noise that samples start from at ``t_max``."""
        return 1.0

    def log_snr(self, t: float) -> float:
        """λ = log(α/σ); −∞ without signal and +∞ without noise."""
        alpha, sigma = self.alpha(t), self.sigma(t)
        if sigma == 0:
            return math.inf
        return math.log(alpha) - math.log(sigma) if alpha else -math.inf

    def point(self, t: float, prediction: Prediction = Prediction.EPSILON) -> Point:
        """The noise level at time ``t``, for a denoiser whose output is ``prediction``."""
        return Point(self.timestep(t), self.alpha(t), self.sigma(t), prediction)


def _attenuation_at(log_snr: float) -> float:
    """−2·log α where α² + σ² = 1 and log(α/σ) is ``log_snr``."""
    return float(np.logaddexp(-2 * log_snr, 0.0))


@dataclass(frozen=True)
class VP(Process):
    """The variance-preserving SDE, α² + σ² = 1 and g² = β(t), with β rising linearly (Song et al., Eq. 32).

    ``time_scale``·t is what the denoiser is told: 999 for models trained in continuous time.
    """

    beta_min: float = 0.1
    beta_max: float = 20.0
    t_min: float = 1e-3
    t_max: float = 1.0
    time_scale: float = 999.0

    def beta(self, t: float) -> float:
        """β(t), the rate at which noise is added."""
        return self.beta_min + t * (self.beta_max - self.beta_min)

    def attenuation(self, t: float) -> float:
        """−2·log α(t), the integral of β."""
        return t * self.beta_min + 0.5 * t**2 * (self.beta_max - self.beta_min)

    def alpha(self, t: float) -> float:
        return math.exp(-0.5 * self.attenuation(t))

    def sigma(self, t: float) -> float:
        return math.sqrt(-math.expm1(-self.attenuation(t)))

    def drift(self, t: float) -> float:
        return -0.5 * self.beta(t)

    def diffusion2(self, t: float) -> float:
        return self.beta(t)

    def time_at(self, log_snr: float) -> float:
        return self._time_attenuated(_attenuation_at(log_snr))

    def timestep(self, t: float) -> float:
        return self.time_scale * t

    def _time_attenuated(self, attenuation: float) -> float:
        """The positive root of `attenuation`(t) = ``attenuation``, in the form that does not cancel."""
        slope = self.beta_max - self.beta_min
        return 2 * attenuation / (self.beta_min + math.sqrt(self.beta_min**2 + 2 * slope * attenuation))


@dataclass(frozen=True)
class SubVP(VP):
    """The sub-VP SDE, σ = 1 − α² with the α of `VP` (Song et al., Eq. 29)."""

    def sigma(self, t: float) -> float:
        return -math.expm1(-self.attenuation(t))

    def diffusion2(self, t: float) -> float:
        return self.beta(t) * -math.expm1(-2 * self.attenuation(t))

    def time_at(self, log_snr: float) -> float:
        # α/(1 − α²) = e^λ has the solution log α = −asinh(e^−λ/2).
        return self._time_attenuated(2 * math.asinh(0.5 * math.exp(-log_snr)))


@dataclass(frozen=True)
class VE(Process):
    """The variance-exploding SDE: α = 1 and σ = σ_min·(σ_max/σ_min)^t (Song et al., Eq. 31).

    The denoiser is told σ.
    """

    sigma_min: float = 0.01
    sigma_max: float = 50.0
    t_min: float = 1e-5
    t_max: float = 1.0

    @property
    def init_noise_sigma(self) -> float:
        return self.sigma(self.t_max)

    def alpha(self, t: float) -> float:
        return 1.0

    def sigma(self, t: float) -> float:
        return float(self.sigma_min * (self.sigma_max / self.sigma_min) ** t)

    def drift(self, t: float) -> float:
        return 0.0

    def diffusion2(self, t: float) -> float:
        return 2 * math.log(self.sigma_max / self.sigma_min) * self.sigma(t) ** 2

    def time_at(self, log_snr: float) -> float:
        return (-log_snr - math.log(self.sigma_min)) / math.log(self.sigma_max / self.sigma_min)

    def timestep(self, t: float) -> float:
        return self.sigma(t)


@dataclass(frozen=True)
class EDM(Process):
    """α = 1 and σ = t with the network's preconditioning: Karras et al., "Elucidating the Design Space of
    Diffusion-Based Generative Models", Table 1.

    The denoised sample is c_skip·x + c_out·F(c_in·x, log(σ)/4). As in diffusers, c_out is negative for
    networks that predict v.
    """

    t_min: float = 0.002
    t_max: float = 80.0
    sigma_data: float = 0.5

    @property
    def init_noise_sigma(self) -> float:
        return self.t_max

    def alpha(self, t: float) -> float:
        return 1.0

    def sigma(self, t: float) -> float:
        return t

    def drift(self, t: float) -> float:
        return 0.0

    def diffusion2(self, t: float) -> float:
        return 2 * t

    def time_at(self, log_snr: float) -> float:
        return math.exp(-log_snr)

    def timestep(self, t: float) -> float:
        return math.log(t) / 4

    def point(self, t: float, prediction: Prediction = Prediction.EPSILON) -> Point:
        """Raises `InputError` for other predictions than ε and v."""
        if prediction not in (Prediction.EPSILON, Prediction.V):
            raise InputError(
                f"process 'edm' has prediction_type {prediction.value!r}, wanted 'epsilon' or "
                "'v_prediction', the signs of its preconditioning; use process 've' for other networks"
            )
        total = math.hypot(t, self.sigma_data)
        out = t * self.sigma_data / total
        denoised = Linear((self.sigma_data / total) ** 2, -out if prediction is Prediction.V else out)
        return Point(self.timestep(t), 1.0, t, prediction, 1 / total, denoised)


@dataclass(frozen=True)
class Flow(Process):
    """The straight line from data to noise, α = 1 − s and σ = s, where s = shift·t/(1 + (shift − 1)·t).

    Flow matching with the shifted times of Esser et al., "Scaling Rectified Flow Transformers for
    High-Resolution Image Synthesis", Eq. 23. The denoiser is told ``time_scale``·s.
    """

    shift: float = 1.0
    t_min: float = 1e-3
    t_max: float = 1.0
    time_scale: float = 1000.0

    def alpha(self, t: float) -> float:
        return (1 - t) / (1 + (self.shift - 1) * t)

    def sigma(self, t: float) -> float:
        return self.shift * t / (1 + (self.shift - 1) * t)

    def drift(self, t: float) -> float:
        """Raises `InputError` where no signal is left and f is infinite."""
        if t >= 1:
            raise InputError(
                "the drift of process 'flow' is infinite at t = 1, where it starts without signal; "
                "set sigma_max to a finite ratio of noise to signal, such as 100, or use another sampler"
            )
        return -self._speed(t) / self.alpha(t)

    def diffusion2(self, t: float) -> float:
        # d(s²)/dt − 2f·s² with f = −s'/(1 − s) is 2s·s'/(1 − s).
        return -2 * self.drift(t) * self.sigma(t)

    def time_at(self, log_snr: float) -> float:
        level = 1 / (1 + math.exp(log_snr))
        return level / (self.shift - (self.shift - 1) * level)

    def timestep(self, t: float) -> float:
        return self.time_scale * self.sigma(t)

    def _speed(self, t: float) -> float:
        """ds/dt."""
        return self.shift / (1 + (self.shift - 1) * t) ** 2


@dataclass(frozen=True, eq=False)
class Chain(Process):
    """The chain that a model was trained with, in continuous time: log α is interpolated between timesteps.

    As in Lu et al., "DPM-Solver", section 4.2 for models of discrete time; α² + σ² = 1 throughout. The
    interpolation reaches down to t = −1, where there is no noise, so that β_t is spent between t − 1 and t.

    attenuations  −2·log α at the times −1, 0, … T − 1, float64 [T + 1], increasing from 0
    """

    attenuations: NDArray[np.float64]
    t_min: float
    t_max: float
    t_zero: float = -1.0

    @classmethod
    def of(cls, schedule: NoiseSchedule, *, zero_terminal_snr: bool = False) -> Chain:
        """The process of a checkpoint's schedule, from its last timestep to its first.

        With ``zero_terminal_snr`` the last ᾱ is 2⁻²⁴ instead of 0, as in `NoiseSchedule.sigmas`.
        """
        alpha_bar = schedule.alphas_cumprod(zero_terminal_snr=zero_terminal_snr).astype(np.float64)
        if zero_terminal_snr:
            alpha_bar[-1] = 2.0**-24
        return cls(np.append(0.0, -np.log(alpha_bar)), 0.0, float(schedule.num_train_timesteps - 1))

    def attenuation(self, t: float) -> float:
        """−2·log α(t)."""
        return float(np.interp(t + 1, np.arange(len(self.attenuations)), self.attenuations))

    def alpha(self, t: float) -> float:
        return math.exp(-0.5 * self.attenuation(t))

    def sigma(self, t: float) -> float:
        return math.sqrt(-math.expm1(-self.attenuation(t)))

    def drift(self, t: float) -> float:
        return -0.5 * self.diffusion2(t)

    def diffusion2(self, t: float) -> float:
        """The slope towards the timestep below ``t``."""
        above = min(max(math.ceil(t) + 1, 1), len(self.attenuations) - 1)
        return float(self.attenuations[above] - self.attenuations[above - 1])

    def time_at(self, log_snr: float) -> float:
        attenuation = _attenuation_at(log_snr)
        return float(np.interp(attenuation, self.attenuations, np.arange(len(self.attenuations)))) - 1

    def timestep(self, t: float) -> float:
        return t
