"""What this machine can run: processor, memory, GPUs, targets, libraries. Imports no vendor library."""

from __future__ import annotations

import contextlib
import importlib
import importlib.metadata
import importlib.util
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from fastdiff._version import __version__

__all__ = ["Gpu", "Report", "examine", "find_gpus"]

_INSTRUCTION_SETS = (
    # x86-64, as /proc/cpuinfo names them, in the order in which they appeared
    *("sse4_2", "avx", "f16c", "fma", "avx2", "avx512f", "avx512bw", "avx512dq", "avx512vl", "avx512_vnni"),
    *("avx512_bf16", "avx512_fp16", "avx_vnni", "amx_tile", "amx_bf16", "amx_int8", "amx_fp16"),
    # Arm
    *("asimd", "asimdhp", "asimddp", "bf16", "i8mm", "sve", "sve2"),
)
_LIBRARIES = {
    "runs engines": ("numpy", "pillow", "safetensors", "tokenizers", "tqdm"),
    "builds engines": ("torch", "diffusers", "transformers", "onnx", "onnxscript"),
    "targets": ("onnxruntime", "onnxruntime-gpu", "tensorrt", "triton", "cuda-python"),
}


@dataclass(frozen=True)
class Gpu:
    """One NVIDIA GPU as its driver describes it; what the driver does not tell is empty."""

    name: str
    memory: str = ""
    driver: str = ""
    compute_capability: str = ""


@dataclass(frozen=True)
class Report:
    """What ``fastdiff doctor`` prints. ``problems`` says what keeps fastdiff from working and the cure."""

    fastdiff: str
    python: str
    system: str
    cpu: dict[str, Any]
    memory: dict[str, int]
    gpus: tuple[Gpu, ...]
    gpu_note: str
    gpu_software: dict[str, dict[str, Any]]
    targets: dict[str, dict[str, Any]]
    libraries: dict[str, dict[str, str | None]]
    temporary_folder: dict[str, Any]
    problems: tuple[str, ...] = field(default=())

    def as_json(self) -> dict[str, Any]:
        """The report as nested plain values."""
        return asdict(self)


def examine() -> Report:
    """Look at this machine. Whatever cannot be found out is reported as unknown; nothing is raised."""
    cpu = _cpu()
    targets = _targets()
    temporary = _temporary_folder()
    gpus, note = find_gpus()
    libraries = {purpose: {name: _version(name) for name in names} for purpose, names in _LIBRARIES.items()}
    problems = []
    if "error" in cpu:
        problems.append(f"the compiled part cannot be used: {cpu['error']}")
    problems += [
        f"{name} is missing: pip install {name}"
        for name, version in libraries["runs engines"].items()
        if not version
    ]
    if not any(target["ok"] for target in targets.values()):
        problems.append("no target works here: pip install --force-reinstall fastdiff")
    if not temporary["writable"]:
        problems.append(f"{temporary['path']} cannot be written: set TMPDIR to a folder that can")
    return Report(
        fastdiff=__version__,
        python=f"{platform.python_implementation()} {platform.python_version()} at {sys.executable}",
        system=f"{platform.system()} {platform.release()} {platform.machine()}",
        cpu=cpu,
        memory=_memory(),
        gpus=gpus,
        gpu_note=note,
        gpu_software=_gpu_software(),
        targets=targets,
        libraries=libraries,
        temporary_folder=temporary,
        problems=tuple(problems),
    )


def _cpu() -> dict[str, Any]:
    """Name, cores, instruction sets, and what the kernels of ``fastdiff._C`` make of them."""
    fields: dict[str, str] = {}
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            key, _, value = line.partition(":")
            fields.setdefault(key.strip(), value.strip())
    flags = set((fields.get("flags") or fields.get("Features") or "").split())
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    cpu: dict[str, Any] = {
        "name": fields.get("model name") or platform.processor() or platform.machine() or "unknown",
        "cores": os.cpu_count(),
        "usable_cores": usable,
        "instruction_sets": [name for name in _INSTRUCTION_SETS if name in flags],
    }
    try:
        compiled = importlib.import_module("fastdiff._C")
        cpu["kernels"] = {"chosen": compiled.isa(), "available": compiled.available_isas()}
        if override := os.environ.get("FASTDIFF_ISA"):
            cpu["kernels"]["override"] = override
    except Exception as error:  # noqa: BLE001 (whatever it is, it belongs into the report)
        cpu["error"] = f"{' '.join(str(error).split())}; run: pip install --force-reinstall fastdiff"
    return cpu


