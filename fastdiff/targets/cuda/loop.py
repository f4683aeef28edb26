"""All steps of a sampler's table on the device: one captured step, launched once per step.

::

    start    slots ← 0, model input ← scaled sample, prompt stage        once per run
    window   counter ← 0, schedule stage of all timesteps into a table   once per run, if its tables fit
    step     gather the schedule's row, step stage, table_step, counter + 1

All three are graphs. The host uploads tables and noise before the first step, and waits only where a callback
wants the latents.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fastdiff.errors import InputError
from fastdiff.kernels.reference import TABLE_COLUMNS
from fastdiff.samplers import Callback, NoiseSource, StepTable, Threshold
from fastdiff.samplers.loop import check_run, start_sample
from fastdiff.targets.cuda.backend import Backend, Event
from fastdiff.targets.cuda.graphs import Buffer, Captured, GraphCache, Key, capture
from fastdiff.targets.cuda.tables import ScheduleRows, StepArrays, step_arrays
from fastdiff.targets.cuda.threshold import dynamic_threshold, table_threshold

__all__ = ["NOISE_BYTES", "DeviceLoop", "StepModule", "TableStep"]

Latents = NDArray[np.float32]

STEPS, SLOTS = 64, 4
"""What a captured loop holds at least; both double until a table fits."""
FEWEST_STEPS = 8
"""What it holds of noise however large that is."""
NOISE_BYTES = 256 << 20
"""Noise that is on the device at once. Tables with more run in several windows."""
_CHUNK = 8


class StepModule(Protocol):
    """A U-Net in stages. All three can be captured, see `fastdiff.targets.cuda.backend.Backend.capture`.

    ``dtype`` is that of the step's input and output.
    """

    dtype: torch.dtype

    def prompt(self, inputs: Mapping[str, Tensor]) -> Sequence[Tensor]:
        """What depends on ``inputs``, those besides sample and timestep, alone."""

    def schedule(self, timesteps: Tensor) -> Sequence[Tensor]:
        """What depends on the timesteps alone, for ``timesteps`` (S,) float32: tensors (S, …)."""

    def step(self, model_input: Tensor, prompt: Sequence[Tensor], rows: Sequence[Tensor]) -> Tensor:
        """The output for ``model_input`` (B, C, H, W), contiguous and of its shape.

        ``prompt`` is what ``prompt`` returned, ``rows`` the current step's rows of what ``schedule``
        returned, (1, …) each, for the whole batch. None of the three may be written to.
        """


class TableStep(Protocol):
    """`fastdiff.kernels.reference.table_step` in place: updates ``sample``, ``slots`` and ``model_input``."""

    def __call__(
        self,
        sample: Tensor,
        output: Tensor,
        slots: Tensor,
        rows: Tensor,
        saves: Tensor,
        counter: Tensor,
        guided: bool,
        noise: Tensor | None = None,
        rescale: Tensor | None = None,
        threshold: Tensor | None = None,
        *,
        model_input: Tensor,
    ) -> object:
        """Step ``counter`` of the table. ``model_input`` takes what the model sees next."""


@dataclass(frozen=True)
class _Form:
    """What a captured step does beside the coefficients."""

    guided: bool
    noisy: bool
    threshold: Threshold | None


@dataclass(eq=False)
class _Loop(Captured):
    """A captured loop for ``capacity`` steps at once and ``slots`` slots; ``prompt``: the module's inputs."""

    capacity: int = 0
    slots: int = 0
    prompt: dict[str, Buffer] = field(default_factory=dict)


