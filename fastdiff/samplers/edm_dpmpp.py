"""DPM-Solver++ for denoisers that are preconditioned as in Karras et al., of two diffusers classes."""

from __future__ import annotations

from fastdiff.errors import InputError
from fastdiff.samplers.clipping import NO_CLIPPING, Clipping, read_clipping
from fastdiff.samplers.dpm_multistep import exact_third_order
from fastdiff.samplers.edm_path import EDM, STABLE_AUDIO, Family
from fastdiff.samplers.multistep_sde import multistep_sde
from fastdiff.samplers.sampler import Sampler
from fastdiff.samplers.schedule import NoiseSchedule
from fastdiff.samplers.settings import Settings
from fastdiff.samplers.sigma_path import sigma_path
from fastdiff.samplers.table import StepTable

__all__ = ["SAMPLERS"]

PAPER = "Lu et al., DPM-Solver++: Fast Solver for Guided Sampling of Diffusion Probabilistic Models"
# Like diffusers, reads the names of other multistep solvers as these, so that their configs work.
ALGORITHMS = {"dpmsolver++": 0.0, "deis": 0.0, "sde-dpmsolver++": 1.0}
MIDPOINTS = {"midpoint": True, "heun": False, "logrho": True, "bh1": True, "bh2": True}


def edm_dpmpp(schedule: NoiseSchedule, steps: int) -> StepTable:
    """Orders 1 to 3 for the ODE, 1 and 2 for the SDE, of diffusers' EDMDPMSolverMultistepScheduler.

    Reads sigma_min (0.002), sigma_max (80), sigma_data (0.5), sigma_schedule ("karras"), rho (7),
    prediction_type, final_sigmas_type, sigmas, solver_order (2), algorithm_type, solver_type,
    lower_order_final (True), euler_at_final, exact_third_order and what `read_clipping` reads.
    """
    settings = schedule.settings("edm_dpmpp")
    eta = ALGORITHMS[settings.choice("algorithm_type", "dpmsolver++", tuple(ALGORITHMS))]
    clip = read_clipping(settings)
    return _table("edm_dpmpp", schedule, settings, steps, EDM, eta, clip)


def cosine_dpmpp_sde(schedule: NoiseSchedule, steps: int) -> StepTable:
    """Orders 1 and 2 for the SDE, of diffusers' CosineDPMSolverMultistepScheduler, for Stable Audio.

    Reads what `edm_dpmpp` reads but algorithm_type and thresholding; the defaults are sigma_min 0.3,
    sigma_max 500, sigma_data 1, "exponential" and v-prediction.
    """
    settings = schedule.settings("cosine_dpmpp_sde")
    return _table("cosine_dpmpp_sde", schedule, settings, steps, STABLE_AUDIO, 1.0, NO_CLIPPING)


def _table(
    name: str,
    schedule: NoiseSchedule,
    settings: Settings,
    steps: int,
    family: Family,
    eta: float,
    clip: Clipping,
) -> StepTable:
    path = sigma_path(schedule, settings, steps, edm=family)
    order = settings.integer("solver_order", 2, minimum=1)
    most = 2 if eta else 3
    if order > most:
        raise InputError(
            f"sampler {name!r} does not support solver_order={order} with its algorithm; use 1 to {most}"
        )
    few = settings.flag("lower_order_final", True) and steps < 15
    to_zero = path.points[-1].sigma == 0
    orders = [order] * steps
    if few and steps > 1:
        orders[-2] = min(order, 2)
    if settings.flag("euler_at_final", False) or few or to_zero:
        orders[-1] = 1
    exact = exact_third_order(settings, order)
    midpoint = MIDPOINTS[settings.choice("solver_type", "midpoint", tuple(MIDPOINTS))]
    rows = multistep_sde(
        path.points,
        orders[path.begin :],
        eta,
        midpoint=midpoint,
        exact=exact,
        last_noise=0.0 if eta else None,
        clip=clip,
    )
    return StepTable(name, tuple(rows), path.init_noise_sigma, slots=max(orders) - 1)


SAMPLERS = (
    Sampler(
        "edm_dpmpp",
        edm_dpmpp,
        order=2,
        evaluations=1,
        stochastic=False,
        paper=PAPER,
        classes=("EDMDPMSolverMultistepScheduler",),
        any_steps=True,
    ),
    Sampler(
        "cosine_dpmpp_sde",
        cosine_dpmpp_sde,
        order=2,
        evaluations=1,
        stochastic=True,
        paper=PAPER,
        classes=("CosineDPMSolverMultistepScheduler",),
        any_steps=True,
    ),
)
