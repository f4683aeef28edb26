"""What the sampler tests compare with: diffusers' schedulers, and a table run literally in float64."""

from __future__ import annotations

import contextlib
import itertools
import sys
import unittest.mock
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch

from fastdiff.samplers import (
    Langevin,
    NoiseSchedule,
    StepTable,
    Threshold,
    Variance,
    make_table,
    sampler_of,
)

CLASSES = {
    "ddim": "DDIMScheduler",
    "dpmpp_2m": "DPMSolverMultistepScheduler",
    "euler": "EulerDiscreteScheduler",
    "pndm": "PNDMScheduler",
}
"""diffusers' by their names: tests on a GPU take tables from here where diffusers is not installed."""
EXACT = tuple(CLASSES)
"""The samplers whose whole configuration space test_tables.py goes through."""
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
    for name in (
        "alphas",
        "alphas_cumprod",
        "betas",
        "final_alpha_cumprod",
        "initial_alpha_cumprod",
        "sigmas",
    ):
        if hasattr(scheduler, name):
            setattr(scheduler, name, getattr(scheduler, name).double())
    module = sys.modules[type(scheduler).__module__]
    with unittest.mock.patch.object(module, "torch", _Float64Torch()):
        yield


def prepare(sampler: str, config: dict, steps: int) -> Any:
    """diffusers' scheduler for ``steps`` steps."""
    import diffusers

    with warnings.catch_warnings():
        # np.array(tensor) in set_timesteps, with a NumPy that is newer than the tensor's protocol.
        warnings.filterwarnings("ignore", message="__array__ implementation", category=DeprecationWarning)
        scheduler = getattr(diffusers, CLASSES[sampler]).from_config(config)
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
    table: StepTable,
    start: np.ndarray,
    model: Model = model,
    noise: Callable[[], np.ndarray] | None = None,
    *,
    uncond: Model | None = None,
    guidance: float = 1.0,
) -> Iterator[tuple[float, np.ndarray]]:
    """The same from a table: the formula in `fastdiff.samplers.table`, without buffers or kernels.

    ``uncond`` is the model without the prompt, for classifier-free guidance of the steps and of the call.
    """
    slots: dict[int, np.ndarray] = {}
    x = start * table.init_noise_sigma
    if table.start_noise is not None and noise is not None:
        x = x + table.start_noise * noise()
    yield float("nan"), x
    for step in table.steps:
        m, v = model(step.input_scale * x, step.timestep), None
        if table.variance_channels:
            m, v = np.split(m, 2, axis=1)
        w = guidance if step.guidance is None else step.guidance
        if uncond is not None and w != 1:
            without = uncond(step.input_scale * x, step.timestep)[:, : x.shape[1]]
            m = without + w * (m - without)
        following = step.update.sample * x + step.update.output * m
        for slot, coef in step.history:
            following = following + coef * slots[slot]
        d = m
        if step.estimate is not None:
            value = step.estimate.value
            limit = step.estimate.limit
            d = np.clip(value.sample * x + value.output * m, -limit, limit)
            if step.estimate.threshold is not None:
                d = dynamic_threshold(d, step.estimate.threshold)
            following = following + step.estimate.weight * d
        z = noise() if step.draws_noise and noise is not None else np.zeros_like(x)
        if step.langevin is not None:
            following = following + langevin_step(d, z, step.langevin)
        if step.variance is not None:
            z = z * learned_deviation(v, step.variance)
        following = following + (step.noise_coef or 0) * z
        if step.save_output is not None:
            slots[step.save_output] = d
        if step.save_sample is not None:
            slots[step.save_sample] = x
        x = following
        yield step.timestep, x


def dynamic_threshold(d: np.ndarray, threshold: Threshold) -> np.ndarray:
    """Saharia et al., image by image."""
    result = []
    for image in d:
        s = np.clip(np.quantile(np.abs(image), threshold.ratio), 1, threshold.maximum)
        result.append(np.clip(image, -s, s) / s)
    return np.stack(result)


def learned_deviation(v: np.ndarray, variance: Variance) -> np.ndarray:
    """Nichol and Dhariwal, Eq. 15; the variance itself without its bounds."""
    if variance.low is None:
        return np.sqrt(v)
    f = (v + 1) / 2
    return np.exp((f * variance.high + (1 - f) * variance.low) / 2)


