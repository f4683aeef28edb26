"""PNDM: Liu, Ren, Lin and Zhao, "Pseudo Numerical Methods for Diffusion Models on Manifolds"."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from fastdiff.errors import InputError
from fastdiff.samplers.adams_bashforth import RING, Transfer, extrapolate, slope, slope_fields
from fastdiff.samplers.chain import Chain, chain_timesteps, following_timesteps, read_chain
from fastdiff.samplers.path import Point
from fastdiff.samplers.prediction import Linear, Prediction
from fastdiff.samplers.sampler import Sampler
from fastdiff.samplers.schedule import NoiseSchedule
from fastdiff.samplers.settings import Settings
from fastdiff.samplers.table import Step, StepTable, step_at

__all__ = ["SAMPLERS", "f_pndm", "improved_euler_start", "plms", "pndm", "runge_kutta_start", "s_pndm"]

_PAPER = "Liu et al., Pseudo Numerical Methods for Diffusion Models on Manifolds"
# Slots after the ring of slopes: a sample to return to, and two slopes of a Runge-Kutta step.
SAVED_SAMPLE, SECOND_SLOPE, THIRD_SLOPE = RING, RING + 1, RING + 2


def improved_euler_start(
    points: Sequence[Point], first: Transfer, again: Transfer | None, *, raw: bool = False
) -> list[Step]:
    """Pseudo improved Euler, which starts S-PNDM: the first step by Euler, then with the mean of the slopes
    at both of its ends. ``again`` is the same transfer, or None where there is but one step.
    """
    point = points[0]
    update = Linear(first.along, 0.0) + first.across * slope(point, raw=raw)
    rows = [step_at(point, update, save_sample=SAVED_SAMPLE, **slope_fields(point, 0, raw=raw))]
    if again is not None:
        half = again.across / 2
        history = ((SAVED_SAMPLE, again.along), (0, half))
        rows.append(step_at(points[1], half * slope(points[1], raw=raw), history=history))
    return rows


def runge_kutta_start(
    steps: Sequence[tuple[Point, Point, Point]],
    transfers: Sequence[tuple[Transfer, Transfer, Transfer, Transfer]],
    *,
    raw: bool = False,
) -> list[Step]:
    """Eq. 13 of the paper, pseudo Runge-Kutta: slopes at a step's beginning, twice in its middle and at its
    end, weighted 1 : 2 : 2 : 1. Beginning, middle and end of each step, and the transfers that lead to the
    other three evaluations and to the end.
    """
    rows = []
    for i, ((begin, middle, end), (to_middle, back, to_end, whole)) in enumerate(
        zip(steps, transfers, strict=True)
    ):
        update = Linear(to_middle.along, 0.0) + to_middle.across * slope(begin, raw=raw)
        rows.append(step_at(begin, update, save_sample=SAVED_SAMPLE, **slope_fields(begin, i, raw=raw)))
        for transfer, slot in ((back, SECOND_SLOPE), (to_end, THIRD_SLOPE)):
            update = transfer.across * slope(middle, raw=raw)
            back_to = ((SAVED_SAMPLE, transfer.along),)
            rows.append(step_at(middle, update, history=back_to, **slope_fields(middle, slot, raw=raw)))
        sixth = whole.across / 6
        slopes = ((i, sixth), (SECOND_SLOPE, 2 * sixth), (THIRD_SLOPE, 2 * sixth))
        history = ((SAVED_SAMPLE, whole.along), *slopes)
        rows.append(step_at(end, sixth * slope(end, raw=raw), history=history))
    return rows


def pndm(schedule: NoiseSchedule, steps: int) -> StepTable:
    """The PNDMScheduler of diffusers: linear multistep in ε, started by three pseudo Runge-Kutta steps of
    four evaluations each, or, with skip_prk_steps, which Stable Diffusion sets, by pseudo improved Euler.

    Reads timesteps and, with the defaults of that class, timestep_spacing, steps_offset, set_alpha_to_one and
    skip_prk_steps. A model that predicts v has its outputs extrapolated as they are, as there; samplers
    "plms", "f_pndm" and "s_pndm" extrapolate ε whatever the model predicts.
    """
    settings = schedule.settings("pndm")
    if schedule.prediction not in (Prediction.EPSILON, Prediction.V):
        raise InputError(
            f"sampler 'pndm' cannot use prediction_type={schedule.prediction.value!r}; use sampler 'ddim', "
            "'euler' or 'dpmpp_2m'"
        )
    skip_prk_steps = settings.flag("skip_prk_steps", False)
    chain = _chain(settings, schedule)
    timesteps = chain_timesteps(settings, schedule, steps, whole=True)
    if skip_prk_steps and not settings.is_set("timesteps"):
        told = _told(timesteps)
        told = told[settings.begin(told) :]
        timesteps, second = [*told[:1], *told[2:]], told[1:2]
    else:
        timesteps = timesteps[settings.begin(timesteps) :]
        second = timesteps[1:2]
    ends = following_timesteps(settings, schedule, timesteps, steps)
    start = "euler" if skip_prk_steps else "runge_kutta"
    return _table("pndm", chain, timesteps, ends, steps, start=start, second=second, raw=True)


def _told(timesteps: Sequence[int]) -> list[int]:
    """One for each evaluation: the second one twice, as the first step is made again with both slopes.

    diffusers cuts this list when it starts in the middle, and always takes the second entry of what is left
    for the repetition. A step is then missing, whose noise stays in the picture.
    """
    return [*timesteps[:2], *timesteps[1:]]


def plms(schedule: NoiseSchedule, steps: int) -> StepTable:
    """Pseudo linear multistep of order 4 with the start of `s_pndm`: one evaluation more than steps.

    Reads timesteps, timestep_spacing, steps_offset and set_alpha_to_one with the defaults of diffusers'
    PNDMScheduler; a step ends where the next begins.
    """
    return _named(schedule, "plms", steps, start="euler")


def s_pndm(schedule: NoiseSchedule, steps: int) -> StepTable:
    """S-PNDM of the paper: two slopes, extrapolated to (3·e − e_before)/2; options as `plms`."""
    return _named(schedule, "s_pndm", steps, start="euler", order=2)


def f_pndm(schedule: NoiseSchedule, steps: int) -> StepTable:
    """F-PNDM of the paper: four slopes, started by three pseudo Runge-Kutta steps.

    Nine evaluations more than steps. Options as `plms`.

    The paper proves order 2 for it; it has order 4 where the steps are even in σ/α.
    """
    return _named(schedule, "f_pndm", steps, start="runge_kutta")


def _chain(settings: Settings, schedule: NoiseSchedule) -> Chain:
    """The chain with diffusers' default for PNDM, whose class does not know rescaled betas."""
    alpha_bar = [float(a) for a in schedule.alphas_cumprod()]
    final = 1.0 if settings.flag("set_alpha_to_one", False) else alpha_bar[0]
    return Chain(alpha_bar, final, schedule.prediction)