class DeviceLoop:
    """Runs tables of any sampler and step count; captures once per shape of the latents and the prompt.

    Tables with more steps or slots than what was captured for a shape, see STEPS and SLOTS, capture again,
    larger.
    """

    def __init__(self, cache: GraphCache, module: StepModule, table_step: TableStep) -> None:
        self._cache = cache
        self._module = module
        self._table_step = table_step
        self._owner = object()
        self._sizes: dict[Key, tuple[int, int]] = {}  # capacity and slots by key

    def sample(
        self,
        table: StepTable,
        latents: Latents,
        inputs: Mapping[str, NDArray[Any]],
        guidance: float = 1.0,
        noise: NoiseSource | None = None,
        callback: Callback | None = None,
        chunk: int = 1,
    ) -> Latents:
        """What ``fastdiff.samplers.sample`` returns, within rounding, with the module as the denoiser.

        ``inputs`` have the batch of ``latents``, twice that where any step is guided: first without the
        prompt, then with it; a step whose guidance is 1 computes both halves then, too. ``callback`` is
        called after every ``chunk`` steps and after the last; its latents are valid until it returns. Without
        one the host does not wait for a step, and runs at most a few chunks ahead of the device, so that an
        interrupt ends the run soon.

        Noise is drawn ahead: after an exception the generator may be further than the steps were. Of tables
        that are not linear it runs those with one dynamic threshold for all steps. Raises InputError for the
        others, for what ``fastdiff.samplers.sample`` refuses, and for inputs of another batch.
        """
        check_run(table, latents, guidance, noise)
        guided = any(scale != 1 for scale in table.guidance_scales(guidance))
        _check_inputs(latents, inputs, guided, chunk)
        threshold = table_threshold(table)
        noisy = any(step.draws_noise for step in table.steps)
        sizes = tuple((name, array.shape, array.dtype.str) for name, array in sorted(inputs.items()))
        key: Key = (self._owner, latents.shape, guided, noisy, threshold, sizes)
        capacity, slots = self._room(key, table, latents.nbytes if noisy else 0)
        arrays = step_arrays(table, guidance, slots)
        latents = start_sample(table, latents, noise)
        if not table.steps:
            return latents

        def make() -> _Loop:
            return self._capture(key, latents.shape, inputs, _Form(guided, noisy, threshold), capacity, slots)

        def fits(loop: _Loop) -> bool:
            return (loop.capacity, loop.slots) == (capacity, slots)

        with self._cache.running(key, make, fits) as loop:
            try:
                for name, array in inputs.items():
                    loop.prompt[name].upload(array)
                loop.inputs["sample"].upload(latents)
                loop.inputs["first_scale"].upload(np.array([arrays.first_scale]))
                loop.graphs["start"].replay()
                self._steps(loop, arrays, noise if noisy else None, callback, chunk)
                sample = loop.inputs["sample"]
                sample.fetch()
            finally:
                # Also after an exception: the next run writes to memory that copies may still read.
                self._cache.backend.record().synchronize()
            return sample.array.copy()

    def close(self) -> None:
        """Free what was captured."""
        self._cache.close(self._owner)
        self._sizes.clear()

    def _room(self, key: Key, table: StepTable, nbytes: int) -> tuple[int, int]:
        """Capacity and slots for ``table``, and for the larger ones that there were before.

        ``nbytes``: of a step's noise.
        """
        capacity, slots = self._sizes.get(key, (STEPS, SLOTS))
        capacity, slots = (
            max(capacity, _doubled(STEPS, len(table.steps))),
            max(slots, _doubled(SLOTS, table.slots)),
        )
        while capacity > FEWEST_STEPS and capacity * nbytes > NOISE_BYTES:
            capacity //= 2
        self._sizes[key] = capacity, slots
        return capacity, slots

    def _steps(
        self,
        loop: _Loop,
        arrays: StepArrays,
        noise: NoiseSource | None,
        callback: Callback | None,
        chunk: int,
    ) -> None:
        """Launch all steps, in windows of as many as the captured tables hold."""
        backend = self._cache.backend
        sample, total = loop.inputs["sample"], len(arrays.rows)
        launched = _Launched(backend)
        uploaded: Event | None = None
        for begin in range(0, total, loop.capacity):
            end = min(begin + loop.capacity, total)
            if uploaded is not None:
                uploaded.synchronize()
            _upload(loop, arrays, begin, end, noise)
            uploaded = backend.record()
            loop.graphs["window"].replay()
            for done in range(begin + 1, end + 1):
                loop.graphs["step"].replay()
                launched.step()
                if callback is not None and (done % chunk == 0 or done == total):
                    sample.fetch()
                    backend.record().synchronize()
                    view = sample.array.view()
                    view.flags.writeable = False
                    callback(done, total, view)

    def _capture(
        self,
        key: Key,
        shape: tuple[int, ...],
        inputs: Mapping[str, NDArray[Any]],
        form: _Form,
        capacity: int,
        slots: int,
    ) -> _Loop:
        backend, module = self._cache.backend, self._module
        f32, i32 = torch.float32, torch.int32
        buffers = {
            "sample": Buffer(backend, shape, f32),
            "first_scale": Buffer(backend, (1,), f32),
            "rows": Buffer(backend, (capacity, len(TABLE_COLUMNS) + slots), f32),
            "saves": Buffer(backend, (capacity, 2), i32),
            "timesteps": Buffer(backend, (capacity,), f32),
        }
        if form.noisy:
            buffers["noise"] = Buffer(backend, (capacity, *shape), f32)
        given = {name: Buffer.like(backend, array) for name, array in inputs.items()}
        prompt_inputs = {name: buffer.tensor for name, buffer in given.items()}
        sample, first_scale, rows, saves, timesteps, *rest = (buffer.tensor for buffer in buffers.values())
        noise = rest[0] if rest else None
        history = backend.zeros((slots, *shape), f32)
        counter = backend.zeros((1,), i32)
        copies = 2 if form.guided else 1
        model_input = backend.zeros((copies * shape[0], *shape[1:]), module.dtype)
        prompt = [
            backend.zeros(tuple(value.shape), value.dtype)
            for value in backend.warm_up(lambda: module.prompt(prompt_inputs))
        ]
        schedule = ScheduleRows(backend, backend.warm_up(lambda: module.schedule(timesteps)))

        def start() -> None:
            history.zero_()
            model_input.view(copies, *shape).copy_(sample * first_scale)
            for static, value in zip(prompt, module.prompt(prompt_inputs), strict=True):
                static.copy_(value)

        def window() -> None:
            counter.zero_()
            schedule.fill(module.schedule(timesteps))

        def step() -> None:
            schedule.gather(counter)
            output = module.step(model_input, prompt, schedule.views)
            limits = None
            if form.threshold is not None:
                limits = dynamic_threshold(form.threshold, sample, output, rows, counter, form.guided)
            self._table_step(
                *(sample, output, history, rows, saves, counter, form.guided, noise),
                threshold=limits,
                model_input=model_input,
            )
            counter.add_(1)

        return _Loop(
            key,
            {
                name: capture(backend, body)
                for name, body in (("start", start), ("window", window), ("step", step))
            },
            {**buffers, **{f"prompt.{name}": buffer for name, buffer in given.items()}},
            {"sample": buffers["sample"]},
            [history, counter, model_input, *prompt, *schedule.tensors],
            capacity,
            slots,
            given,
        )


