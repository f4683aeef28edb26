"""The sampling loop: any table against any denoiser."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from fastdiff.errors import InputError
from fastdiff.kernels.scheduler_step import scheduler_step
from fastdiff.samplers.guidance import Guidance
from fastdiff.samplers.random import NoiseSource
from fastdiff.samplers.table import Step, StepTable

__all__ = ["Callback", "Denoiser", "Outputs", "sample"]

Latents = NDArray[np.float32]
Callback = Callable[[int, int, Latents], None]
Outputs = tuple[Latents, Latents | None] | tuple[Latents, Latents, Latents]


class Denoiser(Protocol):
    """The model as the loop sees it."""

    def __call__(self, sample: Latents, timestep: float, guided: int) -> Outputs:
        """Return the model's outputs (with the prompt, without it), each float32 and of ``sample``'s shape.

        ``sample`` is scaled already, read-only, and valid until the next call. ``guided`` is how many outputs
        besides that with the prompt are needed: with 0 the second may be None and is not looked at, with 2 a
        third follows, with the negative prompt.
        """


def sample(
    table: StepTable,
    denoise: Denoiser,
    latents: Latents,
    *,
    guidance: float | Guidance = 1.0,
    noise: NoiseSource | None = None,
    callback: Callback | None = None,
) -> Latents:
    """Run all steps of ``table`` from ``latents`` and return the result, float32 of the same shape.

    latents   float32, any shape: unit noise times ``table.init_noise_sigma``; not changed
    guidance  w of classifier-free guidance (Ho and Salimans), uncond + w·(cond − uncond). 1 is no guidance:
              the denoiser is then called with ``guided`` 0. `Guidance` has the other methods
    noise     for tables that are ``stochastic``: one array of the latents' shape is drawn per step
    callback  called after every model evaluation with the number of those done, the number of all, and the
              latents, read-only and valid until the callback returns

    Buffers are allocated once. An exception from ``denoise`` or ``callback``, KeyboardInterrupt included,
    passes through and leaves nothing behind. Raises `InputError` for a guidance that is not finite, a missing
    noise source, latents that are not float32, and a missing output of the denoiser.
    """
    if isinstance(guidance, Guidance):
        table, guidance, denoise = guidance.bind(table, denoise)
    if not math.isfinite(guidance):
        raise InputError(f"guidance is {guidance}, wanted a finite number; 1 turns guidance off")
    if table.stochastic and noise is None:
        raise InputError(
            f"sampler {table.sampler!r} draws noise at every step, got noise=None; pass a Generator"
        )
    if latents.dtype != np.float32:
        raise InputError(f"latents have dtype {latents.dtype}, wanted float32; use latents.astype('float32')")
    run = _Run(table, np.array(latents, order="C"), guidance, noise)
    for done, step in enumerate(table.steps, start=1):
        cond, uncond, *_ = denoise(run.model_input(step), step.timestep, run.guided)
        if run.guided and uncond is None:
            raise InputError(f"guidance is {guidance}, but the denoiser gave no output without the prompt")
        run.advance(step, cond, uncond if run.guided else None)
        if callback is not None:
            callback(done, table.evaluations, _read_only(run.x))
    return run.x


class _Run:
    """The buffers of one run. Saving into a slot exchanges buffers instead of copying."""

    def __init__(self, table: StepTable, x: Latents, guidance: float, noise: NoiseSource | None) -> None:
        steps = table.steps
        self.x = x
        self.guidance = guidance
        self.guided = guidance != 1
        self.noise_source = noise if table.stochastic else None
        self.slots = [np.empty_like(x) for _ in range(table.slots)]
        self.output = np.empty_like(x)
        self.scaled = np.empty_like(x) if any(step.input_scale != 1 for step in steps) else None
        self.spare = np.empty_like(x) if any(step.save_sample is not None for step in steps) else None
        self.clipped = np.empty_like(x) if any(step.estimate for step in steps) else None
        self.noise = np.empty_like(x) if table.stochastic else None

    def model_input(self, step: Step) -> Latents:
        if self.scaled is None:
            return _read_only(self.x)
        np.multiply(self.x, np.float32(step.input_scale), out=self.scaled)
        return _read_only(self.scaled)

    def advance(self, step: Step, cond: Latents, uncond: Latents | None) -> None:
        history = [self.slots[slot] for slot, _ in step.history]
        coefs = [coef for _, coef in step.history]
        guidance = self.guidance if step.guidance is None else step.guidance
        estimate = step.estimate
        if estimate is not None and self.clipped is not None:
            # d first, then the linear part with d as one more history term.
            value = estimate.value
            scheduler_step(
                self.x,
                cond,
                uncond,
                guidance,
                value.sample,
                value.output,
                out=self.clipped,
                guided=self.output,
            )
            np.clip(self.clipped, -estimate.limit, estimate.limit, out=self.clipped)
            cond, uncond = self.output, None
            history.append(self.clipped)
            coefs.append(estimate.weight)
        noise = self.noise if step.noise_coef is not None else None
        if self.noise_source is not None and noise is not None:
            self.noise_source.randn(self.x.shape, out=self.noise)
        out = self.x if step.save_sample is None or self.spare is None else self.spare
        scheduler_step(
            self.x,
            cond,
            uncond,
            guidance,
            step.update.sample,
            step.update.output,
            history,
            coefs,
            noise,
            step.noise_coef or 0.0,
            out=out,
            guided=self.output,
        )
        if step.save_output is not None:
            if estimate is not None and self.clipped is not None:
                self.clipped, self.output = self.output, self.clipped
            self.slots[step.save_output], self.output = self.output, self.slots[step.save_output]
        if step.save_sample is not None:
            self.slots[step.save_sample], self.spare, self.x = self.x, self.slots[step.save_sample], out


def _read_only(array: Latents) -> Latents:
    view = array.view()
    view.flags.writeable = False
    return view
