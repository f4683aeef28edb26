"""Inversion by DPM-Solver: from a picture to the noise that it comes from.

The solvers of `dpm_multistep` run towards more noise. Wallace et al., "EDICT", and Mokady et al., "Null-text
Inversion", say what inversion is for.
"""

from __future__ import annotations

from functools import partial

import numpy as np

from fastdiff.samplers.dpm_multistep import (
    ALGORITHM_TYPES,
    ORDERS,
    PAPERS,
    dpm_multistep,
    multistep_orders,
    solver_options,
)
from fastdiff.samplers.exponential import Form
from fastdiff.samplers.lambda_path import LambdaPath, chain_timesteps, clipped_span, read_path
from fastdiff.samplers.placement import placed_sigmas, sigma_spacing
from fastdiff.samplers.sampler import Sampler
from fastdiff.samplers.schedule import NoiseSchedule
from fastdiff.samplers.settings import Settings
from fastdiff.samplers.spacing import sigma_to_timestep
from fastdiff.samplers.table import StepTable

__all__ = ["SAMPLERS"]


def _path(schedule: NoiseSchedule, settings: Settings, steps: int) -> LambdaPath:
    """From the lowest level to the highest, or, where levels are placed, to the last of them once more.

    As in diffusers, timesteps that rounding makes equal are dropped, but not their levels: each later level
    then goes with a timestep that is too high and the last levels are not visited. A flow's levels are
    refused: diffusers lets them fall there too, which is no inversion.
    """
    settings.refuse("use_flow_sigmas", False, "set it to false: there is no inversion of flows")
    settings.unused("flow_shift")
    for key in ("sigma_min", "sigma_max"):
        settings.refuse(key, None, "remove it")
    train_steps, train_sigmas = schedule.num_train_timesteps, schedule.sigmas()
    spacing = sigma_spacing(settings)
    if spacing is not None:
        low, high = float(train_sigmas[0]), float(train_sigmas[-1])
        levels = placed_sigmas(settings, spacing, low, high, steps)[::-1]
        last = levels[-1]
        timesteps = sigma_to_timestep(levels, train_sigmas)
        timesteps = timesteps if spacing in ("exponential", "beta") else timesteps.round()
    else:
        span = clipped_span(settings, train_sigmas)
        timesteps = chain_timesteps(settings, train_steps, steps, span, rising=True)
        levels = np.interp(timesteps, np.arange(train_steps), train_sigmas)
        last = float(train_sigmas[span - 1])
    timesteps = np.trunc(np.unique(timesteps))
    return read_path(schedule, settings, timesteps, np.append(levels, last)[: len(timesteps) + 1], flow=False)


def _table(name: str, form: Form, order: int, schedule: NoiseSchedule, steps: int) -> StepTable:
    """Reads timestep_spacing, steps_offset, lambda_min_clipped, the spacings of levels, lower_order_final,
    euler_at_final and what `solver_options` and `read_path` read, with the defaults of diffusers'
    DPMSolverMultistepInverseScheduler.

    That class's stochastic forms give NaN, as no noise makes up for a level that rises, and are not here.
    """
    settings = schedule.settings(name)
    options = solver_options(settings, order, sde=False)
    path = _path(schedule, settings, steps)
    orders = multistep_orders(
        path.steps,
        order,
        lower_order_final=settings.flag("lower_order_final", True),
        euler_at_final=settings.flag("euler_at_final", False),
    )
    return path.table(name, dpm_multistep(path.points, orders, form, **options), form)


def _sampler(name: str, form: Form, order: int) -> Sampler:
    return Sampler(
        name,
        partial(_table, name, form, order),
        order=min(order, 2),
        evaluations=1,
        stochastic=False,
        paper=PAPERS[form],
        classes=("DPMSolverMultistepInverseScheduler",),
        inverse=True,
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
