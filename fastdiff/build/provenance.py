"""Where an engine comes from: fastdiff's version and commit, library versions, the machine."""

from __future__ import annotations

import datetime
import importlib
import importlib.metadata
import os
import platform
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fastdiff._version import __version__

__all__ = ["provenance"]

_LIBRARIES = (
    "diffusers",
    "numpy",
    "onnx",
    "onnxruntime",
    "onnxscript",
    "safetensors",
    "tokenizers",
    "torch",
    "transformers",
)


def provenance(
    name: str, shipped: bool, sha256: str, control: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """The manifest's ``provenance`` for a checkpoint of that name and hash.

    ``control`` has the hash of each network that was added to control the U-Net.
    """
    return {
        **({"control": dict(control)} if control else {}),
        "checkpoint": {"name": name, "shipped": shipped, "sha256": sha256},
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "fastdiff": {"version": __version__, "commit": _commit()},
        "libraries": {library: found for library in _LIBRARIES if (found := _version(library))},
        "machine": {
            "architecture": platform.machine(),
            "cpu": _cpu_name(),
            "cores": len(os.sched_getaffinity(0)),
            "isa": _isa(),
            "python": platform.python_version(),
            "system": platform.system(),
        },
    }


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""


def _commit() -> str:
    """The commit of the working copy that fastdiff runs from, empty for an installed package."""
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return ""
    try:
        result = subprocess.run(
            ["git", "-C", str(root), "rev-parse", "HEAD"],
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    return result.stdout.strip()


def _isa() -> str:
    """The instruction set that fastdiff's own kernels use here."""
    try:
        return str(importlib.import_module("fastdiff._C").isa())
    except ImportError:
        return ""


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor())