def langevin_step(score: np.ndarray, z: np.ndarray, langevin: Langevin) -> np.ndarray:
    """Song et al., Algorithms 4 and 5, image by image."""
    norms = np.array([[np.linalg.norm(image) for image in array] for array in (z, score)])
    if langevin.batch_mean:
        norms = np.repeat(norms.mean(axis=1, keepdims=True), len(score), axis=1)
    e = 2 * langevin.alpha * (langevin.snr * norms[0] / norms[1]) ** 2
    return np.stack([e[b] * score[b] + np.sqrt(2 * e[b]) * z[b] for b in range(len(score))])


def assert_follows_diffusers(
    class_name: str,
    config: dict,
    steps: int,
    *,
    bound: float = 1e-5,
    sampler: str | None = None,
    options: dict | None = None,
    model: Model = model,
    shape: tuple[int, ...] = (2, 3, 4),
    set_timesteps: dict | None = None,
    step_arguments: dict | None = None,
    prepare: Callable[[Any], None] | None = None,
) -> StepTable:
    """Run diffusers' scheduler and our table on the same start, model outputs and noises; compare every step.

    ``config`` without ``_class_name``; ``sampler`` None is what the class maps to; ``options`` are those of
    make_table. ``set_timesteps`` and ``step_arguments`` are further arguments of the scheduler's methods,
    ``prepare`` may change the scheduler afterwards. ``bound`` is relative to the largest sample of a run.
    Noises are drawn in the order of use: both sides must draw as often.
    """
    import diffusers

    config = {"_class_name": class_name, **config}
    name = sampler or sampler_of(config)
    assert name is not None, f"{class_name} maps to no sampler"
    table = make_table(name, NoiseSchedule.from_config(config), steps, options=options)
    start = np.random.default_rng(steps).standard_normal(shape)

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="__array__ implementation", category=DeprecationWarning)
        scheduler = getattr(diffusers, class_name).from_config(config)
        scheduler.set_timesteps(**({"num_inference_steps": steps} | (set_timesteps or {})))
    if hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(0)
    if prepare is not None:
        prepare(scheduler)
    theirs, drawn = [], []

    def randn_tensor(shape: tuple[int, ...], *_: Any, **__: Any) -> torch.Tensor:
        drawn.append(np.random.default_rng(len(drawn)).standard_normal(tuple(shape)))
        return torch.from_numpy(drawn[-1])

    module = sys.modules[type(scheduler).__module__]
    has_noise = hasattr(module, "randn_tensor")
    noise = (
        unittest.mock.patch.object(module, "randn_tensor", randn_tensor)
        if has_noise
        else contextlib.nullcontext()
    )
    # Schedulers of flow matching start from unit noise and tell the model of the sample as it is.
    sample = torch.from_numpy(start) * float(getattr(scheduler, "init_noise_sigma", 1.0))
    scale_input = getattr(scheduler, "scale_model_input", lambda sample, _: sample)
    with _in_float64(scheduler), noise:
        for timestep in scheduler.timesteps:
            scaled = scale_input(sample, timestep)
            output = torch.from_numpy(model(scaled.numpy(), float(timestep)))
            step = scheduler.step(output, timestep, sample, return_dict=False, **(step_arguments or {}))
            sample = step[0]
            theirs.append((float(timestep), sample.numpy()))

    count = itertools.count()
    _, *ours = table_run(
        table, start, model, lambda: np.random.default_rng(next(count)).standard_normal(shape)
    )
    assert [t for t, _ in ours] == pytest.approx([t for t, _ in theirs], rel=1e-6, abs=1e-6)
    scale = max(np.abs(x).max() for _, x in theirs)
    for i, ((_, found), (_, wanted)) in enumerate(zip(ours, theirs, strict=True)):
        error = np.abs(found - wanted).max() / scale
        assert error <= bound, f"step {i} of {steps}: relative error {error:.2g} over {bound:g}; {config}"
    assert next(count) == len(drawn), "drawn another number of noises than diffusers"
    return table
