"""DEIS: Zhang and Chen, "Fast Sampling of Diffusion Models with Exponential Integrator"."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from fastdiff.errors import InputError
from fastdiff.samplers.dpm_multistep import multistep_orders
from fastdiff.samplers.exponential import Form, interpolating, leg
from fastdiff.samplers.lambda_path import PathRules, lambda_path
from fastdiff.samplers.moves import Move
from fastdiff.samplers.part import growing
from fastdiff.samplers.path import Point
from fastdiff.samplers.prediction import Prediction
from fastdiff.samplers.sampler import Sampler
from fastdiff.samplers.schedule import NoiseSchedule
from fastdiff.samplers.table import StepTable

__all__ = ["SAMPLERS", "log_rho_ab", "rho_ab"]

RULES = PathRules(clips_lambda=False, final=None, ends_at_schedule=False)
# Like diffusers, reads the solver and algorithm types of other multistep solvers as its own.
SOLVER_TYPES = ("logrho", "rhoab", "midpoint", "heun", "bh1", "bh2")
ALGORITHM_TYPES = ("deis", "dpmsolver", "dpmsolver++")


def log_rho_ab(points: Sequence[Point], orders: Sequence[int]) -> list[Move]:
    """x_t = (α_t/α_s)·x_s + α_t·∫ ε dρ, Eq. 14 and 15 of the paper, with ε a polynomial in log ρ = −λ.

    ρ = σ/α. The polynomial of step i goes through the last ``orders[i]`` evaluations.
    """
    moves = []
    for i, order in enumerate(orders):
        step = leg(points[i], points[i + 1], Form.NOISE)
        nodes = [points[i - k].log_snr - points[i].log_snr for k in range(order)]
        estimates = {i - k: step.scale * coef for k, coef in enumerate(interpolating(step, nodes))}
        moves.append(Move({i: step.carry}, estimates))
    return moves


def rho_ab(points: Sequence[Point], orders: Sequence[int]) -> list[Move]:
    """The same with ε a polynomial in ρ: ρAB-DEIS, Adams and Bashforth's method in ρ."""
    moves = []
    for i, order in enumerate(orders):
        s, t = points[i], points[i + 1]
        nodes = [points[i - k].ratio - s.ratio for k in range(order)]
        wanted = [(t.ratio - s.ratio) ** (k + 1) / (k + 1) for k in range(order)]
        coefs = np.linalg.solve(np.vander(nodes, increasing=True).T, wanted)
        moves.append(
            Move({i: t.alpha / s.alpha}, {i - k: t.alpha * float(coef) for k, coef in enumerate(coefs)})
        )
    return moves


def _table(schedule: NoiseSchedule, steps: int) -> StepTable:
    """Reads solver_order, solver_type, algorithm_type, lower_order_final and what `lambda_path` reads, with
    the defaults of diffusers' DEISMultistepScheduler. solver_type "rhoab" is an addition.
    """
    settings = schedule.settings("deis")
    order = settings.integer("solver_order", 2, minimum=1)
    if order > 3:
        raise InputError(f"solver_order is {order}, but sampler 'deis' wants 1 to 3; use 2 or 3")
    in_rho = settings.choice("solver_type", "logrho", SOLVER_TYPES) == "rhoab"
    settings.choice("algorithm_type", "deis", ALGORITHM_TYPES)
    falls = settings.flag("lower_order_final", True)
    path = lambda_path(schedule, settings, steps, RULES)
    orders = multistep_orders(path.total, order, lower_order_final=falls, euler_at_final=False)
    orders = growing(orders, path.begin)
    if schedule.prediction is Prediction.FLOW and not settings.flag("use_flow_sigmas", False):
        raise InputError(
            "sampler 'deis' wants use_flow_sigmas=True for prediction_type='flow_prediction'; set it to true"
        )
    if schedule.prediction is Prediction.V:  # ε from x₀, which on a flow's path is not v's own
        path = replace(path, points=tuple(replace(point, denoised=point.x0) for point in path.points))
    moves = rho_ab(path.points, orders) if in_rho else log_rho_ab(path.points, orders)
    return path.table("deis", moves, Form.NOISE)


SAMPLERS = (
    Sampler(
        "deis",
        _table,
        order=2,
        evaluations=1,
        stochastic=False,
        paper="Zhang and Chen, Fast Sampling of Diffusion Models with Exponential Integrator",
        classes=("DEISMultistepScheduler",),
    ),
)
