"""diffusers' ScoreSdeVeScheduler and ScoreSdeVpScheduler: samplers of Song et al., "Score-Based Generative
Modeling through Stochastic Differential Equations", with diffusers' grids, in float32 where it rounds.

Both draw noise in the last step and do not use it: diffusers' pipelines return the mean of that step. The
pipeline's clamp of the pixels to 0 to 1 is no part of the scheduler.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from fastdiff.errors import InputError
from fastdiff.samplers.betas import linspace
from fastdiff.samplers.path import Point
from fastdiff.samplers.prediction import Prediction
from fastdiff.samplers.predictor_corrector import Corrector, Transition, correct, euler_maruyama_step, predict
from fastdiff.samplers.process import VP
from fastdiff.samplers.sampler import Sampler
from fastdiff.samplers.schedule import NoiseSchedule
from fastdiff.samplers.table import Step, StepTable, step_at

__all__ = ["SAMPLERS", "score_sde_ve", "score_sde_vp"]

Float32 = NDArray[np.float32]


def score_sde_ve(schedule: NoiseSchedule, steps: int) -> StepTable:
    """``correct_steps`` of the Langevin corrector, then reverse diffusion, at every level of the VE SDE.

    The model predicts the score and is told σ. Reads snr, sigma_min, sigma_max, sampling_eps, correct_steps
    with the defaults of diffusers' ScoreSdeVeScheduler; num_train_timesteps has no effect, as there. The
    norms of the corrector are means over the batch.
    """
    settings = schedule.settings("score_sde_ve")
    settings.refuse("prediction_type", "score", "remove it: the output is the score")
    corrector = Corrector(
        "langevin",
        settings.integer("correct_steps", 1, minimum=0),
        settings.positive("snr", 0.15),
        batch_mean=True,
    )
    low, high = settings.positive("sigma_min", 0.01), settings.positive("sigma_max", 1348.0)
    if high <= low:
        raise InputError(f"sigma_max is {high:g}, wanted more than sigma_min, {low:g}; correct the config")
    times = _times(settings.positive("sampling_eps", 1e-5), steps)
    levels = np.exp(_even(math.log(low), math.log(high), steps))
    rows: list[Step] = []
    for t in times:
        # The product is rounded to float32 before it is cut to an integer, as in diffusers.
        index = int(t * np.float32(steps - 1))
        sigma, below = float(levels[index]), float(levels[index - 1]) if index else 0.0
        told = float(np.float32(low) * np.float32(high / low) ** t)
        point = Point(told, 1.0, told, Prediction.SCORE)
        rows += correct(point, corrector, 1.0)
        rows.append(predict(Transition(point, 1.0, sigma**2 - below**2, 0.0)))
    return StepTable("score_sde_ve", _mean_at_end(rows), init_noise_sigma=high)


def score_sde_vp(schedule: NoiseSchedule, steps: int) -> StepTable:
    """Euler–Maruyama of the VP SDE.

    The model predicts ε and is told t·(steps − 1), as the pipeline did that diffusers had for this class.
    Reads beta_min, beta_max and sampling_eps with the defaults of diffusers' ScoreSdeVpScheduler;
    num_train_timesteps has no effect, as there.
    """
    settings = schedule.settings("score_sde_vp")
    settings.refuse("prediction_type", "epsilon", "remove it: the output is epsilon")
    eps = settings.positive("sampling_eps", 1e-3)
    betas = settings.positive("beta_min", 0.1), settings.positive("beta_max", 20.0)
    process = VP(*betas, t_min=eps, time_scale=steps - 1)
    rows = []
    for t in map(float, _times(eps, steps)):
        rows.append(predict(euler_maruyama_step(process, process.point(t), t, 1 / steps)))
    return StepTable("score_sde_vp", _mean_at_end(rows))


def _times(eps: float, steps: int) -> Float32:
    if eps >= 1:
        raise InputError(f"sampling_eps is {eps:g}, wanted less than 1, where sampling starts; correct it")
    return _even(1.0, eps, steps)


def _even(start: float, end: float, count: int) -> Float32:
    """`torch.linspace`, float32 [count]."""
    return linspace(start, end, count) if count > 1 else np.array([start], dtype=np.float32)


def _mean_at_end(rows: list[Step]) -> tuple[Step, ...]:
    last = rows[-1]
    assert last.point is not None
    return (*rows[:-1], step_at(last.point, last.update, noise_coef=0.0))


_PAPER = "Song et al., Score-Based Generative Modeling through Stochastic Differential Equations"
SAMPLERS = (
    Sampler(
        "score_sde_ve",
        score_sde_ve,
        order=1,
        evaluations=2,
        stochastic=True,
        paper=_PAPER,
        classes=("ScoreSdeVeScheduler",),
        any_steps=True,
    ),
    Sampler(
        "score_sde_vp",
        score_sde_vp,
        order=1,
        evaluations=1,
        stochastic=True,
        paper=_PAPER,
        classes=("ScoreSdeVpScheduler",),
        any_steps=True,
    ),
)
