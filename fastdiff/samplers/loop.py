"""The sampling loop: any table against any denoiser."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from fastdiff.errors import InputError
from fastdiff.kernels.scheduler_step import scheduler_step
from fastdiff.samplers.extras import add_langevin, apply_threshold, deviation
from fastdiff.samplers.guidance import Guidance
from fastdiff.samplers.prediction import Linear
from fastdiff.samplers.random import NoiseSource
from fastdiff.samplers.table import Estimate, Step, StepTable

__all__ = [
    "Callback",
    "Denoiser",
    "Edit",
    "Outputs",
    "check_arguments",
    "check_run",
    "sample",
    "start_sample",
]

Latents = NDArray[np.float32]
Callback = Callable[[int, int, Latents], None]
Edit = Callable[[int, Latents], None]
"""Changes the latents in place after an evaluation, counted from 1, before the next one sees them."""
Outputs = tuple[Latents, Latents | None] | tuple[Latents, Latents, Latents]

_OUTPUT = Estimate(Linear(0.0, 1.0))
"""d = m, in steps without an estimate."""


class Denoiser(Protocol):
    """The model as the loop sees it."""

    def __call__(self, sample: Latents, timestep: float, guided: int) -> Outputs:
        """Return the model's outputs (with the prompt, without it), each float32 and of ``sample``'s shape.

        For a table with ``variance_channels`` they have twice as many channels, the second axis.

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
    edit: Edit | None = None,
) -> Latents:
    """Run all steps of ``table`` from ``latents`` and return the result, float32 of the same shape.

    latents   float32, any shape: unit noise times ``table.init_noise_sigma``; not changed
    guidance  w of classifier-free guidance (Ho and Salimans), uncond + w·(cond − uncond), in steps without
              one of their own. 1 is no guidance: the denoiser is then called with ``guided`` 0. `Guidance`
              has other methods, intervals and schedules
    noise     for tables that are ``stochastic``: an array of the latents' shape is drawn for the start and
              for each step, where the table says so, in this order
    callback  called after every model evaluation with the number of those done, the number of all, and the
              latents, read-only and valid until the callback returns
    edit      called after every model evaluation, before the callback; what solvers have kept of the steps
              before stays as it was

    Buffers are allocated once. An exception from ``denoise`` or ``callback``, KeyboardInterrupt included,
    passes through and leaves nothing behind. Raises `InputError` for a guidance that is not finite, a missing
    noise source, latents that are not float32, and a missing output of the denoiser.
    """
    if isinstance(guidance, Guidance):
        table, guidance, denoise = guidance.bind(table, denoise)
    check_run(table, latents, guidance, noise)
    run = _Run(table, start_sample(table, latents, noise), noise)
    scales = table.guidance_scales(guidance)
    for done, (step, scale) in enumerate(zip(table.steps, scales, strict=True), start=1):
        guided = scale != 1
        cond, uncond, *_ = denoise(run.model_input(step), step.timestep, int(guided))
        variance = None
        if guided and uncond is None:
            raise InputError(f"guidance is {scale}, but the denoiser gave no output without the prompt")
        if table.variance_channels:
            cond, variance = _halves(cond)
            uncond = None if uncond is None else _halves(uncond)[0]
        # The step makes m of both: uncond + scale·(cond − uncond), or cond alone.
        following = table.steps[done] if done < table.evaluations else None
        run.advance(step, following, cond, uncond if guided else None, scale, variance)
        if edit is not None:
            run.edit(edit, done, following)
        if callback is not None:
            callback(done, table.evaluations, _read_only(run.x))
    return run.x


class Run(Protocol):
    """What is known of a sampler before it starts: of a `StepTable`, or of one that chooses its steps."""

    @property
    def sampler(self) -> str: ...

    @property
    def stochastic(self) -> bool: ...


def check_run(table: StepTable, latents: Latents, guidance: float, noise: NoiseSource | None) -> None:
    """Raise InputError for arguments of `sample` that no loop takes."""
    check_arguments(table, latents, (guidance, *table.guidance_scales(guidance)), noise)


def check_arguments(run: Run, latents: Latents, scales: Iterable[float], noise: NoiseSource | None) -> None:
    """Raise InputError for arguments that no sampler takes; ``scales`` are those of guidance."""
    for scale in scales:
        if not math.isfinite(scale):
            raise InputError(f"guidance is {scale}, wanted a finite number; 1 turns guidance off")
    if run.stochastic and noise is None:
        raise InputError(f"sampler {run.sampler!r} draws noise, got noise=None; pass a Generator")
    if latents.dtype != np.float32:
        raise InputError(f"latents have dtype {latents.dtype}, wanted float32; use latents.astype('float32')")


def start_sample(table: StepTable, latents: Latents, noise: NoiseSource | None) -> Latents:
    """A copy of ``latents`` in C order, with the table's ``start_noise``."""
    x = np.array(latents, order="C")
    if table.start_noise is not None and noise is not None:
        drawn = noise.randn(x.shape)
        if table.start_noise:
            scheduler_step(x, x, None, 1.0, 1.0, 0.0, noise=drawn, noise_coef=table.start_noise, out=x)
    return x


