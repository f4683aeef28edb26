"""Target ``cuda``: the fused graph on an NVIDIA GPU, with Triton's and CUDA C++ kernels, as CUDA graphs.

docs/cuda.md describes it. Opening a module reads its weights to the GPU and compiles nothing; shapes are
captured when they are first met.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING

from fastdiff.config import Precision
from fastdiff.errors import EngineDamagedError, TargetError
from fastdiff.manifest import ModuleEntry
from fastdiff.targets import Availability, Compiled, CompileOptions
from fastdiff.targets.gpu import find_gpus
from fastdiff.targets.session import Session

if TYPE_CHECKING:
    from fastdiff.build.capture import CapturedModule

__all__ = [
    "ANY_SIDES",
    "COMPUTES_IN",
    "NEEDS_GRAPH",
    "ON_GPU",
    "PRECISIONS",
    "SELF_CHECKING",
    "availability",
    "compile",
    "mismatch",
    "open",
]

NEEDS_GRAPH = True
PRECISIONS = (Precision.FP16, Precision.BF16, Precision.FP32)
COMPUTES_IN = (Precision.FP16, Precision.BF16)
ANY_SIDES = True
ON_GPU = True
SELF_CHECKING: tuple[str, ...] = ()

_PACKAGES = {"torch": "torch", "triton": "triton", "safetensors": "safetensors", "cuda.core": "cuda-core"}
"""Modules, and the packages that they are in. An engine's own kernels are launched through cuda.core."""
_INSTALL = "install them with: pip install 'fastdiff[cuda]'"
_OLDEST = (8, 0)


def availability() -> Availability:
    """Whether PyTorch for CUDA and Triton are installed and the first NVIDIA GPU is of 8.0 or newer.

    Imports neither; the driver is asked.
    """
    missing = [package for module, package in _PACKAGES.items() if not _is_there(module)]
    if missing:
        return Availability(False, f"not installed: {', '.join(missing)}", _INSTALL)
    gpus, reason = find_gpus()
    if not gpus:
        return Availability(False, reason, "use --target native on this machine")
    torch = importlib.metadata.version("torch")
    if torch.endswith("+cpu"):
        return Availability(
            False, f"PyTorch {torch} is built without CUDA", "install PyTorch for CUDA: pip install torch"
        )
    gpu = gpus[0]
    if _version(gpu.compute_capability) < _OLDEST:
        return Availability(
            False,
            f"{gpu.name} has compute capability {gpu.compute_capability}, wanted 8.0 or newer",
            "use --target native on this machine",
        )
    return Availability(True, f"{gpu.name}, torch {torch}, triton {importlib.metadata.version('triton')}")


def _is_there(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # of what it lies in
        return False


def _version(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split("."))


def mismatch(entry: ModuleEntry) -> str | None:
    """What a module was built for, when that is another kind of GPU than the first one here."""
    wanted = entry.requires.get("compute_capability")
    gpus, _ = find_gpus()
    if wanted is None or not gpus or gpus[0].compute_capability == wanted:
        return None
    return (
        f"{entry.requires.get('gpu', 'a GPU')} (compute capability {wanted}), this machine has "
        f"{gpus[0].name} ({gpus[0].compute_capability})"
    )


def compile(captured: CapturedModule, folder: Path, options: CompileOptions) -> Compiled:
    """Fuse, lower, keep halves in range, measure, choose and write ``<module>.cuda.*``.

    Raises CaptureError, NumericError and OutputError.
    """
    from fastdiff.targets.cuda.compiler import compile_module

    return compile_module(captured, folder, options)


def open(
    folder: Path, name: str, entry: ModuleEntry, threads: int | None, device: int | None = None
) -> Session:
    """Open a module on GPU number ``device``, None: the first. Raises TargetError or EngineDamagedError."""
    available = availability()
    if not available.ok:
        raise TargetError(f"target 'cuda' cannot run here: {available.reason}; {available.fix}")
    import torch

    from fastdiff.targets.cuda.session import open_session

    count = len(find_gpus()[0])
    if device is not None and not 0 <= device < count:
        raise TargetError(f"GPU {device}: there are {count}, numbered from 0")
    if not any(file == f"{name}.cuda.json" for file in entry.files):
        raise EngineDamagedError(f"{folder}: module {name} lists no .cuda.json; build the engine again")
    return open_session(folder, name, entry, torch.device("cuda", device or 0))