class _Launched:
    """Keeps the host from being more than two or three chunks ahead of the device."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self._count = 0
        self._events: deque[Event] = deque()

    def step(self) -> None:
        self._count += 1
        if self._count % _CHUNK == 0:
            self._events.append(self._backend.record())
            if len(self._events) > 2:
                self._events.popleft().synchronize()


def _upload(loop: _Loop, arrays: StepArrays, begin: int, end: int, noise: NoiseSource | None) -> None:
    """The tables of steps ``begin`` to ``end``, and their noise, drawn in the order of the steps."""
    for name in ("rows", "saves", "timesteps"):
        loop.inputs[name].upload(getattr(arrays, name)[begin:end])
    if noise is not None:
        buffer = loop.inputs["noise"]
        for drawn, draws in zip(buffer.array, arrays.draws[begin:end], strict=False):
            if draws:  # what is there otherwise has a coefficient of 0, and is noise or 0 itself
                noise.randn(drawn.shape, out=drawn)
        buffer.send(end - begin)


def _doubled(start: int, wanted: int) -> int:
    while start < wanted:
        start *= 2
    return start


def _check_inputs(latents: Latents, inputs: Mapping[str, NDArray[Any]], guided: bool, chunk: int) -> None:
    batch = len(latents) * (2 if guided else 1)
    for name, array in inputs.items():
        if len(array) != batch:
            raise InputError(f"{name} has a batch of {len(array)}, wanted {batch} for {len(latents)} latents")
    if chunk < 1:
        raise InputError(f"chunk is {chunk}, wanted 1 or more")
