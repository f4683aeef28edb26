"""The U-Net as the sampler loop calls it, and the loop with progress, timing and a check of every step."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from fastdiff.errors import NumericError
from fastdiff.progress import progress_bar
from fastdiff.samplers import (
    AdaptiveRun,
    Callback,
    Generator,
    Guidance,
    NoiseSource,
    StepTable,
    sample,
    sample_adaptive,
)
from fastdiff.samplers.loop import Denoiser as CallDenoiser
from fastdiff.samplers.loop import Edit, Outputs

if TYPE_CHECKING:
    from fastdiff.request import Request
    from fastdiff.targets.session import Session

__all__ = ["Denoiser", "Evaluation", "Inputs", "Predict", "SplitDenoiser", "evaluated", "run_table"]

Array = NDArray[np.float32]


Inputs = Mapping[str, NDArray[Any]]
"""Inputs of the U-Net besides ``sample`` and ``timestep``, by name, each [batch, …]."""


@dataclass(frozen=True)
class Evaluation:
    """Which evaluation of the U-Net in a call this is: ``index`` of ``total`` from 0.

    The halves of guidance count as one. ``total`` is None where a sampler chooses its own steps.
    """

    index: int
    total: int | None


Predict = Callable[[Evaluation, dict[str, NDArray[Any]]], Array]
"""The model's output for all inputs, ``sample`` and ``timestep`` among them: what a call puts in the place of
the U-Net alone where something changes from step to step, such as the residuals of a ControlNet."""


class Denoiser:
    """The U-Net as the sampler loop calls it, with guidance as one batch.

    ``conditional``, ``unconditional`` and ``negative`` are the U-Net's inputs with the prompt, without it and
    with the negative one; the second is None without guidance, the third with methods that need no three
    branches. The batch is [unconditional, conditional], the order of diffusers, then negative. With
    ``predict`` that computes the output instead of ``unet``, and targets' own loops are not used.
    """

    def __init__(
        self,
        unet: Session,
        conditional: Inputs,
        unconditional: Inputs | None,
        negative: Inputs | None = None,
        *,
        predict: Predict | None = None,
    ) -> None:
        self._unet = unet
        self._predict = predict
        self._conditional = dict(conditional)
        self._both = None if unconditional is None else _joined(unconditional, conditional)
        self._all = None
        if self._both is not None and negative is not None:
            self._all = _joined(self._both, negative)
        self._count = 0
        self._total: int | None = None

    def __call__(self, sample: Array, timestep: float, guided: int) -> Outputs:
        """Outputs (conditional, unconditional[, negative]) for ``sample`` [batch, channels, h, w], scaled."""
        if guided == 2 and self._all is not None:
            output = self._evaluate(np.concatenate([sample] * 3), timestep, self._all)
            unconditional, conditional, negative = np.split(output, 3)
            return conditional, unconditional, negative
        if not guided or self._both is None:
            return self._evaluate(sample, timestep, self._conditional), None
        output = self._evaluate(np.concatenate([sample, sample]), timestep, self._both)
        return output[len(sample) :], output[: len(sample)]

    @property
    def waits_per_step(self) -> bool:
        """Whether ``run`` has the latents of each step at hand, so that a callback costs nothing."""
        return self._predict is not None or not self._unet.has_loop or self._unet.waits_per_step

    def run(
        self,
        table: StepTable | AdaptiveRun,
        start: Array,
        guidance: float | Guidance,
        noise: NoiseSource,
        callback: Callback | None,
        edit: Edit | None = None,
    ) -> Array:
        """All steps of ``table`` from ``start``: in the target's own loop where it has one for the table.

        ``edit`` changes the latents between the steps, for which the loop is on the host.
        """
        self._count = 0
        self._total = None if isinstance(table, AdaptiveRun) else table.evaluations
        if isinstance(table, AdaptiveRun) or (isinstance(guidance, Guidance) and not guidance.linear):
            return _run_on_host(table, self, start, guidance, noise, callback, edit)
        if isinstance(guidance, Guidance):
            table, guidance = guidance.fold(table)
        drawable = not table.stochastic or self._unet.takes_any_noise or isinstance(noise, Generator)
        guided = any(scale != 1 for scale in table.guidance_scales(guidance))
        inputs = self._both if guided else self._conditional
        own = self._predict is None and edit is None and inputs is not None and drawable
        if inputs is None or not own or not self._unet.runs(table, guidance):
            return _run_on_host(table, self, start, guidance, noise, callback, edit)
        latents: Array = self._unet.sample(table, start, inputs, guidance, noise, callback)
        return latents

    def _evaluate(self, sample: Array, timestep: float, inputs: dict[str, NDArray[Any]]) -> Array:
        if self._predict is None:
            return _predict(self._unet, sample, timestep, inputs)
        evaluation = Evaluation(self._count, self._total)
        self._count += 1
        times = np.full(len(sample), timestep, np.float32)
        return self._predict(evaluation, {"sample": sample, "timestep": times, **inputs})


class SplitDenoiser:
    """The U-Net twice, on two devices, one for each half of classifier-free guidance, at the same time.

    ``unet`` computes with ``conditional``, ``other`` with ``unconditional`` and after it with ``negative``
    where a method needs that, all inputs of the U-Net; neither needs room for more than one of them. The
    sampler loop runs on the host, whatever loops the sessions have: every step sends the latents to both
    devices and fetches the outputs. What a session computes is all that differs from ``Denoiser``, so that
    pictures are equal but for rounding.
    """

    waits_per_step = True

    def __init__(
        self,
        unet: Session,
        other: Session,
        conditional: Inputs,
        unconditional: Inputs,
        negative: Inputs | None = None,
    ) -> None:
        self._unet = unet
        self._other = other
        self._conditional = conditional
        self._unconditional = unconditional
        self._negative = negative

    def run(
        self,
        table: StepTable | AdaptiveRun,
        start: Array,
        guidance: float | Guidance,
        noise: NoiseSource,
        callback: Callback | None,
        edit: Edit | None = None,
    ) -> Array:
        """All steps of ``table`` from ``start``. One thread computes beside the caller's until it returns."""
        with ThreadPoolExecutor(1, "fastdiff-guidance") as thread:

            def denoise(sample: Array, timestep: float, guided: int) -> Outputs:
                branches = (self._unconditional, self._negative)[:guided]
                # The context waits for the others also when this one raises.
                others = [
                    thread.submit(_predict, self._other, sample, timestep, inputs)
                    for inputs in branches
                    if inputs is not None
                ]
                cond = _predict(self._unet, sample, timestep, self._conditional)
                match [other.result() for other in others]:
                    case [unconditional, negative]:
                        return cond, unconditional, negative
                    case [unconditional]:
                        return cond, unconditional
                    case _:
                        return cond, None

            return _run_on_host(table, denoise, start, guidance, noise, callback, edit)


