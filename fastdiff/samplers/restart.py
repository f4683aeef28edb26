"""Restart: Xu et al., "Restart Sampling for Improving Generative Processes"."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from fastdiff.errors import InputError
from fastdiff.samplers.clipping import NO_CLIPPING, Clipping, read_clipping
from fastdiff.samplers.heun import heun_steps
from fastdiff.samplers.noise_options import not_negative
from fastdiff.samplers.path import Point
from fastdiff.samplers.sampler import Sampler
from fastdiff.samplers.schedule import NoiseSchedule
from fastdiff.samplers.sigma_path import sigma_path
from fastdiff.samplers.spacing import karras_sigmas
from fastdiff.samplers.table import Step, StepTable

__all__ = ["PRESETS", "SAMPLERS", "Interval", "restart_steps"]


@dataclass(frozen=True)
class Interval:
    """Restart between two levels: ``times`` times up to ``high`` by noise and down to ``low`` in
    ``levels`` − 1 steps. The paper's K, t_max, t_min and N_Restart.
    """

    levels: int
    times: int
    low: float
    high: float


PRESETS: dict[str, tuple[Interval, ...]] = {
    "none": (),
    "stable_diffusion": (Interval(10, 2, 0.1, 2.0),),
    "stable_diffusion_low_guidance": (Interval(5, 2, 1.0, 9.0), Interval(5, 2, 5.0, 10.0)),
    "cifar10": (Interval(3, 20, 0.06, 0.30),),
    "imagenet64": (
        Interval(4, 1, 19.35, 40.79),
        Interval(4, 1, 1.09, 1.92),
        Interval(4, 5, 0.59, 1.09),
        Interval(4, 5, 0.30, 0.59),
        Interval(6, 6, 0.06, 0.30),
    ),
}
"""Of the paper's appendix and code: Stable Diffusion 1.5 with 30 steps and guidance 5 to 8, or 2, CIFAR-10
(VP and EDM, 18 steps) and EDM's ImageNet-64 (36 steps, s_noise 1.003)."""


def restart_steps(
    points: Sequence[Point],
    intervals: Sequence[Interval],
    at: Callable[[float], Point],
    s_noise: float = 1.0,
    clip: Clipping = NO_CLIPPING,
) -> list[Step]:
    """Algorithm 1 of the paper with Heun's steps: at the point next to each interval's lower end, noise
    √(t_max² − t_min²)·z and Karras' levels (ρ = 7) back down, several times.
    """
    if intervals and len(points) < 3:
        raise InputError("steps is 1, but restarts want a step that ends above 0; use 2 steps or more")
    starts, ends = list(points[:-1]), list(points[1:])
    noises: list[float | None] = [None] * len(starts)
    for interval in sorted(intervals, key=lambda interval: interval.low, reverse=True):
        low = min(points[1:-1], key=lambda point: abs(point.sigma - interval.low))
        if low.sigma >= interval.high:
            raise InputError(
                f"a restart goes from {interval.low:g} up to {interval.high:g}, but the step that ends "
                f"nearest to the first ends at {low.sigma:g}; use more steps or other restarts"
            )
        loop = [at(float(sigma)) for sigma in karras_sigmas(low.sigma, interval.high, interval.levels)[:-1]]
        loop.append(low)
        arrival = len(ends) - 1 - ends[::-1].index(low)
        noise = s_noise * math.sqrt(interval.high**2 - low.sigma**2)
        for _ in range(interval.times):
            noises[arrival] = noise
            for begin, end in pairwise(loop):
                arrival += 1
                starts.insert(arrival, begin)
                ends.insert(arrival, end)
                noises.insert(arrival, None)
    return heun_steps(starts, ends, noises, clip)


def restart(schedule: NoiseSchedule, steps: int) -> StepTable:
    """Reads what `sigma_path` and `read_clipping` read, s_noise (1), restarts and restart_preset.

    ``restarts`` lists N_Restart, K, t_min and t_max for each interval, one after the other. Without it
    ``restart_preset`` names one of `PRESETS`; the default is "stable_diffusion" from 10 steps on and "none"
    for fewer. ``steps`` counts those of the main path: each interval adds K·(N_Restart − 1) more.
    """
    settings = schedule.settings("restart")
    path = sigma_path(schedule, settings, steps)
    s_noise = not_negative(settings, "s_noise", 1.0)
    preset = settings.choice("restart_preset", "stable_diffusion" if steps >= 10 else "none", tuple(PRESETS))
    numbers = settings.numbers("restarts")
    intervals = PRESETS[preset] if numbers is None else _intervals(numbers)
    rows = restart_steps(path.points, intervals, path.at, s_noise, read_clipping(settings))
    return StepTable("restart", tuple(rows), path.init_noise_sigma, slots=1)


def _intervals(numbers: Sequence[float]) -> Sequence[Interval]:
    if len(numbers) % 4:
        raise InputError(
            f"restarts has {len(numbers)} numbers, wanted N_Restart, K, t_min and t_max for each"
        )
    intervals = []
    for levels, times, low, high in zip(*[iter(numbers)] * 4, strict=True):
        if levels < 2 or times < 1 or levels % 1 or times % 1 or not 0 < low < high:
            raise InputError(
                f"restarts has {levels:g}, {times:g}, {low:g}, {high:g}, wanted an integer N_Restart of 2 or "
                "more, an integer K of 1 or more, and 0 < t_min < t_max"
            )
        intervals.append(Interval(int(levels), int(times), low, high))
    return intervals


SAMPLERS = (
    Sampler(
        "restart",
        restart,
        order=2,
        evaluations=2,
        stochastic=True,
        paper="Xu et al., Restart Sampling for Improving Generative Processes",
    ),
)
