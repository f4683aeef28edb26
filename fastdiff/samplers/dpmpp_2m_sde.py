"""DPM-Solver++(2M) and (3M) for the SDE, k-diffusion's sample_dpmpp_2m_sde and sample_dpmpp_3m_sde."""

from __future__ import annotations

from fastdiff.samplers.clipping import read_clipping
from fastdiff.samplers.dpm_multistep import exact_third_order
from fastdiff.samplers.multistep_sde import multistep_sde
from fastdiff.samplers.noise_options import not_negative
from fastdiff.samplers.sampler import Sampler
from fastdiff.samplers.schedule import NoiseSchedule
from fastdiff.samplers.sigma_path import sigma_path
from fastdiff.samplers.table import StepTable

__all__ = ["SAMPLERS", "dpmpp_2m_sde_eta", "dpmpp_3m_sde"]


def dpmpp_2m_sde_eta(schedule: NoiseSchedule, steps: int) -> StepTable:
    """Two predictions per step, with solver_type "midpoint" or "heun".

    Reads what `sigma_path` and `read_clipping` read, eta (1; 0 is DPM-Solver++(2M)) and s_noise (1). Sampler
    "dpmpp_2m_sde" is that of diffusers, with η = 1, other defaults and another order of the last steps.
    """
    settings = schedule.settings("dpmpp_2m_sde_eta")
    midpoint = settings.choice("solver_type", "midpoint", ("midpoint", "heun")) == "midpoint"
    return _table("dpmpp_2m_sde_eta", schedule, steps, 2, midpoint=midpoint)


def dpmpp_3m_sde(schedule: NoiseSchedule, steps: int) -> StepTable:
    """Three predictions per step. Reads what `sigma_path` and `read_clipping` read, eta (1), s_noise (1) and
    exact_third_order, which mends a weight: see `multistep_sde`.
    """
    return _table("dpmpp_3m_sde", schedule, steps, 3, midpoint=False)


def _table(name: str, schedule: NoiseSchedule, steps: int, order: int, *, midpoint: bool) -> StepTable:
    settings = schedule.settings(name)
    path = sigma_path(schedule, settings, steps)
    eta, s_noise = not_negative(settings, "eta", 1.0), not_negative(settings, "s_noise", 1.0)
    rows = multistep_sde(
        path.points,
        [order] * (len(path.points) - 1),
        eta,
        s_noise,
        midpoint=midpoint,
        exact=exact_third_order(settings, order),
        clip=read_clipping(settings),
    )
    return StepTable(name, tuple(rows), path.init_noise_sigma, slots=order - 1)


SAMPLERS = (
    Sampler(
        "dpmpp_2m_sde_eta",
        dpmpp_2m_sde_eta,
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