def _run_on_host(
    table: StepTable | AdaptiveRun,
    denoise: CallDenoiser,
    start: Array,
    guidance: float | Guidance,
    noise: NoiseSource,
    callback: Callback | None,
    edit: Edit | None,
) -> Array:
    """The project's own loops, which call ``denoise`` for every evaluation."""
    if not isinstance(table, AdaptiveRun):
        return sample(table, denoise, start, guidance=guidance, noise=noise, callback=callback, edit=edit)
    if isinstance(guidance, Guidance):
        raise TypeError(f"sampler {table.sampler!r} takes guidance as a scale")  # call_table refuses others
    if edit is not None:
        raise TypeError(f"sampler {table.sampler!r} takes no edits")  # call_table refuses parts of it
    return sample_adaptive(table, denoise, start, guidance=guidance, noise=noise, callback=callback)


def _joined(first: Inputs, second: Inputs) -> dict[str, NDArray[Any]]:
    """Two batches as one, input by input."""
    return {name: np.concatenate([array, second[name]]) for name, array in first.items()}


def _predict(unet: Session, sample: Array, timestep: float, inputs: Inputs) -> Array:
    output: Array = unet(sample=sample, timestep=np.float32(timestep), **inputs)["sample"]
    return output


def evaluated(unet: Session) -> Predict:
    """The U-Net alone, as what can be put in its place."""

    def predict(evaluation: Evaluation, inputs: dict[str, NDArray[Any]]) -> Array:
        output: Array = unet(**inputs)["sample"]
        return output

    return predict


def run_table(
    table: StepTable | AdaptiveRun,
    denoise: Denoiser | SplitDenoiser,
    start: Array,
    request: Request,
    noise: NoiseSource,
    callback: Callback | None,
    progress: bool,
    edit: Edit | None = None,
    scales: Mapping[str, float] | None = None,
) -> tuple[Array, tuple[float, ...]]:
    """Run the sampler loop; returns the latents and the seconds of each evaluation, callbacks not counted.

    ``edit`` is that of `fastdiff.samplers.loop.sample`; ``scales`` are those of what changes the model's
    outputs besides guidance, by name, for the error.

    Raises NumericError at the first step that leaves NaN or infinity in the latents. Where a look at each
    step would hold the target up and nobody asked for one, the steps run at once: the latents are checked
    after the last, and every step is given the mean of the times. A sampler that chooses its own steps takes
    several evaluations for each, so that the bar's total is an estimate.
    """
    seconds: list[float] = []
    evaluations = None if isinstance(table, AdaptiveRun) else table.evaluations
    bar = progress_bar(evaluations, "step", keep=True) if progress else None
    watched = progress or callback is not None or denoise.waits_per_step
    begin = last = time.perf_counter()

    def after_step(step: int, total: int, latents: Array) -> None:
        nonlocal last
        _check_finite(latents, step, total, request, scales or {})
        seconds.append(time.perf_counter() - last)
        if bar is not None:
            bar.total = total
            bar.update(step - bar.n)
        if callback is not None:
            callback(step, total, latents)
        last = time.perf_counter()

    try:
        whole = request.guided or isinstance(request.guidance, Guidance)
        guidance = request.guidance if whole else 1.0
        latents = denoise.run(table, start, guidance, noise, after_step if watched else None, edit)
    finally:
        if bar is not None:
            bar.close()
    if not watched:
        count = evaluations or 1
        seconds = [(time.perf_counter() - begin) / count] * count
        _check_finite(latents, count, count, request, scales or {})
    return latents, tuple(seconds)


def _check_finite(
    latents: Array, step: int, total: int, request: Request, scales: Mapping[str, float]
) -> None:
    if np.isfinite(latents).all():
        return
    found = ", ".join(f"{name} {scale:g}" for name, scale in scales.items())
    at_work, nearer = (f", with {found}", "give scales nearer to 0, ") if scales else ("", "")
    raise NumericError(
        f"NaN or infinity in the latents after step {step} of {total}{at_work}: {nearer}use a guidance lower "
        f"than {request.scale:g}, or check the engine with fastdiff verify"
    )