def _named(schedule: NoiseSchedule, name: str, steps: int, *, start: str, order: int = 4) -> StepTable:
    settings = schedule.settings(name)
    chain = read_chain(settings, schedule, name, set_alpha_to_one=False)
    timesteps = chain_timesteps(settings, schedule, steps)
    return _table(name, chain, timesteps, [*timesteps[1:], -1], steps, start=start, order=order)


def _table(
    name: str,
    chain: Chain,
    timesteps: Sequence[int],
    ends: Sequence[int],
    steps: int,
    *,
    start: str,
    second: Sequence[int] | None = None,
    order: int = 4,
    raw: bool = False,
) -> StepTable:
    """Steps from ``timesteps`` to ``ends``: all of ``steps``, or the later ones of them.

    ``second`` holds the timestep of the second evaluation, if there is one, where that is not
    ``timesteps[1]``.
    """
    points = [chain.at(t) for t in timesteps]

    def transfer(begin: int, end: int) -> Transfer:
        return Transfer.between(chain.at(begin), chain.at(end), raw=raw)

    transfers = [transfer(t, end) for t, end in zip(timesteps, ends, strict=True)]
    if start == "euler":
        # Where a step does not end at the next timestep, diffusers repeats another transfer than the first.
        stride = timesteps[0] - ends[0]
        second = timesteps[1:2] if second is None else second
        again = transfer(second[0] + stride, second[0]) if second else None
        starts = [points[0], *(chain.at(t) for t in second)]
        rows = improved_euler_start(starts, transfers[0], again, raw=raw)
        known, slots = 1, SAVED_SAMPLE + 1
    else:
        if len(timesteps) < 4:
            later = f" and only the last {len(timesteps)} are run" if len(timesteps) < steps else ""
            raise InputError(
                f"steps is {steps}{later}, but sampler {name!r} with a Runge-Kutta start "
                "(skip_prk_steps=False) wants 4 or more; use more steps"
                f"{', start earlier' if later else ''} or another sampler"
            )
        rows = _runge_kutta_rows(chain, timesteps, ends, raw=raw)
        known, slots = 3, THIRD_SLOPE + 1
    rows += extrapolate(points, transfers, known, order, raw=raw)
    return StepTable(name, tuple(rows), slots=slots)


def _runge_kutta_rows(
    chain: Chain, timesteps: Sequence[int], ends: Sequence[int], *, raw: bool
) -> list[Step]:
    """The first three steps. Their middles are rounded to timesteps."""
    steps, transfers = [], []
    for (t, following), end in zip(pairwise(timesteps[:4]), ends[:3], strict=True):
        half = (t - end) // 2
        middle = following + half
        begin = chain.at(t)

        def to(target: int, begin: Point = begin) -> Transfer:
            return Transfer.between(begin, chain.at(target), raw=raw)

        steps.append((begin, chain.at(middle), chain.at(following)))
        transfers.append((to(t - half), to(middle), to(middle - half), to(following)))
    return runge_kutta_start(steps, transfers, raw=raw)


SAMPLERS = (
    Sampler(
        "pndm",
        pndm,
        order=2,
        evaluations=1,
        stochastic=False,
        paper=_PAPER,
        classes=("PNDMScheduler",),
    ),
    Sampler("plms", plms, order=2, evaluations=1, stochastic=False, paper=_PAPER),
    Sampler("s_pndm", s_pndm, order=2, evaluations=1, stochastic=False, paper=_PAPER),
    Sampler("f_pndm", f_pndm, order=2, evaluations=1, stochastic=False, paper=_PAPER),
)
