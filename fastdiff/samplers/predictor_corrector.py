"""Predictor–corrector sampling of reverse-time SDEs: Song et al., "Score-Based Generative Modeling through
Stochastic Differential Equations", Algorithms 1 to 5, with the discretisations of the paper's code.

A predictor undoes one step x_t = a·x_{t'} + √G²·z of the noise process; a corrector runs Langevin dynamics at
time t. The score is −ε/σ.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fastdiff.errors import InputError
from fastdiff.samplers.langevin import score
from fastdiff.samplers.path import Point
from fastdiff.samplers.prediction import Linear
from fastdiff.samplers.process import VE, VP, Process, SubVP
from fastdiff.samplers.process_points import chosen_times, learned_variance, process_of
from fastdiff.samplers.sampler import Sampler
from fastdiff.samplers.schedule import NoiseSchedule
from fastdiff.samplers.settings import Settings
from fastdiff.samplers.table import Estimate, Langevin, Step, StepTable, step_at

__all__ = [
    "CORRECTORS",
    "PREDICTORS",
    "SAMPLERS",
    "Corrector",
    "Transition",
    "correct",
    "euler_maruyama_step",
    "exact_step",
    "paper_step",
    "predict",
    "transition",
]

PREDICTORS = ("reverse_diffusion", "euler_maruyama", "ancestral", "none")
CORRECTORS = ("langevin", "ald", "none")


@dataclass(frozen=True)
class Transition:
    """A step of the noise process, x = carry·x' + √noise2·z, from less noise to the level of ``point``.

    ancestral_noise  the standard deviation of the noise that ancestral sampling adds going back
    """

    point: Point
    carry: float
    noise2: float
    ancestral_noise: float


@dataclass(frozen=True)
class Corrector:
    """``steps`` steps of ``kind``, one of `CORRECTORS`, with the signal-to-noise ratio ``snr``."""

    kind: str = "none"
    steps: int = 1
    snr: float = 0.16
    batch_mean: bool = False


def exact_step(process: Process, point: Point, before: float | None) -> Transition:
    """The process itself from time ``before`` to the point's; None is from no noise."""
    alpha, sigma = (1.0, 0.0) if before is None else (process.alpha(before), process.sigma(before))
    carry = point.alpha / alpha
    noise2 = max(point.sigma**2 - (carry * sigma) ** 2, 0.0)
    return Transition(point, carry, noise2, sigma * math.sqrt(noise2) / point.sigma)


def euler_maruyama_step(process: Process, point: Point, t: float, dt: float) -> Transition:
    """The process's SDE by a step of Euler–Maruyama, with the coefficients of time ``t``."""
    noise2 = process.diffusion2(t) * dt
    return Transition(point, 1 + process.drift(t) * dt, noise2, math.sqrt(noise2))


def paper_step(process: VP | VE, point: Point, t: float, count: int) -> Transition:
    """The step of the paper's code with ``count`` steps: DDPM's for VP, SMLD's for VE.

    Its levels are those of a grid of its own, at the index of ``t`` rounded down. Raises `InputError` for too
    few steps.
    """
    # The guard is for products that are integers but for rounding.
    index = math.floor(t * (count - 1) + 1e-9)
    if isinstance(process, VE):
        sigma = process.sigma(index / (count - 1))
        below = process.sigma((index - 1) / (count - 1)) if index else 0.0
        noise2 = sigma**2 - below**2
        return Transition(point, 1.0, noise2, below * math.sqrt(noise2) / sigma)
    beta = process.beta(index / (count - 1)) / count
    if beta >= 1:
        raise InputError(
            f"{count} steps have a beta of {beta:.3g} at t = {t:g}, wanted less than 1; use more than "
            f"{math.floor(process.beta_max)} steps, predictor 'euler_maruyama' or process 'chain'"
        )
    return Transition(point, math.sqrt(1 - beta), beta, math.sqrt(beta))


def is_paper_grid(process: Process, times: NDArray[np.float64]) -> bool:
    """Whether the times are those of the paper's code: uniform from 1, for one of its processes."""
    uniform = np.array_equal(times, np.linspace(process.t_max, process.t_min, len(times)))
    return isinstance(process, VP | VE) and process.t_max == 1 and len(times) > 1 and uniform


def transition(
    process: Process, point: Point, times: NDArray[np.float64], i: int, predictor: str
) -> Transition:
    """The step of the noise process that ``predictor`` undoes at the i-th time.

    For sub-VP the paper's reverse diffusion is Euler–Maruyama; its code has no ancestral sampling there.
    """
    t, paper = float(times[i]), is_paper_grid(process, times)
    before = float(times[i + 1]) if i + 1 < len(times) else None
    sub_vp = isinstance(process, SubVP)
    if predictor == "euler_maruyama" or (paper and sub_vp and predictor == "reverse_diffusion"):
        dt = 1 / len(times) if paper else t - (process.t_zero if before is None else before)
        return euler_maruyama_step(process, point, t, dt)
    if isinstance(process, VP | VE) and paper and not sub_vp:
        return paper_step(process, point, t, len(times))
    return exact_step(process, point, before)


