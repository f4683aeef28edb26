"""DPM-Solver and DPM-Solver++ in their singlestep forms: blocks of one to three evaluations that each start
afresh.

Lu et al., "DPM-Solver: A Fast ODE Solver for Diffusion Probabilistic Model Sampling in Around 10 Steps" and
"DPM-Solver++: Fast Solver for Guided Sampling of Diffusion Probabilistic Models".
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

from fastdiff.samplers.dpm_multistep import (
    ALGORITHM_TYPES,
    ORDERS,
    PAPERS,
    check_end,
    solver_options,
)
from fastdiff.samplers.exponential import Form, leg
from fastdiff.samplers.lambda_path import PathRules, lambda_path
from fastdiff.samplers.moves import Move
from fastdiff.samplers.part import growing
from fastdiff.samplers.path import Point
from fastdiff.samplers.sampler import Sampler
from fastdiff.samplers.schedule import NoiseSchedule
from fastdiff.samplers.table import StepTable

__all__ = ["SAMPLERS", "dpm_singlestep", "singlestep_orders"]

RULES = PathRules(spacings=False)


def dpm_singlestep(
    points: Sequence[Point],
    orders: Sequence[int],
    form: Form,
    *,
    tau: float = 0.0,
    s_noise: float = 1.0,
    heun: bool = False,
    exact: bool = False,
) -> list[Move]:
    """Algorithms 1 and 2 of "DPM-Solver" and 1 of "DPM-Solver++"; inner points are points of the path.

    Evaluation i is number ``orders[i]`` of its block. The move after it goes from the block's first point s
    to the next point, with the order of its number; those that the next move starts over are the stages.
    Order 3 takes D₁ from the last stage, which lies at ⅔ of the block where λ is evenly spaced, or, with
    ``heun``, D₁ and D₂ from both. diffusers' w₂ is too large by 1 along the SDE; ``exact`` mends it.
    """
    moves = []
    for i, order in enumerate(orders):
        first = i + 1 - order
        step = leg(points[first], points[i + 1], form, tau)
        d0, w1 = step.scale * step.w(0), step.scale * step.w(1) * step.h
        estimates = {first: d0}
        newest = points[i].log_snr - points[first].log_snr
        if order == 2:
            estimates[i] = (w1 if heun else d0 * step.h / 2) / newest
        elif order == 3 and not heun:
            estimates[i] = w1 / newest
        elif order == 3:
            middle = points[i - 1].log_snr - points[first].log_snr
            w2 = step.scale * (step.w(2) + (1 if tau and not exact else 0)) * step.h**2
            estimates[i - 1] = (w1 * newest - 2 * w2) / (newest - middle) / middle
            estimates[i] = (2 * w2 - w1 * middle) / (newest - middle) / newest
        estimates[first] -= sum(coef for j, coef in estimates.items() if j > first)
        moves.append(Move({first: step.carry}, estimates, step.noise * s_noise if tau else None))
    return moves


def singlestep_orders(
    steps: int, order: int, *, lower_order_final: bool, ends_without_noise: bool
) -> list[int]:
    """The number of each evaluation in its block, for blocks of ``order`` evaluations.

    What is left over makes lower blocks. ``lower_order_final`` splits the last block of ``order``, and is
    taken for granted where steps are left over or the path ends without noise, which takes a last block of 1.
    """
    whole = list(range(1, order + 1))
    left = steps % order
    if order == 1 or (left == 0 and not lower_order_final and not ends_without_noise):
        return whole * (steps // order)
    orders = whole * (steps // order) + whole[:left]
    if left == 0:
        orders[-1] = 1
    if ends_without_noise:
        orders[-1] = 1
    return orders


def _table(name: str, form: Form, order: int, sde: bool, schedule: NoiseSchedule, steps: int) -> StepTable:
    """Reads lower_order_final and what `solver_options` and `lambda_path` read, with the defaults of
    diffusers' DPMSolverSinglestepScheduler; final_sigmas_type is "sigma_min" in ε.

    diffusers fails on thresholding with algorithm_type "dpmsolver"; here it is the multistep solver's.
    """
    settings = schedule.settings(name)
    options = solver_options(settings, order, sde)
    rules = RULES if form is Form.DATA else replace(RULES, final="sigma_min")
    path = lambda_path(schedule, settings, steps, rules)
    check_end(path, form, name)
    orders = singlestep_orders(
        path.total,
        order,
        lower_order_final=settings.flag("lower_order_final", False),
        ends_without_noise=path.ends_without_noise,
    )
    orders = growing(orders, path.begin)
    return path.table(name, dpm_singlestep(path.points, orders, form, **options), form)


def _sampler(name: str, form: Form, order: int, *, sde: bool = False) -> Sampler:
    return Sampler(
        name,
        partial(_table, name, form, order, sde),
        order=order if not sde else 1,
        evaluations=1,
        stochastic=sde,
        paper=PAPERS[form],
        classes=("DPMSolverSinglestepScheduler",),
        when={"solver_order": ORDERS[order], "algorithm_type": ALGORITHM_TYPES[form, sde]},
    )


SAMPLERS = (
    _sampler("dpmpp_1s", Form.DATA, 1),
    _sampler("dpmpp_2s", Form.DATA, 2),
    _sampler("dpmpp_3s", Form.DATA, 3),
    _sampler("dpmpp_1s_sde", Form.DATA, 1, sde=True),
    _sampler("dpmpp_2s_sde", Form.DATA, 2, sde=True),
    _sampler("dpmpp_3s_sde", Form.DATA, 3, sde=True),
    _sampler("dpm_solver_1s", Form.NOISE, 1),
    _sampler("dpm_solver_2s", Form.NOISE, 2),
    _sampler("dpm_solver_3s", Form.NOISE, 3),
)
