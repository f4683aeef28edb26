"""Kernels compiled ahead of time, without a GPU, and what they take of one: registers, shared memory."""

from __future__ import annotations

import importlib
import pkgutil
import re
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from fastdiff.errors import TargetError
from fastdiff.kernels.triton.launch import Config

__all__ = [
    "ARCHITECTURES",
    "Build",
    "Resources",
    "compile_build",
    "op_builds",
    "op_names",
    "resources",
    "shared_limit",
]

ARCHITECTURES = (80, 86, 89, 90, 100, 120)
"""The compute capabilities that the shipped tilings are made for."""

# CUDA C++ programming guide, table "technical specifications per compute capability".
_SHARED_KIB = {80: 163, 86: 99, 89: 99, 90: 227, 100: 227, 120: 99}
_INFRASTRUCTURE = ("aot", "binaries", "interpreter", "launch", "planning", "pool", "specialise")


@dataclass(frozen=True)
class Build:
    """One specialisation of a kernel.

    ``signature``: Triton's types of the run-time arguments by name ("*fp16", "i32", "fp32"), ``constants``:
    the constexpr arguments but those of ``config``, ``aligned``: the arguments that are multiples of 16.
    """

    name: str
    kernel: Any
    signature: Mapping[str, str]
    constants: Mapping[str, int | float | bool | str | None]
    config: Config = field(default_factory=Config)
    aligned: tuple[str, ...] = ()


@dataclass(frozen=True)
class Resources:
    """Registers per thread; bytes per block of shared memory; bytes per thread of stack and of spills."""

    registers: int
    shared_bytes: int
    stack_bytes: int
    spill_bytes: int


def shared_limit(arch: int) -> int:
    """Bytes of dynamic shared memory that a block may ask for."""
    if arch not in _SHARED_KIB:
        known = ", ".join(f"sm_{known}" for known in _SHARED_KIB)
        raise TargetError(f"GPU: found sm_{arch}, wanted one of {known}")
    return _SHARED_KIB[arch] * 1024


def compile_build(build: Build, arch: int) -> Any:
    """Triton's CompiledKernel, with ``asm["cubin"]`` and ``metadata``; from Triton's cache if it is there."""
    constants = {**build.constants, **dict(build.config.blocks)}
    names = build.kernel.arg_names
    missing = [name for name in names if name not in build.signature and name not in constants]
    unknown = sorted({*build.signature, *constants} - set(names))
    if missing or unknown:
        raise TypeError(f"{build.name}: arguments not given: {missing}, not the kernel's: {unknown}")
    source = ASTSource(
        build.kernel,
        {name: build.signature.get(name, "constexpr") for name in names},
        constants,
        {(names.index(name),): [["tt.divisibility", 16]] for name in build.aligned},
    )
    return triton.compile(
        source,
        target=GPUTarget("cuda", arch, 32),
        options={"num_warps": build.config.num_warps, "num_stages": build.config.num_stages},
    )


def resources(compiled: Any, arch: int) -> Resources:
    """What a compiled kernel takes, read from its binary with the tools that Triton ships."""
    with tempfile.TemporaryDirectory() as folder:
        cubin = Path(folder) / "kernel.cubin"
        cubin.write_bytes(compiled.asm["cubin"])
        report = _run(triton.knobs.nvidia.cuobjdump.path, "--dump-resource-usage", str(cubin))
        usage = report.rpartition("Function")[2]
        fields = {name: int(value) for name, value in re.findall(r"(\w+):(\d+)", usage)}
        spill_bytes = 0
        if fields["STACK"]:  # spills live on the stack: without one there are none
            ptx = Path(folder) / "kernel.ptx"
            ptx.write_text(compiled.asm["ptx"])
            tools = triton.knobs.nvidia
            ptxas = (tools.ptxas_blackwell if arch >= 100 else tools.ptxas).path
            name = f"sm_{arch}{'a' if arch >= 90 else ''}"
            log = _run(ptxas, "-v", f"--gpu-name={name}", str(ptx), "-o", str(Path(folder) / "again.cubin"))
            spill_bytes = sum(int(size) for size in re.findall(r"(\d+) bytes spill", log))
    return Resources(fields["REG"], int(compiled.metadata.shared), fields["STACK"], spill_bytes)


def _run(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return done.stdout + done.stderr


def op_names() -> tuple[str, ...]:
    """The files of this folder that hold a kernel and say with ``builds`` what is compiled ahead of time."""
    folder = str(Path(__file__).parent)
    found = (info.name for info in pkgutil.iter_modules([folder]))
    return tuple(
        name
        for name in sorted(found)
        if name not in _INFRASTRUCTURE and hasattr(importlib.import_module(f"{__package__}.{name}"), "builds")
    )


def op_builds(op: str, dtype: torch.dtype, arch: int) -> Iterator[Build]:
    """What an op's file ships for a dtype and an architecture."""
    yield from importlib.import_module(f"{__package__}.{op}").builds(dtype, arch)
