"""What the sampler tests compare with: diffusers' schedulers, and a table run literally in float64."""

from __future__ import annotations

import contextlib
import sys
import unittest.mock
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import diffusers
import numpy as np
import torch

from fastdiff.samplers import StepTable

CLASSES = {
    "ddim": diffusers.DDIMScheduler,
    "dpmpp_2m": diffusers.DPMSolverMultistepScheduler,
    "euler": diffusers.EulerDiscreteScheduler,
    "pndm": diffusers.PNDMScheduler,
}
Model = Callable[[np.ndarray, float], np.ndarray]


def model(sample: np.ndarray, timestep: float) -> np.ndarray:
    """A smooth, bounded, nonlinear function of both arguments; elements differ."""
    phase = np.arange(sample.size).reshape(sample.shape)
    return np.tanh(0.6 * sample + np.sin(phase + timestep / 150))


class _Float64Torch:
    """torch for diffusers' step functions, without their rounding to float32."""

    float32 = torch.float64

    def __getattr__(self, name: str) -> object:
        return getattr(torch, name)


@contextlib.contextmanager
def _in_float64(scheduler: Any) -> Iterator[None]:
    """Let a prepared scheduler step in float64, from a schedule that keeps its float32 values."""
    for name in ("alphas_cumprod", "final_alpha_cumprod", "sigmas"):
        if hasattr(scheduler, name):
            setattr(scheduler, name, getattr(scheduler, name).double())
    module = sys.modules[type(scheduler).__module__]
    with unittest.mock.patch.object(module, "torch", _Float64Torch()):
        yield


def prepare(sampler: str, config: dict, steps: int) -> Any:
    """diffusers' scheduler for ``steps`` steps."""
    with warnings.catch_warnings():
        # np.array(tensor) in set_timesteps, with a NumPy that is newer than the tensor's protocol.
        warnings.filterwarnings("ignore", message="__array__ implementation", category=DeprecationWarning)
        scheduler = CLASSES[sampler].from_config(config)
        scheduler.set_timesteps(steps)
    return scheduler


def diffusers_run(
    sampler: str,
    config: dict,
    steps: int,
    start: np.ndarray,
    model: Model = model,
    *,
    eta: float = 0.0,
    seed: int = 0,
    exact: bool = False,
) -> Iterator[tuple[float, np.ndarray]]:
    """Yield the timestep and the sample after it, for every step; before that NaN and the scaled start.

    ``exact`` removes float32 rounding from the scheduler's steps, which otherwise hides errors of a table.
    """
    scheduler = prepare(sampler, config, steps)
    if hasattr(scheduler, "set_begin_index"):
        # Rounded Karras timesteps repeat; without this the scheduler starts at the second of two equal ones.
        scheduler.set_begin_index(0)
    extra = {"eta": eta, "generator": torch.Generator().manual_seed(seed)} if sampler == "ddim" else {}
    sample = torch.from_numpy(start) * scheduler.init_noise_sigma
    yield float("nan"), sample.numpy()
    with _in_float64(scheduler) if exact else contextlib.nullcontext():
        for timestep in scheduler.timesteps:
            scaled = scheduler.scale_model_input(sample, timestep)
            output = torch.from_numpy(model(scaled.numpy(), float(timestep)))
            sample = scheduler.step(output, timestep, sample, return_dict=False, **extra)[0]
            yield float(timestep), sample.numpy()


def table_run(
    table: StepTable, start: np.ndarray, model: Model = model, noise: Callable[[], np.ndarray] | None = None
) -> Iterator[tuple[float, np.ndarray]]:
    """The same from a table: the formula in `fastdiff.samplers.table`, without buffers or kernels."""
    slots: dict[int, np.ndarray] = {}
    x = start * table.init_noise_sigma
    yield float("nan"), x
    for step in table.steps:
        m = model(step.input_scale * x, step.timestep)
        following = step.update.sample * x + step.update.output * m
        for slot, coef in step.history:
            following = following + coef * slots[slot]
        if step.clip is not None:
            x0 = step.clip.x0.sample * x + step.clip.x0.output * m
            following = following + step.clip.weight * np.clip(x0, -step.clip.limit, step.clip.limit)
        if table.stochastic and noise is not None:
            following = following + step.noise_coef * noise()
        if step.save_sample is not None:
            slots[step.save_sample] = x
        if step.save_output is not None:
            slots[step.save_output] = m
        x = following
        yield step.timestep, x
