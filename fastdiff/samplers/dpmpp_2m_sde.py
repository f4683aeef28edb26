"""DPM-Solver++(2M) and (3M) for the SDE, k-diffusion's sample_dpmpp_2m_sde and sample_dpmpp_3m_sde."""

from __future__ import annotations

from fastdiff.samplers.multistep_sde import multistep_sde
from fastdiff.samplers.noise_options import not_negative
from fastdiff.samplers.sampler import Sampler
from fastdiff.samplers.schedule import NoiseSchedule
from fastdiff.samplers.sigma_path import sigma_path
from fastdiff.samplers.table import StepTable
from fastdiff.samplers.x0_step import clipping

__all__ = ["SAMPLERS", "dpmpp_2m_sde", "dpmpp_3m_sde"]


def dpmpp_2m_sde(schedule: NoiseSchedule, steps: int) -> StepTable:
    """Two predictions per step, with solver_type "midpoint" or "heun".

    Reads what `sigma_path` and `clipping` read, eta (1; 0 is DPM-Solver++(2M)) and s_noise (1). With η = 1
    it is the "sde-dpmsolver++" of diffusers' classes, which differ in the order of the last steps.
    """
    heun = schedule.settings("dpmpp_2m_sde").choice("solver_type", "midpoint", ("midpoint", "heun")) == "heun"
    return _table("dpmpp_2m_sde", schedule, steps, 2, midpoint=not heun)


def dpmpp_3m_sde(schedule: NoiseSchedule, steps: int) -> StepTable:
    """Three predictions per step. Reads what `sigma_path` and `clipping` read, eta (1) and s_noise (1)."""
    return _table("dpmpp_3m_sde", schedule, steps, 3, midpoint=False)


def _table(name: str, schedule: NoiseSchedule, steps: int, order: int, *, midpoint: bool) -> StepTable:
    settings = schedule.settings(name)
    path = sigma_path(schedule, settings, steps)
    eta, s_noise = not_negative(settings, "eta", 1.0), not_negative(settings, "s_noise", 1.0)
    rows = multistep_sde(
        path.points, [order] * steps, eta, s_noise, midpoint=midpoint, clip=clipping(settings)
    )
    return StepTable(name, tuple(rows), path.init_noise_sigma, slots=order - 1)


SAMPLERS = (
    Sampler(
        "dpmpp_2m_sde",
        dpmpp_2m_sde,
        order=2,
        evaluations=1,
        stochastic=True,
        paper="Lu et al., DPM-Solver++: Fast Solver for Guided Sampling of Diffusion Probabilistic Models",
    ),
    Sampler(
        "dpmpp_3m_sde",
        dpmpp_3m_sde,
        order=2,
        evaluations=1,
        stochastic=True,
        paper="Lu et al., DPM-Solver++; Crowson, k-diffusion",
    ),
)
