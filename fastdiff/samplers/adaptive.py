"""Samplers that choose their steps while they run, so that no table holds them.

`make_adaptive` of `fastdiff.samplers.registry` reads the options, `sample_adaptive` runs the result against
the same denoisers as `fastdiff.samplers.loop.sample`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from fastdiff.errors import InputError
from fastdiff.samplers.loop import Callback, Denoiser, check_arguments
from fastdiff.samplers.path import Point
from fastdiff.samplers.prediction import Prediction
from fastdiff.samplers.probability_flow import share_at, straight_point, straight_scale, straight_slope
from fastdiff.samplers.process import Process
from fastdiff.samplers.process_points import learned_variance, process_of
from fastdiff.samplers.random import NoiseSource
from fastdiff.samplers.runge_kutta import BOGACKI_SHAMPINE, DORMAND_PRINCE, Pair, integrate
from fastdiff.samplers.sampler import Sampler
from fastdiff.samplers.schedule import NoiseSchedule
from fastdiff.samplers.settings import Settings
from fastdiff.samplers.table import StepTable

__all__ = ["SAMPLERS", "AdaptiveRun", "Model", "Observe", "adaptive_run", "no_table", "sample_adaptive"]

Float64 = NDArray[np.float64]
Latents = NDArray[np.float32]
Model = Callable[[Point, Float64], Float64]
"""The guided output at a point, for the state x."""
Observe = Callable[[float, Float64, int], None]
"""Called after every accepted step with the share of the way that is done, x, and the evaluations so far."""


class Solver(Protocol):
    """An adaptive solver with its options: from x at ``t_max`` to x at ``t_min``, and the evaluations."""

    def __call__(
        self,
        process: Process,
        prediction: Prediction,
        model: Model,
        x: Float64,
        *,
        max_evaluations: int,
        noise: NoiseSource | None,
        observe: Observe,
    ) -> tuple[Float64, int]: ...


@dataclass(frozen=True)
class AdaptiveRun:
    """An adaptive sampler with all that a config says: what `StepTable` is to the others.

    sampler          its name
    process          from its ``t_max`` to its ``t_min``
    prediction       what the denoiser's output means
    solve            goes from x at ``t_max`` to x at ``t_min``
    denoise          a last evaluation replaces x at ``t_min`` by the clean sample predicted from it
    max_evaluations  more are an error
    stochastic       draws noise
    """

    sampler: str
    process: Process
    prediction: Prediction
    solve: Solver
    denoise: bool
    max_evaluations: int
    stochastic: bool = False

    @property
    def init_noise_sigma(self) -> float:
        """The first sample is this times unit noise."""
        return self.process.init_noise_sigma


def sample_adaptive(
    run: AdaptiveRun,
    denoise: Denoiser,
    latents: Latents,
    *,
    guidance: float = 1.0,
    noise: NoiseSource | None = None,
    callback: Callback | None = None,
) -> Latents:
    """Run ``run`` from ``latents`` and return the result, float32 of the same shape.

    latents   float32 [batch, …]: unit noise times ``run.init_noise_sigma``; not changed. The steps are chosen
              for the batch such that each image is held to the tolerance, so they depend on the batch
    guidance  as in `fastdiff.samplers.loop.sample`
    noise     for runs that are ``stochastic``
    callback  called after every accepted step and the last evaluation, with the number of evaluations done,
              an estimate of how many there will be in all, and the latents, read-only

    The state is float64, what the denoiser sees float32: tolerances below 1e-6 are out of reach. Raises
    `InputError` for a guidance that is not finite, a missing noise source, latents that are not float32, a
    missing output of the denoiser, and when ``run.max_evaluations`` do not suffice; `NumericError` for NaN.
    """
    check_arguments(run, latents, (guidance,), noise)
    guided = guidance != 1

    def model(point: Point, x: Float64) -> Float64:
        sample = (point.input_scale * x).astype(np.float32)
        sample.flags.writeable = False
        cond, uncond, *_ = denoise(sample, point.timestep, int(guided))
        if not guided:
            return cond.astype(np.float64)
        if uncond is None:
            raise InputError(f"guidance is {guidance}, but the denoiser gave no output without the prompt")
        return uncond + guidance * (cond.astype(np.float64) - uncond)

    last = int(run.denoise)

    def observe(share: float, x: Float64, done: int) -> None:
        if callback is not None:
            callback(done, max(done, round(done / share)) + last, _read_only(x))

    x, done = run.solve(
        run.process,
        run.prediction,
        model,
        latents.astype(np.float64),
        max_evaluations=run.max_evaluations - last,
        noise=noise,
        observe=observe,
    )
    if run.denoise:
        point = run.process.point(run.process.t_min, run.prediction)
        x = point.x0.sample * x + point.x0.output * model(point, x)
        if callback is not None:
            callback(done + 1, done + 1, _read_only(x))
    return x.astype(np.float32)


def probability_flow(
    process: Process,
    prediction: Prediction,
    model: Model,
    x: Float64,
    *,
    pair: Pair,
    rtol: float,
    atol: float,
    max_evaluations: int,
    noise: NoiseSource | None = None,
    observe: Observe | None = None,
) -> tuple[Float64, int]:
    """The probability-flow ODE from ``t_max`` to ``t_min`` by an embedded pair, in straight coordinates.

    ``rtol`` and ``atol`` hold for y = x/(α + σ), whose size is that of the data or of unit noise.
    """
    start, end = share_at(process, process.t_max), share_at(process, process.t_min)

    def observed(u: float, y: Float64, done: int) -> None:
        if observe is not None:
            scale = straight_scale(straight_point(process, u, prediction))
            observe((u - start) / (end - start), scale * y, done)

    first, last = (straight_scale(process.point(t, prediction)) for t in (process.t_max, process.t_min))
    solution = integrate(
        flow_slope(process, prediction, model),
        x / first,
        start,
        end,
        pair,
        rtol=rtol,
        atol=atol,
        max_evaluations=max_evaluations,
        observe=observed,
    )
    return last * solution.y, solution.evaluations


def flow_slope(process: Process, prediction: Prediction, model: Model) -> Callable[[float, Float64], Float64]:
    """dy/du of the probability-flow ODE, of u and y in `fastdiff.samplers.probability_flow`."""

    def slope(u: float, y: Float64) -> Float64:
        point = straight_point(process, u, prediction)
        state = straight_scale(point) * y
        linear = straight_slope(point)
        return linear.sample * state + linear.output * model(point, state)

    return slope


def adaptive_run(
    sampler: str,
    schedule: NoiseSchedule,
    settings: Settings,
    solver: Solver,
    *,
    final: str,
    stochastic: bool = False,
) -> AdaptiveRun:
    """The run of ``solver``, reading the options that all adaptive samplers share.

    Those are the process's (`process_of`), ``max_evaluations`` (1000) and ``final_sigmas_type``: "zero" ends
    with the clean sample predicted at the last level, "sigma_min" with the sample at that level; ``final`` is
    the default.
    """
    settings.refuse("thresholding", False, "set it to false or use a sampler with fixed steps")
    if learned_variance(settings):
        raise InputError(
            f"sampler {sampler!r} does not support models with a learned variance; use one with fixed steps"
        )
    return AdaptiveRun(
        sampler,
        process_of(schedule, settings),
        schedule.prediction,
        solver,
        settings.choice("final_sigmas_type", final, ("zero", "sigma_min")) == "zero",
        settings.integer("max_evaluations", 1000, minimum=10),
        stochastic,
    )


def no_table(sampler: str) -> Callable[[NoiseSchedule, int], StepTable]:
    """For `Sampler.table` of an adaptive sampler: raises `InputError`."""

    def table(schedule: NoiseSchedule, steps: int) -> StepTable:
        raise InputError(
            f"sampler {sampler!r} chooses its own steps and has no table of {steps}; run it with "
            "make_adaptive and sample_adaptive, or use a sampler with fixed steps"
        )

    return table


def _read_only(x: Float64) -> Latents:
    latents = x.astype(np.float32)
    latents.flags.writeable = False
    return latents


def _runge_kutta(name: str, pair: Pair, paper: str) -> Sampler:
    def run(schedule: NoiseSchedule) -> AdaptiveRun:
        """Reads ``rtol`` and ``atol`` (both 0.001) besides the shared options."""
        settings = schedule.settings(name)
        rtol, atol = settings.positive("rtol", 1e-3), settings.positive("atol", 1e-3)
        solver = partial(probability_flow, pair=pair, rtol=rtol, atol=atol)
        return adaptive_run(name, schedule, settings, solver, final="zero")

    return Sampler(
        name,
        no_table(name),
        order=pair.order,
        evaluations=pair.evaluations,
        stochastic=False,
        paper=paper,
        any_steps=True,
        adaptive=run,
    )


SAMPLERS = (
    _runge_kutta("rk45", DORMAND_PRINCE, "Dormand and Prince, A Family of Embedded Runge-Kutta Formulae"),
    _runge_kutta("rk23", BOGACKI_SHAMPINE, "Bogacki and Shampine, A 3(2) Pair of Runge-Kutta Formulas"),
)
