"""SA-Solver: Xue et al., "SA-Solver: Stochastic Adams Solver for Fast Sampling of Diffusion Models"."""

from __future__ import annotations

from collections.abc import Sequence

from fastdiff.errors import InputError
from fastdiff.samplers.exponential import Form, Leg, interpolating, leg
from fastdiff.samplers.lambda_path import PathRules, lambda_path
from fastdiff.samplers.moves import Move
from fastdiff.samplers.noise_options import not_negative
from fastdiff.samplers.path import Point
from fastdiff.samplers.sampler import Sampler
from fastdiff.samplers.schedule import NoiseSchedule
from fastdiff.samplers.table import StepTable

__all__ = ["SAMPLERS", "sa_solver"]

RULES = PathRules(final=None, ends_at_schedule=False)
ALGORITHM_TYPES = ("data_prediction", "noise_prediction")
MOST = 4


def sa_solver(
    points: Sequence[Point],
    predictor: Sequence[int],
    corrector: Sequence[int],
    tau: Sequence[float],
    form: Form,
    *,
    plain_second_order: bool = False,
) -> list[Move]:
    """Algorithm 1 of the paper: an exponential Adams-Bashforth predictor and an Adams-Moulton corrector.

    Step i has the orders ``predictor[i]`` and ``corrector[i]`` (0 is none) and the noise τ = ``tau[i]``,
    which both share; so the corrector moves the sample that the model has seen by estimates alone and
    becomes part of the next step. In x₀, order 2 replaces the integral of λ by (1 + τ²)·h²/2, as the
    authors' code and diffusers do, unless ``plain_second_order``.
    """
    moves = []
    correction: dict[int, float] = {}
    for i, order in enumerate(predictor):
        step = leg(points[i], points[i + 1], form, tau[i])
        half = form is Form.DATA and not plain_second_order
        predicted = _adams(step, points, i, i, order, half)
        estimates = {j: step.carry * coef for j, coef in correction.items()}
        _add(estimates, predicted, 1.0)
        carried = step.carry if correction else 0.0
        moves.append(Move({i: step.carry}, estimates, step.noise, carried))

        correction = {}
        if corrector[i] and i + 1 < len(predictor):
            _add(correction, _adams(step, points, i, i + 1, corrector[i], half), 1.0)
            _add(correction, predicted, -1.0)
    return moves


def _adams(
    step: Leg, points: Sequence[Point], start: int, newest: int, order: int, half: bool
) -> dict[int, float]:
    """Weights of the last ``order`` estimates up to ``newest`` over the step from ``points[start]``."""
    nodes = [points[newest - k].log_snr - points[start].log_snr for k in range(order)]
    if order == 2 and half:
        # (1 + τ²)·h²/2 times the slope through both, around the estimate at the start.
        base, slope = step.scale * step.w(0), step.scale * step.z * step.h / 2 / (nodes[0] - nodes[1])
        weights = {newest: slope, newest - 1: -slope}
        weights[start] += base
        return weights
    return {newest - k: step.scale * coef for k, coef in enumerate(interpolating(step, nodes))}


def _add(total: dict[int, float], terms: dict[int, float], factor: float) -> None:
    for j, coef in terms.items():
        total[j] = total.get(j, 0.0) + factor * coef


def _table(schedule: NoiseSchedule, steps: int) -> StepTable:
    """Reads predictor_order, corrector_order, algorithm_type, lower_order_final and what `lambda_path` reads,
    with the defaults of diffusers' SASolverScheduler, whose tau_func is here ``tau`` (1) from timestep
    ``tau_first`` (800) to ``tau_last`` (200) and 0 elsewhere.

    As there, noise is drawn in every step and not used where τ = 0. diffusers fails on a variance_type and
    on thresholding with algorithm_type "noise_prediction"; here they work as in DPM-Solver.
    """
    settings = schedule.settings("sa_solver")
    settings.refuse("tau_func", None, "remove it and use tau, tau_first and tau_last")
    predicts = settings.integer("predictor_order", 2, minimum=1)
    corrects = settings.integer("corrector_order", 2, minimum=0)
    if max(predicts, corrects) > MOST:
        raise InputError(
            f"predictor_order is {predicts} and corrector_order {corrects}, but sampler 'sa_solver' wants at "
            f"most {MOST}; use 2 or 3"
        )
    form = Form.DATA
    if settings.choice("algorithm_type", "data_prediction", ALGORITHM_TYPES) == "noise_prediction":
        form = Form.NOISE
    falls = settings.flag("lower_order_final", True)
    tau = not_negative(settings, "tau", 1.0)
    first, last = settings.number("tau_first", 800.0), settings.number("tau_last", 200.0)
    path = lambda_path(schedule, settings, steps, RULES)
    count = path.steps
    predictor = [min(predicts, i + 1, count - i if falls else predicts) for i in range(count)]
    corrector = [min(corrects, i + 2, count - i + 1 if falls else corrects) for i in range(count)]
    strengths = [tau if last <= point.timestep <= first else 0.0 for point in path.points[:-1]]
    moves = sa_solver(path.points, predictor, corrector, strengths, form)
    return path.table("sa_solver", moves, form)


SAMPLERS = (
    Sampler(
        "sa_solver",
        _table,
        order=2,
        evaluations=1,
        stochastic=True,
        paper="Xue et al., SA-Solver: Stochastic Adams Solver for Fast Sampling of Diffusion Models",
        classes=("SASolverScheduler",),
    ),
)
