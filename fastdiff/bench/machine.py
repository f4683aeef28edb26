"""What a report says of the machine and the software that it was measured on."""

from __future__ import annotations

import contextlib
import importlib.metadata
import subprocess
from dataclasses import asdict
from pathlib import Path
from typing import Any

from fastdiff.doctor import find_gpus

__all__ = ["describe"]


def describe(threads: int, device: str = "cpu") -> dict[str, Any]:
    """``date``, ``fastdiff`` (version, commit), ``libraries`` (versions) and ``machine`` (CPU, cores,
    threads, instruction set, memory; for ``cuda`` the first GPU too), as plain values. No host name, no user,
    no path.
    """
    from fastdiff.build.provenance import provenance

    found = provenance("", False, "")
    libraries = dict(found["libraries"])
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        libraries["openvino"] = importlib.metadata.version("openvino")
    software = dict(found["fastdiff"])
    if software["commit"] and _changed():
        software["commit"] += "+"
    machine = {**found["machine"], "threads": threads, "memory": _memory()}
    if device == "cuda":
        machine["gpu"] = asdict(gpus[0]) if (gpus := find_gpus()[0]) else {"name": "unknown GPU"}
        for package in ("triton", "cuda-core", "onnxruntime-gpu", "tensorrt"):
            with contextlib.suppress(importlib.metadata.PackageNotFoundError):
                libraries[package] = importlib.metadata.version(package)
    return {
        "date": found["created"],
        "fastdiff": software,
        "libraries": libraries,
        "machine": machine,
    }


def _changed() -> bool:
    """Whether files of the working copy differ from its commit."""
    root = Path(__file__).resolve().parents[2]
    command = ["git", "-C", str(root), "status", "--porcelain", "--untracked-files=no"]
    try:
        run = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return False
    return bool(run.stdout.strip())


def _memory() -> int:
    """Bytes of the machine's memory; 0 where /proc does not tell."""
    with contextlib.suppress(OSError, ValueError):
        for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
            if line.startswith("MemTotal"):
                return int(line.split()[1]) * 1024
    return 0
