"""Who is measured: fastdiff's engines and the stacks that users could pick instead, at their best settings.

Every peer gets the sizes of the case as constants where it can use them, all its optimisations, float32 and
the same number of threads. Importing this module imports none of them.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import shutil
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from fastdiff.bench.case import Job
from fastdiff.bench.parts import mapped_part
from fastdiff.errors import InputError, TargetError

__all__ = ["PEERS", "Contestant", "Engine", "Peer", "is_peer", "missing", "open_module_contestant", "version"]

Arrays = dict[str, NDArray[Any]]


@dataclass(frozen=True)
class Peer:
    """A stack to compare with: the packages it needs, how it is set up, and how much memory it takes.

    ``weights`` is an upper estimate of its resident memory as a multiple of the fp32 weights while it loads.
    ``pictures`` names the kinds of cases with whole pictures that it has a pipeline for, diffusers';
    ``devices`` where it is measured: ONNX Runtime and TensorRT on a GPU are targets of fastdiff.
    """

    packages: tuple[str, ...]
    about: str
    weights: float
    pictures: tuple[str, ...] = ()
    onnx: bool = False
    devices: tuple[str, ...] = ("cpu",)


_TORCH = ("torch", "transformers")
_BOTH = ("cpu", "cuda")

PEERS: Mapping[str, Peer] = {
    "torch": Peer(_TORCH, "PyTorch eager, NCHW", 1.2, pictures=("picture", "cold"), devices=_BOTH),
    "torch-channels-last": Peer(
        _TORCH, "PyTorch eager, NHWC weights and inputs", 2.2, pictures=("picture", "cold"), devices=_BOTH
    ),
    # no cold pictures: every process would compile for minutes, which the modules' cold starts show
    "inductor": Peer(
        _TORCH,
        "torch.compile, fixed sizes: with freezing; on a GPU max-autotune, NHWC, its own CUDA graphs",
        3.5,
        pictures=("picture",),
        devices=_BOTH,
    ),
    "onnxruntime": Peer(("onnxruntime",), "ONNX Runtime, all optimisations, fixed sizes", 2.5, onnx=True),
    "openvino": Peer(("openvino",), "OpenVINO, latency mode, float32, fixed sizes", 2.5, onnx=True),
}
"""The peers, in the order in which they are measured."""

ENGINE_WEIGHTS = 2.5
"""What ``Peer.weights`` says, for fastdiff's own engines."""


def is_peer(name: str) -> bool:
    """Whether a contestant is somebody else's stack, not an engine of fastdiff."""
    return name in PEERS


def missing(name: str, device: str = "cpu", pictures: bool = False) -> str:
    """Why a peer cannot be measured here and how to change that; empty when it can."""
    if device not in PEERS[name].devices:
        return f"not measured on {device}"
    packages = (*PEERS[name].packages, *(("diffusers",) if pictures else ()))
    absent = [package for package in packages if importlib.util.find_spec(package) is None]
    if absent:
        return f"{', '.join(absent)} not installed: pip install 'fastdiff[bench]'"
    if name == "inductor" and not any(shutil.which(compiler) for compiler in ("g++", "clang++", "c++")):
        return "no C++ compiler found: install g++ or clang++"
    return ""


def version(name: str) -> str:
    """The version of the package that a peer is named after."""
    try:
        return importlib.metadata.version(PEERS[name].packages[0])
    except importlib.metadata.PackageNotFoundError:
        return ""


class Contestant(ABC):
    """One way to compute a case. ``load`` gets it ready, ``run`` computes; both are timed from outside.

    Before the first ``run`` its inputs are placed where it computes, after the last one its outputs fetched;
    neither is timed, ``wait`` for what is still being computed is.
    """

    steps = 1
    """How many of what the case times one ``run`` makes."""

    @abstractmethod
    def load(self) -> None:
        """Open it on the job's files, dropping what an earlier ``load`` opened."""

    @abstractmethod
    def run(self, inputs: Any) -> Any:
        """Outputs by name, from placed inputs."""

    def place(self, inputs: Arrays) -> Any:
        """The inputs as ``run`` takes them."""
        return inputs

    def fetch(self, outputs: Any) -> Arrays:
        """What ``run`` gave, as arrays."""
        arrays: Arrays = outputs
        return arrays

    def wait(self) -> None:  # noqa: B027 (nothing to wait for where run computes)
        """Return once everything is computed."""


def open_module_contestant(job: Job) -> Contestant:
    """The contestant of a module's job on the CPU. Raises as `fastdiff.bench.contestants.open_contestant`."""
    if job.engine:
        return Engine(job)
    if job.contestant not in PEERS:
        raise InputError(f"unknown contestant {job.contestant!r}: known are {', '.join(PEERS)}")
    if reason := missing(job.contestant):
        raise TargetError(f"{job.contestant}: {reason}")
    match job.contestant:
        case "onnxruntime":
            return _OnnxRuntime(job)
        case "openvino":
            return _OpenVino(job)
    return _Torch(job)


