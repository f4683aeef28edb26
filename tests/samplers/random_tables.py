"""Tables of random steps for the tests of every loop, as hypothesis strategies."""

from __future__ import annotations

import math

from hypothesis import strategies as st

from fastdiff.samplers import Estimate, Langevin, Linear, Step, StepTable, Threshold, Variance

__all__ = ["tables"]

# Small enough that no term outgrows the others by much: rounding errors stay relative to the largest.
COEFFICIENTS = st.floats(-0.625, 0.625, width=32)
LINEAR = st.builds(Linear, COEFFICIENTS, COEFFICIENTS)


@st.composite
def tables(
    draw: st.DrawFn,
    *,
    slots: int = 4,
    guidances: tuple[float | None, ...] = (None,),
    threshold: bool = False,
    extras: bool = False,
) -> StepTable:
    """Any table whose steps read only slots that earlier steps have filled.

    At most ``slots`` slots; steps with one of ``guidances`` each. ``threshold``: one dynamic threshold in all
    steps, ``extras``: everything that is not linear, anywhere.
    """
    count = draw(st.integers(0, slots))
    stochastic = draw(st.booleans())
    numbers = st.none() | st.integers(0, count - 1) if count else st.none()
    thresholds = st.builds(Threshold, st.floats(0, 1), st.floats(1, 3))
    shared = draw(thresholds) if threshold else None
    variance_channels = extras and draw(st.booleans())
    filled: set[int] = set()
    steps = []
    for _ in range(draw(st.integers(1, 5))):
        estimate = None
        if threshold or draw(st.booleans()):
            limit = math.inf if threshold else draw(st.floats(0.1, 1.0) | st.just(math.inf))
            own = draw(st.none() | thresholds) if extras else shared
            estimate = Estimate(draw(LINEAR), draw(COEFFICIENTS), limit, own)
        langevin = None
        if extras and stochastic and draw(st.booleans()):
            # The score keeps away from 0, which its norm divides by.
            estimate = Estimate(Linear(0.5, 0.25), draw(COEFFICIENTS))
            langevin = Langevin(draw(st.floats(0.01, 0.1)), draw(st.floats(0.5, 1)), draw(st.booleans()))
        variance = None
        if variance_channels and draw(st.booleans()):
            variance = Variance(draw(st.floats(-3, -1)), draw(st.floats(-1, 0)))
        step = Step(
            timestep=draw(st.floats(0, 999, width=32)),
            update=draw(LINEAR),
            input_scale=draw(st.sampled_from([1.0, 0.3, 1.7])),
            history=tuple((slot, draw(COEFFICIENTS)) for slot in sorted(filled) if draw(st.booleans())),
            noise_coef=draw(st.none() | st.just(0.0) | COEFFICIENTS) if stochastic else None,
            save_sample=draw(numbers),
            save_output=draw(numbers),
            estimate=estimate,
            guidance=draw(st.sampled_from(guidances)),
            variance=variance,
            langevin=langevin,
        )
        filled |= {slot for slot in (step.save_sample, step.save_output) if slot is not None}
        steps.append(step)
    start_noise = draw(st.none() | st.floats(0, 1, width=32)) if stochastic else None
    return StepTable(
        "random",
        tuple(steps),
        slots=count,
        start_noise=start_noise,
        variance_channels=variance_channels,
    )
