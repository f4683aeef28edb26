"""From what a multistep solver computes to the rows of a table: which slot keeps what, and how long."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from fastdiff.samplers.exponential import Form
from fastdiff.samplers.path import Point
from fastdiff.samplers.prediction import Linear
from fastdiff.samplers.table import Estimate, Step, Threshold, step_at

__all__ = ["Move", "rows_of"]

Kept = tuple[Literal["sample", "estimate"], int]
RAW_OUTPUT = Linear(0.0, 1.0)


@dataclass(frozen=True)
class Move:
    """One update: x' = Σ samples[j]·xⱼ + Σ estimates[j]·dⱼ + noise·ε.

    j counts evaluations from the first: xⱼ is the sample before evaluation j and dⱼ what it predicted, x₀ or
    ε. ``noise`` None draws none. ``carried`` is that of the row.
    """

    samples: dict[int, float] = field(default_factory=dict)
    estimates: dict[int, float] = field(default_factory=dict)
    noise: float | None = None
    carried: float = 0.0


def rows_of(
    points: Sequence[Point], moves: Sequence[Move], form: Form, threshold: Threshold | None = None
) -> tuple[list[Step], int]:
    """The rows of ``moves``, of which move i follows the evaluation at ``points[i]``, and the slots in use.

    A sample or an estimate is kept from its row to the last that needs it. With a ``threshold`` what is kept
    is the thresholded x₀, and ε is (x − α·x₀)/σ of it.
    """
    if threshold is not None and form is Form.NOISE:
        moves, form = [_from_data(move, points) for move in moves], Form.DATA
    last_use = {key: i for i, move in enumerate(moves) for key in _terms(move)}
    kept: dict[Kept, int] = {}
    free: list[int] = []
    slots = 0
    rows = []
    for i, (point, move) in enumerate(zip(points, moves, strict=False)):
        terms = _terms(move)
        history = tuple((kept[key], coef) for key, coef in terms.items() if key[1] < i)
        free += [kept.pop(key) for key in list(kept) if last_use[key] == i]
        saved: dict[str, int] = {}
        for key in (("sample", i), ("estimate", i)):
            if last_use.get(key, i) > i:
                if not free:
                    free, slots = [slots], slots + 1
                kept[key] = saved[key[0]] = free.pop()
        value = point.x0 if form is Form.DATA else point.epsilon
        weight = move.estimates.get(i, 0.0)
        update = Linear(move.samples.get(i, 0.0), 0.0)
        estimate = None
        if threshold is not None:
            estimate = Estimate(value, weight, threshold=threshold)
        else:
            update = update + weight * value
            if "estimate" in saved and value != RAW_OUTPUT:
                estimate = Estimate(value)
        row = step_at(
            point,
            update,
            history=history,
            noise_coef=move.noise,
            carried=move.carried,
            save_sample=saved.get("sample"),
            save_output=saved.get("estimate"),
            estimate=estimate,
        )
        rows.append(row)
    return rows, slots


def _terms(move: Move) -> dict[Kept, float]:
    terms: dict[Kept, float] = {("sample", j): coef for j, coef in move.samples.items() if coef}
    terms |= {("estimate", j): coef for j, coef in move.estimates.items() if coef}
    return terms


def _from_data(move: Move, points: Sequence[Point]) -> Move:
    """The same move with ε written as (x − α·x₀)/σ."""
    samples, estimates = dict(move.samples), {}
    for j, coef in move.estimates.items():
        samples[j] = samples.get(j, 0.0) + coef / points[j].sigma
        estimates[j] = -coef * points[j].alpha / points[j].sigma
    return Move(samples, estimates, move.noise, move.carried)
