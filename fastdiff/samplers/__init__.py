"""Samplers: a noise schedule becomes a table of coefficients, one loop runs any table.

scheduler_config.json ─NoiseSchedule.from_config─▶ schedule ─make_table(name, steps)─▶ StepTable
seed ─Generator─▶ noise · table.init_noise_sigma ─sample(table, denoiser)─▶ latents
"""

from __future__ import annotations

from fastdiff.samplers.loop import Callback, Denoiser, sample
from fastdiff.samplers.random import BatchRows, CudaGenerator, Generator, NoiseSource
from fastdiff.samplers.registry import SAMPLERS, make_table, sampler_of
from fastdiff.samplers.schedule import NoiseSchedule
from fastdiff.samplers.table import Step, StepTable

__all__ = [
    "SAMPLERS",
    "BatchRows",
    "Callback",
    "CudaGenerator",
    "Denoiser",
    "Generator",
    "NoiseSchedule",
    "NoiseSource",
    "Step",
    "StepTable",
    "make_table",
    "sample",
    "sampler_of",
]
