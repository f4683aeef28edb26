"""Contestants on an NVIDIA GPU: PyTorch in three settings, and fastdiff's engines.

Weights, inputs and outputs stay on the device. The reference is PyTorch in fp32 with TensorFloat-32 off. The
kind ``step`` runs a loop of STEPS guided steps of Euler's method and counts each.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from fastdiff.bench.case import Job
from fastdiff.bench.parts import mapped_part
from fastdiff.bench.peers import PEERS, Arrays, Contestant, Engine, prepare_torch
from fastdiff.errors import InputError, TargetError
from fastdiff.samplers import Generator, NoiseSchedule, StepTable, make_table

__all__ = ["DEVICE", "GUIDANCE", "STEPS", "guided_steps", "open_gpu_contestant", "step_table"]

DEVICE = "cuda"
"""PyTorch's current GPU; tests run the same code on the CPU."""

STEPS = 10
GUIDANCE = 5.0

_SCHEDULE = {
    "_class_name": "EulerDiscreteScheduler",
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "num_train_timesteps": 1000,
    "prediction_type": "epsilon",
    "steps_offset": 1,
    "timestep_spacing": "leading",
}
"""Stable Diffusion's and SDXL's; the times do not depend on it."""


def step_table(steps: int = STEPS) -> StepTable:
    """The table that the kind ``step`` runs: linear in sample and output, without history and noise."""
    return make_table("euler", NoiseSchedule.from_config(_SCHEDULE), steps)


def guided_steps(
    model: Callable[[Any, float], Any], sample: Any, table: StepTable, guidance: float = GUIDANCE
) -> Any:
    """All steps of ``table`` as a pipeline writes them: a batch of both halves, combine, update.

    ``model`` takes the scaled sample [B, C, H, W] and a timestep, and gives [2 B, C, H, W], the unconditional
    half first. Works on anything with arithmetic.
    """
    for step in table.steps:
        scaled = step.input_scale * sample
        both = model(scaled, step.timestep)
        half = len(both) // 2
        output = both[:half] + guidance * (both[half:] - both[:half])
        sample = step.update.sample * sample + step.update.output * output
    return sample


def open_gpu_contestant(job: Job) -> Contestant:
    """The contestant of a case on a GPU. Raises TargetError where there is none, InputError for the name."""
    import torch

    if DEVICE == "cuda" and not torch.cuda.is_available():
        raise TargetError(f"{job.contestant}: PyTorch sees no NVIDIA GPU; measure with --devices cpu")
    if job.engine:
        return _GpuStepEngine(job) if job.case.kind == "step" else _GpuEngine(job)
    if job.contestant not in PEERS or "cuda" not in PEERS[job.contestant].devices:
        raise InputError(f"{job.contestant} is not measured on cuda")
    return _GpuStepTorch(job) if job.case.kind == "step" else _GpuTorch(job)


class _OnGpu:
    """Placing and waiting, for contestants whose outputs are tensors."""

    def fetch(self, outputs: Any) -> Arrays:
        return {
            name: value.float().cpu().numpy() if hasattr(value, "cpu") else np.asarray(value)
            for name, value in outputs.items()
        }

    def wait(self) -> None:
        import torch

        if DEVICE == "cuda":
            torch.cuda.synchronize()


