"""Target ``tensorrt``: modules as TensorRT plans, for one kind of GPU and one version of TensorRT.

docs/tensorrt.md describes it for users. ``api.py`` and ``device.py`` hold all use of TensorRT and CUDA; the
rest of the folder knows them by ``interface.py`` alone.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastdiff.config import Precision
from fastdiff.errors import EngineDamagedError, EngineMismatchError, TargetError
from fastdiff.manifest import ModuleEntry
from fastdiff.targets import Availability, Compiled, CompileOptions
from fastdiff.targets.session import Session

if TYPE_CHECKING:
    from fastdiff.build.capture import CapturedModule
    from fastdiff.targets.tensorrt.adapters import Adapters
    from fastdiff.targets.tensorrt.interface import Engine

__all__ = [
    "COMPUTES_IN",
    "NEEDS_GRAPH",
    "PRECISIONS",
    "SELF_CHECKING",
    "availability",
    "compile",
    "mismatch",
    "open",
    "refit",
]

NEEDS_GRAPH = True
PRECISIONS = (Precision.FP16, Precision.FP32)
COMPUTES_IN = (Precision.FP16,)
ON_GPU = True
SELF_CHECKING = (".weights.safetensors",)

_OLDEST, _NEWEST = (10, 1), 11
"""Versions of TensorRT that api.py is written for: from the first to all of the second."""


def availability() -> Availability:
    """Whether TensorRT of a known version, cuda-python and an NVIDIA GPU are here."""
    from fastdiff.targets.tensorrt import backend

    install = "install them with: pip install 'fastdiff[tensorrt]'"
    if missing := backend.missing_packages():
        return Availability(False, f"not installed: {', '.join(missing)}", install)
    version = backend.version()
    if version and not (_OLDEST <= tuple(map(int, version.split(".")[:2])) < (_NEWEST + 1,)):
        wanted = f"{'.'.join(map(str, _OLDEST))} to {_NEWEST}"
        fix = f"install one with: pip install 'tensorrt>={_OLDEST[0]}.{_OLDEST[1]},<{_NEWEST + 1}'"
        return Availability(False, f"TensorRT is {version}, {wanted} are supported", fix)
    gpus, reason = backend.gpus()
    if not gpus:
        return Availability(False, reason, "use it on a machine with an NVIDIA GPU and its driver")
    return Availability(True, f"TensorRT {version or 'of unknown version'} on {gpus[0].name}")


def compile(captured: CapturedModule, folder: Path, options: CompileOptions) -> Compiled:
    """Export to ONNX and build the plan for this machine's first GPU. Raises CaptureError and TargetError."""
    from fastdiff.targets.tensorrt.compiler import compile_module

    return compile_module(captured, folder, options)


def refit(captured: CapturedModule, old: Path, folder: Path, entry: ModuleEntry) -> tuple[str, ...]:
    """Write the module's files of the engine ``old`` with other weights to ``folder``; their names.

    Raises CaptureError and TargetError.
    """
    from fastdiff.targets.tensorrt.compiler import refit_module

    return refit_module(captured, old, folder, entry)


def mismatch(entry: ModuleEntry) -> str | None:
    """What an entry was built for and what is here instead; None where a GPU of this machine fits."""
    from fastdiff.targets.tensorrt import backend

    wanted, version = entry.requires, backend.version()
    if wanted.get("tensorrt") != version:
        return f"TensorRT {wanted.get('tensorrt')}, here is {version or 'one of unknown version'}"
    gpus, _ = backend.gpus()
    if any(_fits(entry, index) for index in range(len(gpus))):
        return None
    here = ", ".join(f"{gpu.name} (compute capability {gpu.compute_capability})" for gpu in gpus) or "no GPU"
    return f"{wanted.get('gpu')} (compute capability {wanted.get('compute_capability')}), here is {here}"


def open(
    folder: Path, name: str, entry: ModuleEntry, threads: int | None, device: int | None = None
) -> Session:
    """Open a plan on GPU number ``device``, None being the first that it was built for.

    ``threads`` has no meaning. Raises TargetError, EngineMismatchError or EngineDamagedError.
    """
    available = availability()
    if not available.ok:
        raise TargetError(f"target 'tensorrt' cannot run here: {available.reason}; {available.fix}")
    from fastdiff.targets.tensorrt import backend
    from fastdiff.targets.tensorrt.adapters import open_adapters
    from fastdiff.targets.tensorrt.compiler import load_api, plan_of
    from fastdiff.targets.tensorrt.interface import TensorRtError
    from fastdiff.targets.tensorrt.memory import shared_memory
    from fastdiff.targets.tensorrt.session import TensorRtSession

    index = _device_for(folder, name, entry, device)
    plan = plan_of(entry)
    profiles, outputs = _tactics(entry)
    if plan is None or not profiles or len(outputs) != len(entry.outputs):
        raise EngineDamagedError(f"{folder}: module {name} lists no plan and profiles; build it again")
    gpu = backend.device(index)
    memory, api = shared_memory(folder, index, gpu), load_api()
    try:
        with memory.lock, gpu.active():
            engine = api.load(folder / plan)
    except TensorRtError as error:
        raise EngineDamagedError(f"{folder}: TensorRT refuses {plan} ({error}); build it again") from error
    expected = {spec.name: spec.dtype for spec in entry.inputs}
    expected |= {tensor: spec.dtype for tensor, spec in zip(outputs, entry.outputs, strict=True)}
    if dict(engine.tensors) != expected:
        raise EngineDamagedError(
            f"{folder}: {plan} has the tensors {dict(engine.tensors)}, not {expected}; build it again"
        )

    def adapters(opened: Engine) -> Adapters:
        return open_adapters(folder, name, entry, api, opened, memory)

    return TensorRtSession(name, entry, engine, memory, profiles, outputs, adapters)


def _device_for(folder: Path, name: str, entry: ModuleEntry, device: int | None) -> int:
    """The number of the GPU to open on. Raises EngineMismatchError."""
    from fastdiff.targets.tensorrt import backend

    if (reason := mismatch(entry)) is not None:
        raise EngineMismatchError(f"{folder}: {name} was built for {reason}; build it here")
    gpus, _ = backend.gpus()
    fitting = [index for index in range(len(gpus)) if _fits(entry, index)]
    if device is None:
        return fitting[0]
    if device not in fitting:
        found = f"GPU {device} is {gpus[device].name}" if device < len(gpus) else f"there is no GPU {device}"
        raise EngineMismatchError(
            f"{folder}: {name} was built for {entry.requires['gpu']}, {found}:"
            f" use GPU {', '.join(map(str, fitting))}"
        )
    return device


def _fits(entry: ModuleEntry, index: int) -> bool:
    from fastdiff.targets.tensorrt import backend
    from fastdiff.targets.tensorrt.compiler import requirements

    return requirements(backend.gpus()[0][index]).items() <= entry.requires.items()


def _tactics(entry: ModuleEntry) -> tuple[list[Any], list[str]]:
    """Profiles and output names; empty where the manifest's are not what ``compile`` writes."""
    profiles, outputs = entry.tactics.get("profiles"), entry.tactics.get("outputs")
    if not isinstance(profiles, list) or not isinstance(outputs, list):
        return [], []
    for profile in profiles:
        if not isinstance(profile, dict) or profile.keys() != entry.shapes.keys():
            return [], []
        if not all(isinstance(sizes, list) and len(sizes) == 3 for sizes in profile.values()):
            return [], []
    return profiles, [str(name) for name in outputs]
