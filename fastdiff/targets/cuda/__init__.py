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
from fastdiff.targets.session import Session

if TYPE_CHECKING:
    from fastdiff.build.capture import CapturedModule

__all__ = ["NEEDS_GRAPH", "PRECISIONS", "SELF_CHECKING", "availability", "compile", "mismatch", "open"]

NEEDS_GRAPH = True
PRECISIONS = (Precision.FP16, Precision.BF16, Precision.FP32)
SELF_CHECKING: tuple[str, ...] = ()

_PACKAGES = ("torch", "triton", "safetensors")
_INSTALL = "install them with: pip install 'fastdiff[cuda]'"
_OLDEST = (8, 0)


def availability() -> Availability:
    """Whether PyTorch and Triton are installed and an NVIDIA GPU of compute capability 8.0 or newer is there.

    Imports PyTorch only where the NVIDIA driver is installed.
    """
    missing = [name for name in _PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        return Availability(False, f"not installed: {', '.join(missing)}", _INSTALL)
    if not Path("/proc/driver/nvidia").exists() and not Path("/dev/nvidiactl").exists():
        return Availability(
            False, "there is no NVIDIA GPU, or no driver for it", "use --target native on this machine"
        )
    import torch

    if not torch.cuda.is_available():
        return Availability(
            False,
            f"PyTorch {torch.__version__} finds no GPU",
            "install a build of PyTorch for CUDA, or check nvidia-smi",
        )
    capability = torch.cuda.get_device_capability()
    name = torch.cuda.get_device_name()
    if capability < _OLDEST:
        found = ".".join(map(str, capability))
        return Availability(
            False, f"{name} has compute capability {found}, wanted 8.0 or newer", "use --target native"
        )
    versions = ", ".join(f"{package} {importlib.metadata.version(package)}" for package in _PACKAGES[:2])
    return Availability(True, f"{name}, {versions}")


def mismatch(entry: ModuleEntry) -> str | None:
    """What a module was built for, when that is another kind of GPU than the current one."""
    import torch

    wanted = entry.requires.get("compute_capability")
    found = ".".join(map(str, torch.cuda.get_device_capability()))
    if wanted is None or wanted == found:
        return None
    return (
        f"{entry.requires.get('gpu', 'a GPU')} (compute capability {wanted}), this machine has "
        f"{torch.cuda.get_device_name()} ({found})"
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

    count = torch.cuda.device_count()
    if device is not None and not 0 <= device < count:
        raise TargetError(f"GPU {device}: there are {count}, numbered from 0")
    if not any(file == f"{name}.cuda.json" for file in entry.files):
        raise EngineDamagedError(f"{folder}: module {name} lists no .cuda.json; build the engine again")
    return open_session(folder, name, entry, torch.device("cuda", device or 0))
