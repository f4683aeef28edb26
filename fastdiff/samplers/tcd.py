"""Trajectory consistency distillation: Zheng et al., "Trajectory Consistency Distillation: Improved Latent
Consistency Distillation by Semi-Linear Consistency Function with Trajectory Mapping".
"""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np

from fastdiff.errors import InputError
from fastdiff.samplers.chain import read_chain
from fastdiff.samplers.distilled import distilled_timesteps
from fastdiff.samplers.sampler import Sampler
from fastdiff.samplers.schedule import NoiseSchedule
from fastdiff.samplers.settings import Settings
from fastdiff.samplers.table import Step, StepTable, step_at

__all__ = ["SAMPLERS", "tcd"]


def tcd(schedule: NoiseSchedule, steps: int) -> StepTable:
    """Strategic stochastic sampling of the paper: go to s = (1 − γ)·t', then noise from s to t'.

    γ, also called eta, is 0, deterministic, to 1, as in LCM; 0.3 unless set. The last step ends at timestep
    0. Reads what `distilled_timesteps` does and rescale_betas_zero_snr; like diffusers' TCDScheduler it never
    clips, and timestep_spacing, timestep_scaling, steps_offset and set_alpha_to_one change nothing.
    """
    settings = schedule.settings("tcd")
    settings.unused("timestep_spacing", "timestep_scaling", "steps_offset", "set_alpha_to_one", "clip_sample")
    settings.unused("clip_sample_range", "thresholding", "dynamic_thresholding_ratio", "sample_max_value")
    gamma = _gamma(settings)
    chain = read_chain(settings, schedule, "tcd")
    timesteps = distilled_timesteps(settings, schedule, "tcd", steps)
    rows: list[Step] = []
    for i, (t, following) in enumerate(pairwise((*timesteps, 0)), start=1):
        s = int(np.float32(1 - gamma) * np.float32(following))  # as diffusers rounds it
        point, between, end = chain.at(t), chain.at(s), chain.at(following)
        update, noise = point.to(between), None
        if gamma > 0 and i < len(timesteps):
            kept = end.alpha / between.alpha
            update = kept * update
            noise = math.sqrt(max(1 - kept**2, 0.0))
        rows.append(step_at(point, update, noise_coef=noise))
    return StepTable("tcd", tuple(rows))


def _gamma(settings: Settings) -> float:
    if settings.is_set("gamma") and settings.is_set("eta"):
        raise InputError("gamma and eta are set, two names of the same option of sampler 'tcd'; keep one")
    return settings.within("gamma" if settings.is_set("gamma") else "eta", 0.3, 0.0, 1.0)


SAMPLERS = (
    Sampler(
        "tcd",
        tcd,
        order=1,
        evaluations=1,
        stochastic=True,
        paper="Zheng et al., Trajectory Consistency Distillation",
        classes=("TCDScheduler",),
    ),
)
