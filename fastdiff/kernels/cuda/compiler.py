"""Machine programs of ``csrc/cuda/<op>.cu``: the package's fat binary, or one that NVRTC makes and a cache
keeps.

The build writes ``<op>.fatbin`` beside this file where it finds nvcc, and ``<op>.fatbin.json`` with the
digest of the sources and the architectures. A fat binary of other sources than those at hand, or without a
program for the GPU, is not used.

The cache is ``$XDG_CACHE_HOME/fastdiff/kernels`` (``~/.cache`` when unset), one file per source digest,
architecture, options and NVRTC version: the SHA-256 of the program, then the program. Files appear by
renaming, so that processes may share the folder; a damaged one is compiled again.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import tempfile
import warnings
from functools import cache
from pathlib import Path
from typing import Any

from fastdiff.errors import FastdiffWarning, InputError, TargetError

__all__ = [
    "architectures",
    "cache_folder",
    "compile_source",
    "cubin",
    "cuda_core",
    "digest",
    "fat_binary",
    "nvrtc_version",
    "source_folder",
]

PACKAGE = Path(__file__).resolve().parent
_STANDARD = "c++17"
_SPECIAL = re.compile(r"^// fastdiff-cuda-architecture: (\d+[a-z]+)$", re.MULTILINE)


@cache
def source_folder() -> Path:
    """Where the ``.cu`` files are: ``csrc/cuda`` of a checkout, ``src`` beside this file once installed."""
    for folder in (PACKAGE.parents[2] / "csrc" / "cuda", PACKAGE / "src"):
        if (folder / "architectures.txt").is_file():
            return folder
    raise TargetError(f"CUDA sources: none in {PACKAGE / 'src'}; install fastdiff again")


def _source(op: str) -> Path:
    path = source_folder() / f"{op}.cu"
    if not path.is_file():
        known = ", ".join(sorted(other.stem for other in source_folder().glob("*.cu")))
        raise InputError(f"CUDA kernel: found {op!r}, wanted one of {known}")
    return path


def digest(op: str) -> str:
    """SHA-256 of what ``<op>.cu`` is compiled from: itself and all headers. Hexadecimal."""
    source = _source(op)
    files = [*sorted(source.parent.glob("*.h")), source]
    lines = [f"{file.name} {hashlib.sha256(file.read_bytes()).hexdigest()}\n" for file in files]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def architectures(op: str) -> list[str]:
    """What ``<op>.cu`` is compiled for ahead of time, "80" or "90a"."""
    plain = (source_folder() / "architectures.txt").read_text().split()
    special = {re.sub("[a-z]+$", "", name): name for name in _SPECIAL.findall(_source(op).read_text())}
    return [special.get(name, name) for name in plain]


def fat_binary(op: str, arch: str) -> bytes | None:
    """The package's fat binary of ``op`` if it is of these sources and holds what runs on ``arch``
    ("sm_90").
    """
    path = PACKAGE / f"{op}.fatbin"
    try:
        about = json.loads(path.with_name(f"{op}.fatbin.json").read_text())
        program = path.read_bytes()
    except (FileNotFoundError, ValueError):  # ValueError: no JSON
        return None
    wanted = int(arch.removeprefix("sm_"))
    if about["sources"] != digest(op):
        return None
    if not (any(_runs_on(name, wanted) for name in about["architectures"]) or int(about["ptx"]) <= wanted):
        return None
    return program


def _runs_on(name: str, wanted: int) -> bool:
    """A program for 8.6 runs on 8.6 and 8.9 and on no 9.0; one for 9.0a on 9.0 alone."""
    if not name.isdigit():
        return int(re.sub("[a-z]+$", "", name)) == wanted
    return int(name) <= wanted and int(name) // 10 == wanted // 10


def cache_folder() -> Path:
    """Where programs that NVRTC made are kept."""
    root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(root) / "fastdiff" / "kernels"


def cubin(op: str, arch: str) -> bytes:
    """The program of ``<op>.cu`` for ``arch`` ("sm_90"), from the cache or compiled by NVRTC."""
    target = {f"sm_{name[:-1]}": f"sm_{name}" for name in architectures(op) if not name.isdigit()}.get(
        arch, arch
    )
    key = "\n".join([op, digest(op), target, _STANDARD, nvrtc_version()])
    path = cache_folder() / f"{hashlib.sha256(key.encode()).hexdigest()}.cubin"
    try:
        stored = path.read_bytes()
        if hashlib.sha256(stored[32:]).digest() == stored[:32]:
            return stored[32:]
    except OSError:
        pass
    program = compile_source(_source(op).read_text(), target, name=f"{op}.cu")
    try:
        _store(path, hashlib.sha256(program).digest() + program)
    except OSError as error:
        warnings.warn(
            f"CUDA kernel {op} was compiled and cannot be kept in {path.parent} ({error.strerror}); set "
            "XDG_CACHE_HOME to a folder that can be written",
            FastdiffWarning,
            stacklevel=2,
        )
    return program


def _store(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


@cache
def nvrtc_version() -> str:
    """Version of the NVRTC library, "13.0"; raises TargetError where there is none."""
    try:
        from cuda.bindings import nvrtc

        error, major, minor = nvrtc.nvrtcVersion()
    except (ImportError, RuntimeError) as problem:
        raise TargetError(
            f"NVRTC, which compiles CUDA kernels: not found ({_one_line(problem)}); run: "
            "python -m pip install 'cuda-core' 'cuda-bindings' 'nvidia-cuda-nvrtc'"
        ) from problem
    if int(error) != 0:
        raise TargetError(f"NVRTC does not say its version: error {int(error)}")
    return f"{major}.{minor}"


def compile_source(source: str, target: str, *, name: str) -> bytes:
    """The machine program of CUDA C++ ``source`` for ``target`` ("sm_90a"), which needs no GPU.

    Headers are those of :func:`source_folder`. Raises TargetError with the first lines of the compiler's log.
    """
    nvrtc_version()  # its absence has one message
    core = cuda_core()
    options = core.ProgramOptions(arch=target, std=_STANDARD, include_path=str(source_folder()), name=name)
    try:
        program = core.Program(source, "c++", options)
        return bytes(program.compile("cubin").code)
    except Exception as problem:
        raise TargetError(
            f"NVRTC {nvrtc_version()} cannot compile {name} for {target}: {_excerpt(problem)}"
        ) from problem


@cache
def cuda_core() -> Any:
    """The module ``cuda.core``, of any version from 0.4 on; raises TargetError where there is none."""
    wanted = "wanted cuda.core 0.4 or newer; run: python -m pip install --upgrade cuda-core"
    try:
        import cuda.core as core

        if not hasattr(core, "Program"):
            import cuda.core.experimental as core
    except ImportError as problem:
        raise TargetError(
            f"cuda.core, which launches CUDA kernels: {_one_line(problem)}, {wanted}"
        ) from problem
    from cuda.core import __version__ as version

    # Before 0.4 the grid of a launch with clusters counted blocks, since then it counts clusters.
    if tuple(int(part) for part in re.findall(r"\d+", version)[:2]) < (0, 4):
        raise TargetError(f"cuda.core: found {version}, {wanted}")
    return core


def _one_line(problem: BaseException) -> str:
    return " ".join(str(problem).split()) or type(problem).__name__


def _excerpt(problem: BaseException) -> str:
    """The lines of a compiler's log that name errors, or its beginning, in one line."""
    lines = [line for line in str(problem).splitlines() if "error" in line and "detected" not in line]
    text = " ".join(" ".join(lines[:3] or [str(problem)]).split())
    return text if len(text) <= 300 else f"{text[:300]}…"
