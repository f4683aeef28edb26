"""PNDM: Liu, Ren, Lin and Zhao, "Pseudo Numerical Methods for Diffusion Models on Manifolds"."""

from __future__ import annotations

import math
from itertools import pairwise

from fastdiff.errors import InputError
from fastdiff.samplers.prediction import Linear, Prediction
from fastdiff.samplers.sampler import Sampler
from fastdiff.samplers.schedule import NoiseSchedule
from fastdiff.samplers.spacing import SPACINGS, spaced_timesteps
from fastdiff.samplers.table import Step, StepTable

__all__ = ["SAMPLERS", "pndm"]

# Adams-Bashforth weights of the current and the earlier slopes: Eq. 12 of the paper and the lower orders.
ADAMS_BASHFORTH = {
    2: (3 / 2, -1 / 2),
    3: (23 / 12, -16 / 12, 5 / 12),
    4: (55 / 24, -59 / 24, 37 / 24, -9 / 24),
}
# Slots: three earlier model outputs as a ring, a sample to return to, and two slopes of a Runge-Kutta step.
RING, SAVED_SAMPLE, SECOND_SLOPE, THIRD_SLOPE = 3, 3, 4, 5


def pndm(schedule: NoiseSchedule, steps: int) -> StepTable:
    """F-PNDM: linear multistep in ε, started by three pseudo Runge-Kutta steps of four evaluations each.

    With skip_prk_steps, which Stable Diffusion sets, the start is the first step done twice instead: by
    Euler, then with the mean of the slopes at both its ends; one evaluation more than steps. Reads
    timestep_spacing, steps_offset, set_alpha_to_one and skip_prk_steps with the defaults of diffusers'
    PNDMScheduler.
    """
    settings = schedule.settings("pndm")
    if schedule.prediction is Prediction.SAMPLE:
        raise InputError(
            "sampler 'pndm' cannot use prediction_type='sample'; use sampler 'ddim', 'euler' or 'dpmpp_2m'"
        )
    spacing = settings.choice("timestep_spacing", "leading", SPACINGS)
    offset = settings.integer("steps_offset", 0, minimum=0)
    skip_prk_steps = settings.flag("skip_prk_steps", False)
    if not skip_prk_steps and steps < 4:
        raise InputError(
            f"steps is {steps}, but sampler 'pndm' with a Runge-Kutta start (skip_prk_steps=False) wants 4 "
            "or more; use more steps or another sampler"
        )

    train_steps = schedule.num_train_timesteps
    transfer = _Transfer(schedule, settings.flag("set_alpha_to_one", False))
    timesteps = [int(t) for t in spaced_timesteps(spacing, train_steps, steps, offset).round()]
    delta = train_steps // steps
    start = _euler_start if skip_prk_steps else _runge_kutta_start
    rows, known = start(transfer, timesteps, delta)
    for i, t in enumerate(timesteps[known:], start=known):
        weights = ADAMS_BASHFORTH[min(i + 1, 4)]
        update = transfer(t, t - delta)
        history = tuple(((i - k) % RING, update.output * weights[k]) for k in range(1, len(weights)))
        current = Linear(update.sample, update.output * weights[0])
        rows.append(Step(float(t), current, history=history, save_output=i % RING))
    return StepTable("pndm", tuple(rows), slots=SAVED_SAMPLE + 1 if skip_prk_steps else THIRD_SLOPE + 1)


class _Transfer:
    """φ of Eq. 11: moves x from ᾱ_t to ᾱ_s along a slope ε, as factors of x and of the model output."""

    def __init__(self, schedule: NoiseSchedule, set_alpha_to_one: bool) -> None:
        self.alpha_bar = [float(a) for a in schedule.alphas_cumprod()]
        self.final = 1.0 if set_alpha_to_one else self.alpha_bar[0]
        self.prediction = schedule.prediction

    def __call__(self, t: int, s: int) -> Linear:
        a_t, a_s = self.alpha_bar[t], self.alpha_bar[s] if s >= 0 else self.final
        slope = (a_s - a_t) / (a_t * math.sqrt(1 - a_s) + math.sqrt(a_t * (1 - a_t) * a_s))
        epsilon = self.prediction.epsilon(math.sqrt(a_t), math.sqrt(1 - a_t))
        return Linear(math.sqrt(a_s / a_t), 0.0) + -slope * epsilon


def _euler_start(transfer: _Transfer, timesteps: list[int], delta: int) -> tuple[list[Step], int]:
    """The rows of the start, and how many slopes they leave in the ring."""
    t = timesteps[0]
    rows = [Step(float(t), transfer(t, t - delta), save_sample=SAVED_SAMPLE, save_output=0)]
    for s in timesteps[1:2]:
        again = transfer(s + delta, s)
        half = again.output / 2
        rows.append(Step(float(s), Linear(0.0, half), history=((SAVED_SAMPLE, again.sample), (0, half))))
    return rows, 1


def _runge_kutta_start(transfer: _Transfer, timesteps: list[int], delta: int) -> tuple[list[Step], int]:
    """Eq. 13 for three steps: slopes at t, twice at t − δ/2, and at t − δ, weighted 1 : 2 : 2 : 1."""
    rows = []
    half = delta // 2
    for i, (t, following) in enumerate(pairwise(timesteps[:4])):
        middle = following + half
        rows.append(Step(float(t), transfer(t, t - half), save_sample=SAVED_SAMPLE, save_output=i))
        for target, slot in ((middle, SECOND_SLOPE), (middle - half, THIRD_SLOPE)):
            move = transfer(t, target)
            back = ((SAVED_SAMPLE, move.sample),)
            rows.append(Step(float(middle), Linear(0.0, move.output), history=back, save_output=slot))
        move = transfer(t, following)
        sixth = move.output / 6
        slopes = ((i, sixth), (SECOND_SLOPE, 2 * sixth), (THIRD_SLOPE, 2 * sixth))
        history = ((SAVED_SAMPLE, move.sample), *slopes)
        rows.append(Step(float(following), Linear(0.0, sixth), history=history))
    return rows, 3


SAMPLERS = (
    Sampler(
        "pndm",
        pndm,
        order=2,
        evaluations=1,
        stochastic=False,
        paper="Liu et al., Pseudo Numerical Methods for Diffusion Models on Manifolds",
        classes=("PNDMScheduler",),
    ),
)