class _GpuTorch(_OnGpu, Contestant):
    """The library's module under PyTorch in the case's precision."""

    def __init__(self, job: Job) -> None:
        import torch

        from fastdiff.build.modules import module_spec

        torch.set_num_threads(job.threads)
        torch.backends.cudnn.benchmark = True
        torch.backends.cudnn.allow_tf32 = False
        torch.backends.cuda.matmul.allow_tf32 = False
        self.job, self.torch = job, torch
        self.module: Any = None
        self.spec = module_spec(job.case.module, job.model)
        self.dtype = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}[
            job.case.precision
        ]
        self.nhwc = job.contestant != "torch"

    def load(self) -> None:
        self.module = None
        part = mapped_part(self.job.folder, self.spec.part)
        module: Any = self.spec.wrap(part).to(DEVICE, self.dtype)
        self.module = prepare_torch(module, self.job.contestant, "cuda")

    def place(self, inputs: Arrays) -> Any:
        return {tensor.name: self.tensor(inputs[tensor.name]) for tensor in self.spec.inputs}

    def tensor(self, array: Any) -> Any:
        """Pictures and hidden states in the case's precision, timesteps and sizes in float32."""
        value = self.torch.from_numpy(np.ascontiguousarray(array)).to(DEVICE)
        if value.ndim > 2 and value.is_floating_point():
            value = value.to(self.dtype)
        if value.ndim == 4 and self.nhwc:
            value = value.contiguous(memory_format=self.torch.channels_last)
        return value

    def begin(self) -> None:
        """Tell Inductor's CUDA graphs that the outputs of the call before are no longer needed."""
        if self.job.contestant == "inductor":
            mark: Any = self.torch.compiler.cudagraph_mark_step_begin
            mark()

    def run(self, inputs: Any) -> Any:
        with self.torch.no_grad():
            self.begin()
            results = self.module(*inputs.values())
        results = results if isinstance(results, tuple) else (results,)
        return {out.name: value for out, value in zip(self.spec.outputs, results, strict=True)}


class _GpuStepTorch(_GpuTorch):
    """A loop of steps, with timesteps that lie on the device before it starts."""

    steps = STEPS

    def place(self, inputs: Arrays) -> Any:
        placed = super().place(inputs)
        table = step_table()
        batch = len(inputs["sample"])
        placed["sample"] = self.torch.from_numpy(_start(inputs, table)).to(DEVICE)
        self.table = table
        self.timesteps = {
            step.timestep: self.torch.full((batch,), step.timestep, device=DEVICE) for step in table.steps
        }
        return placed

    def run(self, inputs: Any) -> Any:
        rest = [value for name, value in inputs.items() if name not in ("sample", "timestep")]

        def model(scaled: Any, timestep: float) -> Any:
            both = self.torch.cat([scaled, scaled]).to(self.dtype)
            if self.nhwc:
                both = both.contiguous(memory_format=self.torch.channels_last)
            self.begin()
            return self.module(both, self.timesteps[timestep], *rest).float()

        with self.torch.no_grad():
            return {"sample": guided_steps(model, inputs["sample"], self.table)}


class _GpuEngine(_OnGpu, Engine):
    """A module of an engine: tensors on the device where its session takes them, else arrays of the host,
    whose copies count.
    """

    def place(self, inputs: Arrays) -> Any:
        import torch

        self.on_device = bool(getattr(self.session, "takes_tensors", False))
        if not self.on_device:
            return inputs
        arrays = self.session.check(inputs)
        return {name: torch.from_numpy(array).to(DEVICE) for name, array in arrays.items()}

    def run(self, inputs: Any) -> Any:
        return self.session.run_tensors(inputs) if self.on_device else self.session(**inputs)


class _GpuStepEngine(_OnGpu, Engine):
    """The engine's own loop, or that of fastdiff.samplers where its target has none."""

    steps = STEPS

    def place(self, inputs: Arrays) -> Any:
        table = step_table()
        rest = {name: array for name, array in inputs.items() if name not in ("sample", "timestep")}
        return {"table": table, "start": _start(inputs, table), "rest": rest}

    def run(self, inputs: Any) -> Any:
        table, start, rest = inputs["table"], inputs["start"], inputs["rest"]
        if self.session.has_loop:
            # no callback: nobody waits for the latents of a step
            latents = self.session.sample(table, start, rest, GUIDANCE, Generator(0), None)
        else:

            def model(scaled: Any, timestep: float) -> Any:
                both = np.concatenate([scaled, scaled]).astype(np.float32)
                return self.session(sample=both, timestep=np.float32(timestep), **rest)["sample"]

            latents = guided_steps(model, start, table)
        return {"sample": latents}


def _start(inputs: Arrays, table: StepTable) -> Any:
    """The first half of the module's sample as the loop's unit noise."""
    sample = inputs["sample"]
    half = sample[: len(sample) // 2]
    return np.ascontiguousarray(half * np.float32(table.init_noise_sigma), dtype=np.float32)