def predict(
    step: Transition, *, ancestral: bool = False, probability_flow: bool = False, last: bool = False
) -> Step:
    """X' = (2 − a)·x + G²·score + √G²·z, the reverse-time SDE (Eq. 46).

    ancestral         x' = (x + G²·score)/a with the noise of the transition (Eq. 4 and 47)
    probability_flow  half the score and no noise: the ODE (Eq. 13)
    last              no noise
    """
    share = 0.5 if probability_flow else 1.0
    update = Linear(1.0 if ancestral else 2 - step.carry, 0.0) + share * step.noise2 * score(step.point)
    noise = step.ancestral_noise if ancestral else math.sqrt(step.noise2)
    if ancestral:
        update = 1 / step.carry * update
    return step_at(step.point, update, noise_coef=None if last or probability_flow else noise)


def correct(point: Point, corrector: Corrector, alpha: float) -> list[Step]:
    """Langevin dynamics at ``point``: x' = x + e·score + √(2e)·z.

    "langevin" has e = 2·alpha·(snr·‖z‖/‖score‖)² (Algorithms 4 and 5), "ald" has e = 2·alpha·(snr·σ)².
    ``alpha`` is a² of the transition to the point.
    """
    stay, slope = Linear(1.0, 0.0), score(point)
    if corrector.kind == "ald":
        e = 2 * alpha * (corrector.snr * point.sigma) ** 2
        row = step_at(point, stay + e * slope, noise_coef=math.sqrt(2 * e))
    else:
        langevin = Langevin(corrector.snr, alpha, corrector.batch_mean)
        row = step_at(point, stay, estimate=Estimate(slope), noise_coef=0.0, langevin=langevin)
    return [row] * corrector.steps


def _table(
    sampler: str,
    schedule: NoiseSchedule,
    steps: int,
    predictor: str | None = None,
    corrector: Corrector | None = None,
) -> StepTable:
    """The table of ``predictor`` and ``corrector``; None is the config's choice.

    Where the process is the paper's, VP, sub-VP or VE on uniform times from 1, the steps are those of its
    code: as many times as steps from 1 to ``sampling_eps``, each with dt = 1/steps, and final_sigmas_type
    "sigma_min" keeps the last step's noise. Other processes and placements take the process between
    neighbouring times, exactly or by Euler–Maruyama, and end without noise.
    """
    settings = schedule.settings(sampler)
    settings.refuse("thresholding", False, "set it to false or use another sampler")
    process = process_of(schedule, settings)
    predictor = predictor or settings.choice("predictor", "reverse_diffusion", PREDICTORS)
    corrector = corrector or _corrector(settings)
    flow = predictor in ("reverse_diffusion", "euler_maruyama") and settings.flag("probability_flow", False)
    denoise = settings.choice("final_sigmas_type", "zero", ("zero", "sigma_min")) == "zero"
    if predictor == "none" and corrector.kind == "none":
        raise InputError("predictor and corrector are both 'none', which leaves nothing to do; choose one")
    times = chosen_times(process, settings, steps)
    if not denoise and not is_paper_grid(process, times):
        raise InputError(
            f"sampler {sampler!r} supports final_sigmas_type='sigma_min' for processes vp, sub_vp and ve at "
            "uniform times only; set it to 'zero'"
        )

    rows: list[Step] = []
    for i, t in enumerate(times):
        point = process.point(float(t), schedule.prediction)
        if corrector.kind != "none":
            rows += correct(point, corrector, transition(process, point, times, i, "ancestral").carry ** 2)
        if predictor != "none":
            step = transition(process, point, times, i, predictor)
            last = denoise and i == len(times) - 1
            rows.append(predict(step, ancestral=predictor == "ancestral", probability_flow=flow, last=last))
    return StepTable(
        sampler,
        tuple(rows),
        init_noise_sigma=process.init_noise_sigma,
        variance_channels=learned_variance(settings),
    )


def _corrector(settings: Settings) -> Corrector:
    return Corrector(
        settings.choice("corrector", "langevin", CORRECTORS),
        settings.integer("correct_steps", 1, minimum=1),
        settings.positive("snr", 0.16),
        settings.flag("batch_mean", False),
    )


def pc(schedule: NoiseSchedule, steps: int) -> StepTable:
    """``predictor`` with ``corrector``, reverse diffusion and Langevin unless set.

    Reads correct_steps (1), snr (0.16), batch_mean (false: the norms of the Langevin corrector are each
    image's own), probability_flow (false), and the options of the process and its times.
    """
    return _table("pc", schedule, steps)


def euler_maruyama(schedule: NoiseSchedule, steps: int) -> StepTable:
    """Euler–Maruyama without corrector; reads the same options of process and times."""
    return _table("euler_maruyama", schedule, steps, "euler_maruyama", Corrector())


def reverse_diffusion(schedule: NoiseSchedule, steps: int) -> StepTable:
    """The reverse diffusion predictor without corrector; reads the same options of process and times."""
    return _table("reverse_diffusion", schedule, steps, "reverse_diffusion", Corrector())


_PAPER = "Song et al., Score-Based Generative Modeling through Stochastic Differential Equations"
SAMPLERS = (
    Sampler("pc", pc, order=1, evaluations=2, stochastic=True, paper=_PAPER, any_steps=True),
    Sampler(
        "euler_maruyama",
        euler_maruyama,
        order=1,
        evaluations=1,
        stochastic=True,
        paper=_PAPER,
        any_steps=True,
    ),
    Sampler(
        "reverse_diffusion",
        reverse_diffusion,
        order=1,
        evaluations=1,
        stochastic=True,
        paper=_PAPER,
        any_steps=True,
    ),
)
