"""Folded guidance equals what is computed step by step, on random tables of every process."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastdiff.samplers import (
    Guidance,
    Point,
    Prediction,
    Step,
    StepTable,
    make_table,
    step_at,
)
from fastdiff.samplers.guidance import (
    CFG,
    SHAPES,
    CFGPlusPlus,
    Interval,
    Schedule,
)
from tests.compare import assert_close
from tests.samplers.guidances import SCHEDULE, TABLES, denoise
from tests.samplers.guided import guided_run


def levels(draw: st.DrawFn, count: int, kind: str) -> list[Point]:
    """Points that go down in noise, of one process and prediction."""
    prediction = draw(st.sampled_from(list(Prediction)))
    ratio, ratios = draw(st.floats(0.5, 50)), []
    for _ in range(count):
        ratios.append(ratio)
        ratio /= draw(st.floats(1.01, 5))
    points = []
    for t, ratio in enumerate(ratios):
        if kind == "vp":
            alpha, scale = 1 / math.hypot(1, ratio), 1.0
        elif kind == "flow":
            alpha, scale = 1 / (1 + ratio), 1.0
        else:
            alpha, scale = 1.0, 1 / math.hypot(1, ratio)
        points.append(Point(float(t), alpha, alpha * ratio, prediction, scale))
    return points


@st.composite
def first_order_tables(draw: st.DrawFn) -> StepTable:
    """A·x₀ + B·ε with noise, for any process: DDIM with η, ancestral steps and the like."""
    points = levels(draw, draw(st.integers(2, 6)), draw(st.sampled_from(["vp", "flow", "ve"])))
    rows = []
    for point, following in pairwise(points):
        churn = draw(st.floats(0, 0.5))
        kept = math.sqrt(1 - churn**2) * following.sigma
        update = following.alpha * point.x0 + kept * point.epsilon
        rows.append(step_at(point, update, noise_coef=churn * following.sigma or None))
    return StepTable("random", tuple(rows))


@settings(max_examples=60, deadline=None)
@given(first_order_tables(), st.floats(0, 3), st.integers(0, 2**32 - 1))
def test_folded_cfg_pp_is_the_unfolded(table: StepTable, scale: float, seed: int) -> None:
    """x' = A·x₀(guided) + B·ε(uncond), evaluated as it is written, for outputs of any kind."""
    rng = np.random.default_rng(seed)
    outputs = rng.standard_normal((len(table.steps), 2, 7))
    noises = rng.standard_normal((len(table.steps), 7))
    start = rng.standard_normal(7)
    calls, draws = iter(outputs), iter(noises)

    def given_outputs(x: np.ndarray, timestep: float, guided: int) -> tuple[np.ndarray, ...]:
        return tuple(next(calls))

    run = guided_run(table, Guidance(scale, CFGPlusPlus()), given_outputs, start, lambda: next(draws))
    draws_again = iter(noises)
    x = start
    next(run)
    for (_, found), step, (cond, uncond) in zip(run, table.steps, outputs, strict=True):
        x0, epsilon = step.point.x0, step.point.epsilon
        (a, b), *_ = np.linalg.lstsq(
            np.array([[x0.sample, epsilon.sample], [x0.output, epsilon.output]]),
            np.array([step.update.sample, step.update.output]),
            rcond=None,
        )
        guided = uncond + scale * (cond - uncond)
        clean = x0.sample * x + x0.output * guided
        noise = epsilon.sample * x + epsilon.output * uncond
        x = a * clean + b * noise
        if step.noise_coef is not None:
            x = x + step.noise_coef * next(draws_again)
        size = np.abs(a * clean).max() + np.abs(b * noise).max() + 1
        assert np.abs(found - x).max() <= 1e-8 * size
        x = found


@st.composite
def any_tables(draw: st.DrawFn) -> StepTable:
    """Rows with history, clipping and saves, whatever they mean."""
    number = st.floats(-1.2, 1.2)
    points = levels(draw, draw(st.integers(2, 6)), "vp")
    table = draw(st.sampled_from(list(TABLES.values())))
    rows = [
        replace(
            step,
            update=replace(step.update, output=draw(number)),
            noise_coef=draw(st.none() | number),
            point=points[index % len(points)],
        )
        for index, step in enumerate(table.steps[:6])
    ]
    return replace(table, steps=tuple(rows))


@settings(max_examples=40, deadline=None)
@given(
    any_tables(),
    st.floats(-2, 9),
    st.sampled_from(sorted(SHAPES)),
    st.booleans(),
    st.none() | st.tuples(st.floats(0, 1), st.floats(0, 1)),
)
def test_folding_equals_combining(
    table: StepTable, scale: float, shape: str, original: bool, share: tuple[float, float] | None
) -> None:
    """Linear guidance as a scale per row, and the same computed from the outputs step by step."""
    interval = None if share is None else Interval(min(share), max(share), "share")
    guidance = Guidance(scale, CFG(), Schedule(shape), interval, original=original)
    x = np.random.default_rng(0).standard_normal((1, 6))

    def combine(sample: np.ndarray, timestep: float, guided: int) -> tuple[np.ndarray, None]:
        index = next(rows)
        w = guidance.schedule.scales(scale, len(table.steps))[index] + original
        cond, uncond = denoise(sample, timestep, 1)[:2]
        count = len(table.steps)
        inside = interval is None or int(interval.low * count) <= index < int(interval.high * count)
        return (uncond + w * (cond - uncond) if inside else cond), None

    rows = iter(range(len(table.steps)))
    folded = [y for _, y in guided_run(table, guidance, denoise, x, lambda: np.ones(6))]
    wanted = [y for _, y in guided_run(table, 1.0, combine, x, lambda: np.ones(6))]
    assert_close(np.array(folded), np.array(wanted), rel_l2=1e-9)


def test_methods_know_their_step() -> None:
    """The scale of CFG++ grows with the number of steps: each one undoes less of the guidance."""
    for steps in (10, 20, 40):
        table, _ = Guidance(0.6, CFGPlusPlus()).fold(make_table("ddim", SCHEDULE, steps))
        first: Step = table.steps[0]
        assert first.point is not None
        following = table.steps[1].point
        assert following is not None
        wanted = 0.6 * first.point.ratio / (first.point.ratio - following.ratio)
        assert first.guidance == pytest.approx(wanted, rel=1e-9)
