"""Samplers: a noise schedule becomes a table of coefficients, one loop runs any table.

scheduler_config.json ─NoiseSchedule.from_config─▶ schedule ─make_table(name, steps)─▶ StepTable
seed ─Generator─▶ noise · table.init_noise_sigma ─sample(table, denoiser)─▶ latents
"""

from __future__ import annotations

from fastdiff.samplers.adaptive import AdaptiveRun, sample_adaptive
from fastdiff.samplers.guidance import Guidance, read_guidance
from fastdiff.samplers.loop import Callback, Denoiser, sample
from fastdiff.samplers.part import Part
from fastdiff.samplers.path import Point
from fastdiff.samplers.prediction import Linear, Prediction
from fastdiff.samplers.random import BatchRows, CudaGenerator, Generator, NoiseSource
from fastdiff.samplers.registry import (
    SAMPLERS,
    find_sampler,
    make_adaptive,
    make_table,
    options_of,
    sampler_of,
)
from fastdiff.samplers.sampler import Sampler
from fastdiff.samplers.schedule import NoiseSchedule
from fastdiff.samplers.table import Estimate, Langevin, Step, StepTable, Threshold, Variance, step_at

__all__ = [
    "SAMPLERS",
    "AdaptiveRun",
    "BatchRows",
    "Callback",
    "CudaGenerator",
    "Denoiser",
    "Estimate",
    "Generator",
    "Guidance",
    "Langevin",
    "Linear",
    "NoiseSchedule",
    "NoiseSource",
    "Part",
    "Point",
    "Prediction",
    "Sampler",
    "Step",
    "StepTable",
    "Threshold",
    "Variance",
    "find_sampler",
    "make_adaptive",
    "make_table",
    "options_of",
    "read_guidance",
    "sample",
    "sample_adaptive",
    "sampler_of",
    "step_at",
]
