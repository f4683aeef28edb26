"""The samplers of Karras et al., "Elucidating the Design Space of Diffusion-Based Generative Models", for
denoisers with the paper's preconditioning, and diffusers' KarrasVeScheduler.
"""

from __future__ import annotations

from dataclasses import replace

from fastdiff.errors import InputError
from fastdiff.samplers.clipping import read_clipping
from fastdiff.samplers.edm_path import EDM
from fastdiff.samplers.euler import euler_table
from fastdiff.samplers.heun import heun_table
from fastdiff.samplers.noise_options import Churn
from fastdiff.samplers.path import Point
from fastdiff.samplers.prediction import Linear
from fastdiff.samplers.sampler import Sampler
from fastdiff.samplers.schedule import NoiseSchedule
from fastdiff.samplers.sigma_path import SigmaPath, sigma_path
from fastdiff.samplers.table import StepTable

__all__ = ["SAMPLERS"]

PAPER = "Karras et al., Elucidating the Design Space of Diffusion-Based Generative Models"


def edm_euler(schedule: NoiseSchedule, steps: int) -> StepTable:
    """Euler's method for preconditioned denoisers, of diffusers' EDMEulerScheduler.

    Reads sigma_min (0.002), sigma_max (80), sigma_data (0.5), sigma_schedule ("karras"), rho (7),
    prediction_type, final_sigmas_type and sigmas, and what `fastdiff.samplers.euler.euler` reads for churn.
    ``sigmas`` are noise levels: EDMEulerScheduler.set_timesteps takes its argument of that name for places
    between the ends. One step starts at sigma_max, with diffusers' "exponential" at sigma_min.
    """
    settings = schedule.settings("edm_euler")
    return euler_table("edm_euler", schedule, sigma_path(schedule, settings, steps, edm=EDM))


def edm_heun(schedule: NoiseSchedule, steps: int) -> StepTable:
    """Algorithm 1 of the paper, Algorithm 2 where s_churn is set; Karras' levels unless others are asked for.

    Also for denoisers of a chain of timesteps: see `sigma_path`. The first sample has the deviation σ₀.
    """
    return _heun("edm_heun", schedule, steps, Churn())


def edm_stochastic(schedule: NoiseSchedule, steps: int) -> StepTable:
    """Algorithm 2 with the paper's S_churn 40, S_tmin 0.05, S_tmax 50 and S_noise 1.003 for ImageNet-64."""
    return _heun("edm_stochastic", schedule, steps, Churn(40.0, 0.05, 50.0, 1.003))


def _heun(name: str, schedule: NoiseSchedule, steps: int, defaults: Churn) -> StepTable:
    settings = schedule.settings(name)
    path = sigma_path(schedule, settings, steps, spacing="karras")
    path = replace(path, init_noise_sigma=path.points[0].sigma)
    churn = Churn.read(settings, defaults.amount, defaults.low, defaults.high, defaults.noise)
    return heun_table(name, path, churn, read_clipping(settings))


def karras_ve(schedule: NoiseSchedule, steps: int) -> StepTable:
    """Algorithm 2 as diffusers' KarrasVeScheduler has it: the denoiser takes x and σ and returns −ε.

    Reads sigma_min (0.02), sigma_max (100), s_noise (1.007), s_churn (80), s_min (0.05) and s_max (50). The
    levels are σ_max²·(σ_min/σ_max)^{2i/(n − 1)}: squares of those that the paper gives for this process,
    while the first sample has the deviation σ_max. Noise is drawn in every step, used or not.
    """
    settings = schedule.settings("karras_ve")
    low, high = settings.positive("sigma_min", 0.02), settings.positive("sigma_max", 100.0)
    if steps < 2:
        raise InputError("steps is 1, but sampler 'karras_ve' wants 2 or more; use sampler 'edm_heun'")
    if low > high:
        raise InputError(f"sigma_min is {low:g}, wanted at most sigma_max, {high:g}")

    def at(sigma: float) -> Point:
        return Point(sigma, 1.0, sigma, denoised=Linear(1.0, sigma))

    levels = [high**2 * (low / high) ** (2 * i / (steps - 1)) for i in range(steps)]
    path = SigmaPath(tuple(at(sigma) for sigma in (*levels, 0.0)), high, at)
    churn = Churn.read(settings, 80.0, settings.number("s_min", 0.05), settings.number("s_max", 50.0), 1.007)
    return heun_table("karras_ve", path, churn, always_draw=True)


SAMPLERS = (
    Sampler(
        "edm_euler",
        edm_euler,
        order=1,
        evaluations=1,
        stochastic=False,
        paper=PAPER,
        classes=("EDMEulerScheduler",),
        any_steps=True,
    ),
    Sampler("edm_heun", edm_heun, order=2, evaluations=2, stochastic=False, paper=PAPER),
    Sampler("edm_stochastic", edm_stochastic, order=2, evaluations=2, stochastic=True, paper=PAPER),
    Sampler(
        "karras_ve",
        karras_ve,
        order=2,
        evaluations=2,
        stochastic=True,
        paper=PAPER,
        classes=("KarrasVeScheduler",),
        any_steps=True,
    ),
)
