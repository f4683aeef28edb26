"""Inversion by DPM-Solver: from a picture to the noise that it comes from.

The solvers of `dpm_multistep` run towards more noise. Wallace et al., "EDICT", and Mokady et al., "Null-text
Inversion", say what inversion is for.
"""

from __future__ import annotations

import math
from functools import partial

import numpy as np

from fastdiff.errors import InputError
from fastdiff.samplers.dpm_multistep import (
    ALGORITHM_TYPES,
    ORDERS,
    PAPERS,
    SOLVER_TYPES,
    dpm_multistep,
    exact_third_order,
    multistep_orders,
)
from fastdiff.samplers.exponential import Form
from fastdiff.samplers.lambda_path import Float64, LambdaPath, read_path
from fastdiff.samplers.placement import placed_sigmas, sigma_spacing
from fastdiff.samplers.sampler import Sampler
from fastdiff.samplers.schedule import NoiseSchedule
from fastdiff.samplers.settings import Settings
from fastdiff.samplers.spacing import SPACINGS, sigma_to_timestep, spaced_timesteps
from fastdiff.samplers.table import StepTable

__all__ = ["SAMPLERS"]


def _path(schedule: NoiseSchedule, settings: Settings, steps: int) -> LambdaPath:
    """From the lowest level to the highest, or, where levels are placed, to the last of them once more.

    As in diffusers, timesteps that rounding makes equal are dropped, but not their levels: each later level
    then goes with a timestep that is too high and the last levels are not visited. A flow's levels are
    refused: diffusers lets them fall there too, which is no inversion.
    """
    settings.refuse("use_flow_sigmas", False, "set it to false: there is no inversion of flows")
    for key in ("sigma_min", "sigma_max"):
        settings.refuse(key, None, "remove it")
    train_steps = schedule.num_train_timesteps
    train_sigmas = schedule.sigmas()
    clip = settings.number("lambda_min_clipped", -math.inf)
    span = train_steps - int(np.searchsorted(-np.log(train_sigmas)[::-1], clip))
    if span < 1:
        raise InputError(f"lambda_min_clipped is {clip:g}, which skips all timesteps; use a lower value")
    spacing = settings.choice("timestep_spacing", "linspace", SPACINGS)
    offset = settings.integer("steps_offset", 0, minimum=0)
    placement = sigma_spacing(settings)
    if placement is not None:
        low, high = float(train_sigmas[0]), float(train_sigmas[-1])
        levels = placed_sigmas(settings, placement, low, high, steps)[::-1]
        timesteps = sigma_to_timestep(levels, train_sigmas)
        timesteps = timesteps if placement in ("exponential", "beta") else timesteps.round()
        last = levels[-1]
    else:
        if spacing == "trailing":
            timesteps = spaced_timesteps(spacing, train_steps, steps, offset, span=span)[::-1]
        elif steps < span:
            timesteps = _rising(spacing, span, steps, offset, train_steps)
        else:
            raise InputError(
                f"steps is {steps}, but {settings.reader} with timestep_spacing={spacing!r} wants at most "
                f"{span - 1} for this noise schedule; use fewer steps"
            )
        levels = np.interp(timesteps, np.arange(train_steps), train_sigmas)
        last = float(train_sigmas[span - 1])
    timesteps = np.trunc(np.unique(timesteps))
    levels = np.append(levels, last)[: len(timesteps) + 1]
    return read_path(schedule, settings, timesteps, levels, flow=False)


def _rising(spacing: str, span: int, steps: int, offset: int, train_steps: int) -> Float64:
    return spaced_timesteps(spacing, train_steps, steps + 1, offset, span=span).round()[:0:-1]


def _table(name: str, form: Form, order: int, schedule: NoiseSchedule, steps: int) -> StepTable:
    """Reads what the keys of `dpm_multistep` are in diffusers' DPMSolverMultistepInverseScheduler, with its
    defaults. Its stochastic forms give NaN, as no noise makes up for a level that rises, and are not here.
    """
    settings = schedule.settings(name)
    heun = settings.choice("solver_type", "midpoint", SOLVER_TYPES) == "heun"
    path = _path(schedule, settings, steps)
    orders = multistep_orders(
        path.steps,
        order,
        lower_order_final=settings.flag("lower_order_final", True),
        euler_at_final=settings.flag("euler_at_final", False),
    )
    exact = exact_third_order(settings, order)
    return path.table(name, dpm_multistep(path.points, orders, form, heun=heun, exact=exact), form)


def _sampler(name: str, form: Form, order: int) -> Sampler:
    return Sampler(
        name,
        partial(_table, name, form, order),
        order=min(order, 2),
        evaluations=1,
        stochastic=False,
        paper=PAPERS[form],
        classes=("DPMSolverMultistepInverseScheduler",),
        when={"solver_order": ORDERS[order], "algorithm_type": ALGORITHM_TYPES[form, False]},
    )


SAMPLERS = (
    _sampler("dpmpp_1m_inverse", Form.DATA, 1),
    _sampler("dpmpp_2m_inverse", Form.DATA, 2),
    _sampler("dpmpp_3m_inverse", Form.DATA, 3),
    _sampler("dpm_solver_1m_inverse", Form.NOISE, 1),
    _sampler("dpm_solver_2m_inverse", Form.NOISE, 2),
    _sampler("dpm_solver_3m_inverse", Form.NOISE, 3),
)
