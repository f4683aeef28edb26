"""UniPC: Zhao et al., "UniPC: A Unified Predictor-Corrector Framework for Fast Sampling of Diffusion
Models".
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence

import numpy as np

from fastdiff.errors import InputError
from fastdiff.samplers.exponential import Form, Leg, leg
from fastdiff.samplers.lambda_path import PathRules, lambda_path
from fastdiff.samplers.moves import Move
from fastdiff.samplers.path import Point
from fastdiff.samplers.sampler import Sampler
from fastdiff.samplers.schedule import NoiseSchedule
from fastdiff.samplers.table import StepTable

__all__ = ["SAMPLERS", "unipc"]

RULES = PathRules(clips_lambda=False, zero_terminal_snr=True, ends_at_schedule=False, flow_from_one=True)
# Like diffusers, reads the solver types of other multistep solvers as "bh2".
SOLVER_TYPES = ("bh2", "bh1", "midpoint", "heun", "logrho")
MOST = 6
"""The highest order: a corrector of order p has p earlier estimates and its own, and kernels take 8 terms."""


def unipc(
    points: Sequence[Point],
    orders: Sequence[int],
    form: Form,
    *,
    bh1: bool = False,
    uncorrected: Collection[int] = (),
) -> list[Move]:
    """Algorithms 1 and 2 of the paper: UniP-p, then UniC-p once the model has seen the prediction.

    The corrector moves the sample that the model has seen by estimates alone, as predictor and corrector
    carry the sample alike; so it becomes part of the next predictor. Steps in ``uncorrected`` have none.
    """
    moves = []
    correction: dict[int, float] = {}
    for i, order in enumerate(orders):
        step = leg(points[i], points[i + 1], form)
        if step.h == 0:
            order = 1
        ratios = [(points[i - k].log_snr - points[i].log_snr) / step.h for k in range(1, order)]
        base = step.scale * (step.z if bh1 else step.w(0))  # B(h)
        predicted = [0.5] if order == 2 else _weights(step, ratios, base)
        estimates = {j: step.carry * coef for j, coef in correction.items()}
        estimates[i] = estimates.get(i, 0.0) + step.scale * step.w(0)
        _add(estimates, i, base, predicted, ratios)
        carried = step.carry if correction else 0.0
        moves.append(Move({i: step.carry}, estimates, carried=carried))

        correction = {}
        if i not in uncorrected and i + 1 < len(orders):
            corrected = [0.5] if order == 1 else _weights(step, [*ratios, 1.0], base)
            change = [c - p for c, p in zip(corrected, [*predicted, 0.0], strict=True)]
            _add(correction, i, base, change[:-1], ratios)
            correction[i + 1] = base * change[-1]
            correction[i] = correction.get(i, 0.0) - correction[i + 1]
    return moves


def _weights(step: Leg, ratios: Sequence[float], base: float) -> list[float]:
    """ρ with R·ρ·B(h) = φ, Theorem 3.1 of the paper, in the prediction that ``step`` integrates."""
    if not ratios:
        return []
    powers = np.vander(ratios, increasing=True).T
    moments = [step.scale * step.w(k) * math.factorial(k) / base for k in range(1, len(ratios) + 1)]
    return [float(rho) for rho in np.linalg.solve(powers, moments)]


def _add(
    estimates: dict[int, float], i: int, base: float, weights: Sequence[float], ratios: Sequence[float]
) -> None:
    """B(h)·Σₖ ρₖ·(dᵢ₋ₖ − dᵢ)/rₖ."""
    for k, (weight, ratio) in enumerate(zip(weights, ratios, strict=True), start=1):
        coef = base * weight / ratio
        estimates[i - k] = estimates.get(i - k, 0.0) + coef
        estimates[i] = estimates.get(i, 0.0) - coef


def _table(schedule: NoiseSchedule, steps: int) -> StepTable:
    """Reads solver_order, solver_type, predict_x0, lower_order_final, disable_corrector, solver_p and what
    `lambda_path` reads, with the defaults of diffusers' UniPCMultistepScheduler.

    solver_p, another scheduler as predictor, is refused, and so is thresholding without predict_x0, which
    diffusers takes no notice of. Where diffusers computes 0·∞ or 0/0, the limit is taken: "bh1" up to σ = 0,
    and a last step of length 0.
    """
    settings = schedule.settings("unipc")
    order = settings.integer("solver_order", 2, minimum=1)
    if order > MOST:
        raise InputError(f"solver_order is {order}, but sampler 'unipc' wants 1 to {MOST}; use 2 or 3")
    bh1 = settings.choice("solver_type", "bh2", SOLVER_TYPES) == "bh1"
    form = Form.DATA if settings.flag("predict_x0", True) else Form.NOISE
    settings.refuse("solver_p", None, "remove it")
    uncorrected: Sequence[int] = settings.integers("disable_corrector")
    falls = settings.flag("lower_order_final", True)
    path = lambda_path(schedule, settings, steps, RULES)
    if path.threshold is not None and form is Form.NOISE:
        raise InputError(
            "thresholding is true and predict_x0 false, but sampler 'unipc' thresholds x0 alone; change one"
        )
    count = path.steps
    if path.ends_without_noise and (form is Form.NOISE or (order > 1 and count > 1 and not falls)):
        raise InputError(
            "sampler 'unipc' ends at final_sigmas_type='zero' only with predict_x0 and lower_order_final; "
            "set final_sigmas_type to 'sigma_min'"
        )
    uncorrected = [i - path.begin for i in uncorrected]
    orders = [min(order, i + 1, count - i if falls else order) for i in range(count)]
    return path.table("unipc", unipc(path.points, orders, form, bh1=bh1, uncorrected=uncorrected), form)


SAMPLERS = (
    Sampler(
        "unipc",
        _table,
        order=3,
        evaluations=1,
        stochastic=False,
        paper="Zhao et al., UniPC: A Unified Predictor-Corrector Framework for Fast Sampling of Diffusion "
        "Models",
        classes=("UniPCMultistepScheduler",),
    ),
)