class _Run:
    """The buffers of one run. What a step saves is written where it stays: kernels read an element of all
    slots before they write it, and the sample exchanges its buffer with its slot's.
    """

    def __init__(self, table: StepTable, x: Latents, noise: NoiseSource | None) -> None:
        steps = table.steps

        def buffer(wanted: bool) -> Latents:
            return np.empty(x.shape if wanted else (0,), np.float32)

        self.x = x
        self.edited: Latents | None = None  # what the last edit added
        self.source = noise
        self.slots = [buffer(True) for _ in range(table.slots)]
        self.noise = buffer(any(step.draws_noise for step in steps))
        self.scaled = buffer(any(step.input_scale != 1 for step in steps))
        if self.scaled.size:
            np.multiply(x, np.float32(steps[0].input_scale), out=self.scaled)
        # m and d, for steps that look at d as a whole.
        looks = any(_looks_at_estimate(step) for step in steps)
        self.output, self.estimate = buffer(looks), buffer(looks)

    def model_input(self, step: Step) -> Latents:
        """What the step before has left for the model."""
        return _read_only(self.x if step.input_scale == 1 else self.scaled)

    def advance(
        self,
        step: Step,
        following: Step | None,
        cond: Latents,
        uncond: Latents | None,
        guidance: float,
        variance: Latents | None,
    ) -> None:
        """One step, and the model's input in the one that follows."""
        noise = self._draw(step, variance)
        estimate = step.estimate or _OUTPUT
        history = [self.slots[slot] for slot, _ in step.history]
        coefs = [coef for _, coef in step.history]
        # In one slot the sample stays.
        save_output = None if step.save_output == step.save_sample else step.save_output
        saved = None if save_output is None else self.slots[save_output]
        looks = _looks_at_estimate(step)
        if looks:
            self._look(step, estimate, cond, uncond, guidance)
            cond, uncond, saved = self.output, None, None
            history.append(self.estimate)
            coefs.append(estimate.weight)
            if step.langevin is not None:
                history.append(add_langevin(self.estimate, self.noise, step.langevin))
                coefs.append(1.0)
            estimate = _OUTPUT
        out = self.x if step.save_sample is None else self.slots[step.save_sample]
        scaled = following is not None and following.input_scale != 1
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
            estimate_sample=estimate.value.sample,
            estimate_output=estimate.value.output,
            estimate_limit=estimate.limit,
            estimate_coef=estimate.weight,
            next_scale=following.input_scale if following is not None else 1.0,
            out=out,
            estimate=saved,
            next_input=self.scaled if scaled else None,
        )
        if looks and save_output is not None:
            self.slots[save_output], self.estimate = self.estimate, self.slots[save_output]
        if step.save_sample is not None:
            self.slots[step.save_sample], self.x = self.x, out
        if self.edited is not None:
            self.x -= np.float32(step.carried) * self.edited

    def edit(self, edit: Edit, done: int, following: Step | None) -> None:
        """Let ``edit`` change the sample, and make the model's next input of it."""
        carried = following is not None and following.carried != 0
        before = self.x.copy() if carried else None
        edit(done, self.x)
        self.edited = None if before is None else np.subtract(self.x, before, out=before)
        if following is not None and following.input_scale != 1:
            np.multiply(self.x, np.float32(following.input_scale), out=self.scaled)

    def _draw(self, step: Step, variance: Latents | None) -> Latents | None:
        """Draw the step's noise, if it draws any; what ``noise_coef`` multiplies, None where that is 0."""
        if not step.draws_noise or self.source is None:
            return None
        self.source.randn(self.x.shape, out=self.noise)
        if not step.noise_coef:
            return None
        if step.variance is None or variance is None:
            return self.noise
        return self.noise * deviation(variance, step.variance)

    def _look(
        self, step: Step, estimate: Estimate, cond: Latents, uncond: Latents | None, guidance: float
    ) -> None:
        """M and d into ``output`` and ``estimate``."""
        value = estimate.value
        scheduler_step(
            self.x,
            cond,
            uncond,
            guidance,
            value.sample,
            value.output,
            out=self.estimate,
            estimate=self.output,
        )
        np.clip(self.estimate, -estimate.limit, estimate.limit, out=self.estimate)
        if estimate.threshold is not None:
            apply_threshold(self.estimate, estimate.threshold)


def _looks_at_estimate(step: Step) -> bool:
    """Whether the step needs all of d before it can use any of it."""
    return step.langevin is not None or (step.estimate is not None and step.estimate.threshold is not None)


def _halves(output: Latents) -> tuple[Latents, Latents]:
    """The model's output (B, 2·C, …) as two arrays (B, C, …)."""
    first, second = np.split(output, 2, axis=1)
    return np.ascontiguousarray(first), np.ascontiguousarray(second)


def _read_only(array: Latents) -> Latents:
    view = array.view()
    view.flags.writeable = False
    return view
