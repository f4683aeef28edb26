"""DPM-Solver++ in several steps, for the ODE and for SDEs with any amount of noise."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

from fastdiff.samplers.clipping import NO_CLIPPING, Clipping
from fastdiff.samplers.dpm_multistep import estimate_weights
from fastdiff.samplers.exponential import Form, leg
from fastdiff.samplers.path import Point
from fastdiff.samplers.table import Step
from fastdiff.samplers.x0_step import x0_step

__all__ = ["multistep_sde"]


def multistep_sde(
    points: Sequence[Point],
    orders: Sequence[int],
    eta: float,
    s_noise: float = 1.0,
    *,
    midpoint: bool = True,
    exact: bool = False,
    last_noise: float | None = None,
    clip: Clipping = NO_CLIPPING,
) -> list[Step]:
    """The steps x' = (σ'/σ)·e^{−ηh}·x + α'·∫ e^{(1+η)(τ−h)}·(1 + η)·D dτ + σ'·√(1 − e^{−2ηh})·z, h = λ' − λ.

    Lu et al., "DPM-Solver++", section 5 and Eq. 14 (η = 0) and 18 (η = 1); η in between is k-diffusion's. D
    is a polynomial in λ through the latest predictions, as many as ``orders`` says for each step, up to 3 and
    never more than there are. In the second order ``midpoint`` takes half of the first weight for the
    slope instead of its integral. The third weighs the second difference with half of its integral, as the
    authors, diffusers and k-diffusion do, so that the error is of second order; ``exact`` takes all of it.
    The step to σ = 0 is D; ``last_noise`` is its noise, 0 where noise is drawn and not used.
    """
    rows: list[Step] = []
    keep = max(orders) - 1  # slots; the prediction of row i is in slot i modulo their number
    for i, (here, there) in enumerate(pairwise(points)):
        save = i % keep if keep else None
        if there.sigma == 0:
            rows.append(x0_step(here, 0.0, there.alpha, clip, noise_coef=last_noise))
            continue
        step = leg(here, there, Form.DATA, math.sqrt(eta))
        order = min(orders[i], i + 1) if step.h else 1
        newest, *older = estimate_weights(step, points[: i + 1], order, heun=not midpoint, exact=exact)
        rows.append(
            x0_step(
                here,
                step.carry,
                newest,
                clip,
                save=save,
                history=tuple(((i - 1 - j) % keep, weight) for j, weight in enumerate(older)),
                noise_coef=step.noise * s_noise if eta else None,
            )
        )
    return rows
