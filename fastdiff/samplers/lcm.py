"""Latent consistency models: Luo et al., "Latent Consistency Models: Synthesizing High-Resolution Images with
Few-Step Inference".
"""

from __future__ import annotations

import math
from itertools import pairwise

from fastdiff.samplers.chain import read_chain
from fastdiff.samplers.clipping import read_clipping
from fastdiff.samplers.distilled import distilled_timesteps
from fastdiff.samplers.prediction import Linear
from fastdiff.samplers.sampler import Sampler
from fastdiff.samplers.schedule import NoiseSchedule
from fastdiff.samplers.table import Step, StepTable, step_at

__all__ = ["SAMPLERS", "lcm"]

_SIGMA_DATA = 0.5


def lcm(schedule: NoiseSchedule, steps: int) -> StepTable:
    """Multistep sampling of the paper: f(x, t) is noised to the next timestep.

    f = c_skip·x + c_out·x₀ with c_skip = ¼/((s·t)² + ¼), c_out = s·t/√((s·t)² + ¼) and s the option
    timestep_scaling (10). The last step ends in f itself. Reads what `distilled_timesteps` does, and with the
    defaults of diffusers' LCMScheduler rescale_betas_zero_snr, clip_sample, clip_sample_range, thresholding,
    dynamic_thresholding_ratio and sample_max_value; like there, timestep_spacing, steps_offset and
    set_alpha_to_one change nothing.
    """
    settings = schedule.settings("lcm")
    settings.unused("timestep_spacing", "steps_offset", "set_alpha_to_one")
    scaling = settings.positive("timestep_scaling", 10.0)
    clipping = read_clipping(settings)
    chain = read_chain(settings, schedule, "lcm")
    timesteps = distilled_timesteps(settings, schedule, "lcm", steps)
    rows: list[Step] = []
    for t, following in pairwise((*timesteps, -1)):
        point, end = chain.at(t), chain.at(following)
        root = math.hypot(scaling * t, _SIGMA_DATA)
        c_skip, c_out = (_SIGMA_DATA / root) ** 2, scaling * t / root
        x0, estimate = clipping.split(point.x0, end.alpha * c_out)
        update = Linear(end.alpha * c_skip, 0.0) + x0
        noise = end.sigma if following >= 0 else None
        rows.append(step_at(point, update, noise_coef=noise, estimate=estimate))
    return StepTable("lcm", tuple(rows))


SAMPLERS = (
    Sampler(
        "lcm",
        lcm,
        order=1,
        evaluations=1,
        stochastic=True,
        paper="Luo et al., Latent Consistency Models",
        classes=("LCMScheduler",),
    ),
)
