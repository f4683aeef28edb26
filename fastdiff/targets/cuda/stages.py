"""A module's graph as the loop and single calls want it: functions of tensors that can be captured."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from fastdiff.kernels.reference import TABLE_COLUMNS
from fastdiff.targets.cuda.executor import Executor

__all__ = ["Stages", "record_steps", "table_step_on"]

_SAMPLE, _TIMESTEP = "sample", "timestep"


class Stages:
    """The three stages of a U-Net (docs/native.md), and any module as a whole."""

    def __init__(self, executor: Executor) -> None:
        graph = executor.graph
        self._executor = executor
        self._inputs = {graph.values[value].name: value for value in graph.inputs}
        self._sizes: dict[str, int] = {}
        """Of the prompt that was seen last: the step's graph is captured after the prompt's."""
        if _SAMPLE in self._inputs:
            self.dtype = executor.dtypes[self._inputs[_SAMPLE]]
        in_step = {value for node in graph.nodes if node.stage == "step" for value in node.inputs}
        given = [
            value
            for name, value in self._inputs.items()
            if name not in (_SAMPLE, _TIMESTEP) and value in in_step
        ]
        self._prompt = [*given, *sorted(executor.crossing(("prompt",)))]
        self._schedule = sorted(executor.crossing(("schedule",)))
        if _TIMESTEP in self._inputs and self._inputs[_TIMESTEP] in in_step:
            self._schedule.insert(0, self._inputs[_TIMESTEP])

    def prompt(self, inputs: Mapping[str, Tensor]) -> Sequence[Tensor]:
        """What depends on the prompt alone, and what of ``inputs`` the steps read themselves."""
        values = {self._inputs[name]: tensor for name, tensor in inputs.items()}
        self._sizes = self._executor.sizes_of(values)
        self._executor.run(values, self._sizes, ("prompt",))
        return [values[value] for value in self._prompt]

    def schedule(self, timesteps: Tensor) -> Sequence[Tensor]:
        """What depends on the timestep alone, for all of them as one batch: (S, …) each."""
        values = {self._inputs[_TIMESTEP]: timesteps}
        self._executor.run(values, {"batch": len(timesteps)}, ("schedule",))
        return [values[value] for value in self._schedule]

    def step(self, model_input: Tensor, prompt: Sequence[Tensor], rows: Sequence[Tensor]) -> Tensor:
        """The output (B, C, H, W), contiguous. ``rows`` are one step's, (1, …), for the whole batch."""
        batch = len(model_input)
        values = {self._inputs[_SAMPLE]: model_input}
        values.update(zip(self._prompt, prompt, strict=True))
        for value, row in zip(self._schedule, rows, strict=True):
            values[value] = row.expand(batch, *row.shape[1:])
        sizes = {**self._sizes, **self._executor.sizes_of(values)}
        self._executor.run(values, sizes, ("step",))
        (output,) = self._executor.graph.outputs
        return values[output].contiguous()

    def whole(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """All stages: outputs by name from inputs by name."""
        graph = self._executor.graph
        values = {self._inputs[name]: tensor for name, tensor in inputs.items()}
        self._executor.run(values, self._executor.sizes_of(values))
        return {graph.values[value].name: values[value] for value in graph.outputs}

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self._executor.device

    @property
    def has_steps(self) -> bool:
        """Whether the loop can run it: it takes a sample and a timestep."""
        return _SAMPLE in self._inputs and _TIMESTEP in self._inputs


def table_step_on(device: torch.device) -> Any:
    """What computes a table's step on a device: Triton's kernel on a GPU."""
    if device.type != "cuda":
        return _on_cpu
    from fastdiff.kernels.triton.table_step import table_step

    return table_step


def record_steps(stages: Stages) -> None:
    """Launch the step of a table in all its forms, so that its binaries are recorded with a U-Net's."""
    if not stages.has_steps or stages.device.type != "cuda":
        return
    step = table_step_on(stages.device)
    for guided, noisy, thresholded in itertools.product((False, True), repeat=3):
        sample, slots, noise = (torch.zeros(shape, device=stages.device) for shape in _SHAPES)
        output = torch.zeros(1 + guided, *_SHAPES[0][1:], device=stages.device, dtype=stages.dtype)
        rows = torch.zeros(1, len(TABLE_COLUMNS) + len(slots), device=stages.device)
        saves, counter = (
            torch.zeros(shape, device=stages.device, dtype=torch.int32) for shape in ((1, 2), (1,))
        )
        model_input = torch.empty_like(output)
        step(
            *(sample, output, slots, rows, saves, counter, guided, noise if noisy else None),
            threshold=torch.ones(1, device=stages.device) if thresholded else None,
            model_input=model_input,
        )


_SHAPES = ((1, 4, 8, 8), (1, 1, 4, 8, 8), (1, 1, 4, 8, 8))
"""Of a sample, slots and noise to launch kernels with; no size of theirs is specialised on."""


def _on_cpu(*arguments: Any, threshold: Tensor | None = None, model_input: Tensor) -> None:
    """The registered op with the kernel's signature, for engines that run on the CPU in tests."""
    from fastdiff.kernels.library import table_step_

    model_input.copy_(table_step_(*arguments, threshold=threshold))
