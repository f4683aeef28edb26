"""DPM-Solver and DPM-Solver++ in their multistep forms, along the ODE and the SDE.

Lu et al., "DPM-Solver: A Fast ODE Solver for Diffusion Probabilistic Model Sampling in Around 10 Steps" and
"DPM-Solver++: Fast Solver for Guided Sampling of Diffusion Probabilistic Models".
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from fastdiff.errors import InputError
from fastdiff.samplers.exponential import Form, Leg, leg
from fastdiff.samplers.lambda_path import LambdaPath, PathRules, lambda_path
from fastdiff.samplers.moves import Move
from fastdiff.samplers.noise_options import not_negative
from fastdiff.samplers.part import growing
from fastdiff.samplers.path import Point
from fastdiff.samplers.sampler import Sampler
from fastdiff.samplers.schedule import NoiseSchedule
from fastdiff.samplers.settings import Settings
from fastdiff.samplers.table import StepTable

__all__ = [
    "ALGORITHM_TYPES",
    "ORDERS",
    "PAPERS",
    "SAMPLERS",
    "SOLVER_TYPES",
    "check_end",
    "dpm_multistep",
    "estimate_weights",
    "exact_third_order",
    "multistep_orders",
    "solver_options",
]

RULES = PathRules(zero_terminal_snr=True, cuts_cosine=True)
# Like diffusers, reads the solver types of other multistep solvers as "midpoint", so that their configs work,
# and DEIS's algorithm type as that of DPM-Solver++.
SOLVER_TYPES = ("midpoint", "heun", "logrho", "bh1", "bh2")
ALGORITHM_TYPES: dict[tuple[Form, bool], tuple[str | None, ...]] = {
    (Form.DATA, False): (None, "dpmsolver++", "deis"),
    (Form.DATA, True): ("sde-dpmsolver++",),
    (Form.NOISE, False): ("dpmsolver",),
    (Form.NOISE, True): ("sde-dpmsolver",),
}
ORDERS: dict[int, tuple[int | None, ...]] = {1: (1,), 2: (None, 2), 3: (3,)}
PAPERS = {
    Form.DATA: "Lu et al., DPM-Solver++: Fast Solver for Guided Sampling of Diffusion Probabilistic Models",
    Form.NOISE: "Lu et al., DPM-Solver: A Fast ODE Solver for Diffusion Probabilistic Model Sampling in "
    "Around 10 Steps",
}


def dpm_multistep(
    points: Sequence[Point],
    orders: Sequence[int],
    form: Form,
    *,
    tau: float = 0.0,
    s_noise: float = 1.0,
    heun: bool = False,
    exact: bool = False,
) -> list[Move]:
    """Move i has order ``orders[i]``, 1 to 3, and takes derivatives from as many evaluations.

    ``tau`` is 0 for the ODE and 1 for the SDE; its noise is multiplied by ``s_noise``.

    The second order is Algorithm 2 of "DPM-Solver++" with w₀/2 for w₁, or, with ``heun``, w₁ itself. In the
    third order D₂ is what the authors' code and diffusers have, half the second derivative, which leaves it
    a method of second order; and along the SDE diffusers' w₂ is too large by 1, which leaves it one of first
    order. ``exact`` mends both.
    """
    moves = []
    for i, order in enumerate(orders):
        step = leg(points[i], points[i + 1], form, tau)
        excess = 1.0 if tau and not exact else 0.0
        weights = estimate_weights(step, points[: i + 1], order, heun=heun, exact=exact, excess=excess)
        estimates = {i - k: weight for k, weight in enumerate(weights)}
        moves.append(Move({i: step.carry}, estimates, step.noise * s_noise if tau else None))
    return moves


def estimate_weights(
    step: Leg, points: Sequence[Point], order: int, *, heun: bool, exact: bool, excess: float = 0.0
) -> list[float]:
    """Of the estimates at the last ``order`` of ``points``, the newest first, in the motion ``step``.

    As `dpm_multistep` says; w₂ is too large by ``excess``.
    """
    first = step.scale * step.w(0)
    if order == 1:
        return [first]
    before = points[-1].log_snr - points[-2].log_snr
    w1 = step.w(1) if heun or order == 3 else step.w(0) / 2
    newest = step.scale * w1 * step.h  # of the differences (d − d')/(λ − λ')
    if order == 2:
        return [first + newest / before, -newest / before]
    earlier = points[-2].log_snr - points[-3].log_snr
    w2 = (step.w(2) + excess) * (2 if exact else 1)
    second = step.scale * w2 * step.h**2 + newest * before
    newest, older = newest + second / (before + earlier), -second / (before + earlier)
    return [first + newest / before, older / earlier - newest / before, -older / earlier]


def multistep_orders(steps: int, order: int, *, lower_order_final: bool, euler_at_final: bool) -> list[int]:
    """The order of each step: growing at the start and, as the config says, falling at the end.

    With fewer than 15 steps, ``lower_order_final`` ends on orders 2 and 1.
    """
    orders = [min(order, i + 1) for i in range(steps)]
    falls = lower_order_final and steps < 15
    if falls and steps > 1:
        orders[-2] = min(orders[-2], 2)
    if falls or euler_at_final:
        orders[-1] = 1
    return orders


def check_end(path: LambdaPath, form: Form, sampler: str) -> None:
    """Raise `InputError` for a solver in ε whose path ends without noise, where ε has no meaning."""
    if form is Form.NOISE and path.ends_without_noise:
        raise InputError(
            f"sampler {sampler!r} cannot end at final_sigmas_type='zero'; set final_sigmas_type to "
            "'sigma_min' or use sampler 'dpmpp_2m'"
        )


def exact_third_order(settings: Settings, order: int) -> bool:
    """Option exact_third_order of solvers of order 3: mend what diffusers has of its own."""
    return order == 3 and settings.flag("exact_third_order", False)


def solver_options(settings: Settings, order: int, sde: bool) -> dict[str, Any]:
    """The options of both kinds of solvers: solver_type; for order 3 exact_third_order; along the SDE eta (1)
    and s_noise (1), which diffusers does not have.

    ``eta`` is τ², as in k-diffusion's samplers: 0 is the ODE.
    """
    options: dict[str, Any] = {
        "heun": settings.choice("solver_type", "midpoint", SOLVER_TYPES) == "heun",
        "exact": exact_third_order(settings, order),
    }
    if sde:
        options["tau"] = math.sqrt(not_negative(settings, "eta", 1.0))
        options["s_noise"] = not_negative(settings, "s_noise", 1.0)
    return options


def _table(name: str, form: Form, order: int, sde: bool, schedule: NoiseSchedule, steps: int) -> StepTable:
    """Reads lower_order_final, euler_at_final and what `solver_options` and `lambda_path` read, with the
    defaults of diffusers' DPMSolverMultistepScheduler.

    But final_sigmas_type is "sigma_min" for the solvers in ε, which have no other. Order 3 takes no notice of
    solver_type, as in diffusers.
    """
    settings = schedule.settings(name)
    options = solver_options(settings, order, sde)
    rules = RULES if form is Form.DATA else replace(RULES, final="sigma_min")
    path = lambda_path(schedule, settings, steps, rules)
    check_end(path, form, name)
    orders = multistep_orders(
        path.total,
        order,
        lower_order_final=settings.flag("lower_order_final", True),
        euler_at_final=settings.flag("euler_at_final", False) or path.ends_without_noise,
    )
    orders = growing(orders, path.begin)
    return path.table(name, dpm_multistep(path.points, orders, form, **options), form)


def _sampler(name: str, form: Form, order: int, true_order: int, *, sde: bool = False) -> Sampler:
    return Sampler(
        name,
        partial(_table, name, form, order, sde),
        order=true_order,
        evaluations=1,
        stochastic=sde,
        paper=PAPERS[form],
        classes=("DPMSolverMultistepScheduler",),
        when={"solver_order": ORDERS[order], "algorithm_type": ALGORITHM_TYPES[form, sde]},
    )


SAMPLERS = (
    _sampler("dpmpp_1m", Form.DATA, 1, 1),
    _sampler("dpmpp_2m", Form.DATA, 2, 2),
    _sampler("dpmpp_3m", Form.DATA, 3, 2),
    _sampler("dpmpp_1m_sde", Form.DATA, 1, 1, sde=True),
    _sampler("dpmpp_2m_sde", Form.DATA, 2, 2, sde=True),
    _sampler("dpmpp_3m_sde_diffusers", Form.DATA, 3, 1, sde=True),
    _sampler("dpm_solver_1m", Form.NOISE, 1, 1),
    _sampler("dpm_solver_2m", Form.NOISE, 2, 2),
    _sampler("dpm_solver_3m", Form.NOISE, 3, 2),
    _sampler("dpm_solver_1m_sde", Form.NOISE, 1, 1, sde=True),
    _sampler("dpm_solver_2m_sde", Form.NOISE, 2, 2, sde=True),
)