class Engine(Contestant):
    """A module of an engine folder, whose target imports what it needs when it is opened."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self.session: Any = None

    def load(self) -> None:
        """Open it, closing what was open."""
        from fastdiff.engine_dir import open_engine

        if self.session is not None:
            self.session.close()
            self.session = None
        # hashes are checked by what loads a whole engine; here the module's own opening is measured
        engine = open_engine(self.job.engine, verify_hashes=False)
        self.session = engine.open_module(self.job.case.module, self.job.threads)

    def run(self, inputs: Arrays) -> Arrays:
        """One call."""
        results: Arrays = self.session(**inputs)
        return results


class _Torch(Contestant):
    """The library's module under PyTorch: eager in either memory format, or compiled and frozen."""

    def __init__(self, job: Job) -> None:
        import torch
        import transformers

        del transformers
        from fastdiff.build.modules import module_spec

        torch.set_num_threads(job.threads)
        self.job = job
        self.module: Any = None
        self.spec = module_spec(job.case.module, job.model)

    def load(self) -> None:
        self.module = None
        part = mapped_part(self.job.folder, self.spec.part)
        self.module = prepare_torch(self.spec.wrap(part), self.job.contestant)

    def run(self, inputs: Arrays) -> Arrays:
        import torch

        tensors = [torch.from_numpy(inputs[tensor.name]) for tensor in self.spec.inputs]
        if self.job.contestant == "torch-channels-last":
            layout = torch.channels_last
            tensors = [t.contiguous(memory_format=layout) if t.ndim == 4 else t for t in tensors]
        # inductor freezes only what needs no gradients, and knows no_grad better than inference_mode
        with torch.no_grad():
            results = self.module(*tensors)
        results = results if isinstance(results, tuple) else (results,)
        return {
            out.name: value.contiguous().numpy()
            for out, value in zip(self.spec.outputs, results, strict=True)
        }


def prepare_torch(module: Any, contestant: str, device: str = "cpu") -> Any:
    """A torch module as ``torch``, ``torch-channels-last`` or ``inductor`` runs it."""
    import torch

    if contestant == "inductor" and device == "cuda":
        module = module.to(memory_format=torch.channels_last)
        return torch.compile(module, mode="max-autotune", dynamic=False)
    if contestant == "torch-channels-last":
        return module.to(memory_format=torch.channels_last)
    if contestant == "inductor":
        return torch.compile(module, dynamic=False, options={"freezing": True})
    return module


class _OnnxRuntime(Contestant):
    def __init__(self, job: Job) -> None:
        import onnxruntime  # type: ignore[import-untyped, unused-ignore]

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = job.threads
        options.inter_op_num_threads = 1
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
        options.log_severity_level = 4
        for symbol, size in job.case.sizes(job.model).items():
            options.add_free_dimension_override_by_name(symbol, size)
        self.path, self.options = job.onnx, options
        self.session: Any = None
        self.create: Any = onnxruntime.InferenceSession

    def load(self) -> None:
        self.session = None
        self.session = self.create(self.path, self.options, providers=["CPUExecutionProvider"])

    def run(self, inputs: Arrays) -> Arrays:
        names = [item.name for item in self.session.get_inputs()]
        outputs = [item.name.removeprefix("out_") for item in self.session.get_outputs()]
        return dict(zip(outputs, self.session.run(None, {n: inputs[n] for n in names}), strict=True))


class _OpenVino(Contestant):
    def __init__(self, job: Job) -> None:
        import openvino

        self.job, self.openvino = job, openvino
        self.model: Any = None

    def load(self) -> None:
        from fastdiff.build.modules import module_spec

        self.model = None
        core = self.openvino.Core()
        model = core.read_model(Path(self.job.onnx))
        spec = module_spec(self.job.case.module, self.job.model)
        sizes = self.job.case.sizes(self.job.model)
        model.reshape({tensor.name: list(tensor.concrete(sizes)) for tensor in spec.inputs})
        self.outputs = [out.name for out in spec.outputs]
        options = {
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_NUM_THREADS": self.job.threads,
            "NUM_STREAMS": 1,
            # the CPU plugin takes bfloat16 by itself where the processor has it
            "INFERENCE_PRECISION_HINT": "f32",
        }
        self.model = core.compile_model(model, "CPU", options)

    def run(self, inputs: Arrays) -> Arrays:
        results = self.model(inputs)
        return {name: results[index] for index, name in enumerate(self.outputs)}