def _memory() -> dict[str, int]:
    """Bytes of memory in all and available; empty where /proc is missing."""
    memory: dict[str, int] = {}
    with contextlib.suppress(OSError, ValueError):
        for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
            key, value = line.split(":")
            if key in ("MemTotal", "MemAvailable"):
                memory["total" if key == "MemTotal" else "available"] = int(value.split()[0]) * 1024
    return memory


def find_gpus() -> tuple[tuple[Gpu, ...], str]:
    """NVIDIA GPUs from nvidia-smi, or from /proc where only the driver is there; and what is missing."""
    tool = shutil.which("nvidia-smi")
    if tool is not None:
        query = "name,memory.total,driver_version,compute_cap"
        with contextlib.suppress(OSError, subprocess.SubprocessError):
            command = [tool, f"--query-gpu={query}", "--format=csv,noheader"]
            run = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
            rows = [
                [cell.strip() for cell in line.split(",")] for line in run.stdout.splitlines() if line.strip()
            ]
            return tuple(Gpu(*row[:4]) for row in rows), ""
    gpus = []
    for information in sorted(Path("/proc/driver/nvidia/gpus").glob("*/information")):
        with contextlib.suppress(OSError):
            for line in information.read_text(encoding="utf-8", errors="replace").splitlines():
                key, _, value = line.partition(":")
                if key.strip() == "Model":
                    gpus.append(Gpu(value.strip()))
    if gpus:
        return tuple(gpus), "nvidia-smi does not run: install the driver's utilities to see more"
    if Path("/proc/driver/nvidia").exists() or tool is not None:
        return (), "an NVIDIA driver is installed but shows no GPU: check nvidia-smi"
    return (), "no NVIDIA driver: engines run on the CPU"


def _gpu_software() -> dict[str, dict[str, Any]]:
    """What engines on a GPU need besides its driver: whether it is there, what was found, how to get it."""
    found: dict[str, tuple[bool, str, str]] = {}
    wheel = "install PyTorch's build for CUDA"
    version, cuda = _version("torch"), _torch_cuda()
    if version is None:
        found["torch"] = (False, "not installed", wheel)
    elif cuda is None:
        found["torch"] = (False, f"{version}, a build without CUDA", wheel)
    else:
        found["torch"] = (True, f"{version}, built for CUDA {cuda}", "")
    for package in ("triton", "cuda-core"):
        version = _version(package)
        found[package] = (version is not None, version or "not installed", "pip install 'fastdiff[cuda]'")
    nvcc = shutil.which("nvcc") or shutil.which("nvcc", path="/usr/local/cuda/bin")
    found["nvcc"] = (
        nvcc is not None,
        nvcc or "not found",
        "only building needs it: install the CUDA toolkit",
    )
    binaries = sorted((Path(__file__).parent / "kernels" / "cuda").glob("*.fatbin"))
    names = ", ".join(path.stem for path in binaries)
    absent = "none, kernels are compiled by NVRTC when they are first used"
    found["fat binaries"] = (bool(binaries), names or absent, "install fastdiff where nvcc is")
    return {
        name: {"ok": ok, "reason": reason, "fix": "" if ok else fix}
        for name, (ok, reason, fix) in found.items()
    }


def _torch_cuda() -> str | None:
    """The CUDA version that the installed PyTorch was built for, read from its files; None for none."""
    with contextlib.suppress(OSError, ImportError, ValueError):
        spec = importlib.util.find_spec("torch")
        if spec is not None and spec.origin is not None:
            text = (Path(spec.origin).parent / "version.py").read_text(encoding="utf-8")
            match = re.search(r"^cuda\b[^=\n]*= *'([0-9.]+)'", text, re.MULTILINE)
            return match[1] if match else None
    return None


def _targets() -> dict[str, dict[str, Any]]:
    """Every target, whether it works here, and if not why and what to do."""
    from fastdiff.targets import TARGETS, get_target

    report: dict[str, dict[str, Any]] = {}
    for name in TARGETS:
        try:
            report[name] = asdict(get_target(name).availability())
        except Exception as error:  # noqa: BLE001 (a target that cannot even be asked is a target that fails)
            report[name] = {"ok": False, "reason": " ".join(str(error).split()), "fix": "reinstall fastdiff"}
    return report


def _temporary_folder() -> dict[str, Any]:
    """Where temporary files go, whether they can, and the bytes free there."""
    try:
        folder = tempfile.gettempdir()
        with tempfile.TemporaryFile(dir=folder) as stream:
            stream.write(b"fastdiff")
        return {"path": folder, "writable": True, "free": shutil.disk_usage(folder).free}
    except OSError as error:
        return {"path": os.environ.get("TMPDIR", "/tmp"), "writable": False, "reason": str(error)}


def _version(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None
