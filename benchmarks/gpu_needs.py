"""What the stages of gpu_suite.py need of a machine, without importing any of it or asking its GPU.

``python benchmarks/gpu_needs.py`` prints what is missing and how packages travel to a machine without
network, and exits with 1 where the suite cannot run. It says the same of a virtual environment that was made
elsewhere like the machine's.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import re
import shutil
import sys
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Missing", "needs", "travel"]


@dataclass(frozen=True)
class Missing:
    """What is not there: ``what`` in words, ``package`` what pip calls it (empty: it is none), ``lost`` what
    cannot run without it, empty where that is everything.
    """

    what: str
    package: str
    lost: str


@dataclass(frozen=True)
class _Package:
    """A distribution, the module that it brings, the oldest version, and what cannot run without it.

    ``tool``: the program that does as well, wherever it comes from.
    """

    name: str
    module: str
    least: str = "0"
    lost: str = ""
    tool: str = ""


_PACKAGES = (
    _Package("torch", "torch", "2.11"),
    _Package("numpy", "numpy", "1.26"),
    _Package("pillow", "PIL", "10"),
    _Package("safetensors", "safetensors", "0.4.3"),
    _Package("tokenizers", "tokenizers", "0.19"),
    _Package("tqdm", "tqdm", "4.66"),
    _Package("setuptools", "setuptools", "77.0.3"),
    _Package("pybind11", "pybind11", "2.13"),
    _Package("cmake", "cmake", "3.24", tool="cmake"),
    _Package("ninja", "ninja", "1.11", tool="ninja"),
    _Package("triton", "triton", "3.6", "the target cuda and its kernels' tests"),
    _Package("cuda-bindings", "cuda.bindings", "12.9", "the target cuda and its kernels' tests"),
    _Package("cuda-core", "cuda.core", "0.4", "the target cuda and its kernels' tests"),
    _Package("transformers", "transformers", "4.50", "what PyTorch takes, and the models' text encoders"),
    _Package("onnx", "onnx", "1.17", "the targets onnxruntime and tensorrt"),
    _Package("onnxscript", "onnxscript", "0.5", "the targets onnxruntime and tensorrt"),
    _Package("pytest", "pytest", "8", "the stage tests"),
    _Package("hypothesis", "hypothesis", "6.100", "some files of the stage tests"),
    _Package("scipy", "scipy", "1.11", "some files of the stage tests"),
    _Package("onnxruntime", "onnxruntime", "1.20", "tests that compare with ONNX Runtime"),
    _Package("diffusers", "diffusers", "0.35", "diffusers' own pictures to compare with"),
    _Package("onnxruntime-gpu", "", "1.20", "the target onnxruntime on CUDA"),
    _Package("tensorrt", "tensorrt", "10.1", "the target tensorrt"),
)
"""Those of which anything is said; fastdiff's requirements and those of its tests."""


def needs() -> list[Missing]:
    """All that is missing, what everything needs first."""
    found = [*_packages(), *_tools()]
    return sorted(found, key=lambda missing: bool(missing.lost))


def travel(missing: list[Missing]) -> str:
    """How packages get to a machine that reaches no registry."""
    names = " ".join(each.package for each in missing if each.package)
    version = ".".join(map(str, sys.version_info[:2]))
    return (
        "on a machine with network: python3 -m pip download --no-deps --only-binary=:all: --python-version "
        f"{version} --implementation cp --platform manylinux_2_28_x86_64 --platform manylinux2014_x86_64 "
        f"-d wheels {names}; here: python3 -m pip install --no-index --no-deps --target site wheels/*.whl "
        "and PYTHONPATH=$PWD/site"
    )


def _packages() -> Iterator[Missing]:
    for package in _PACKAGES:
        version = _version(package.name)
        wanted = f"wanted {package.least} or newer"
        if version is None and package.module and _has_module(package.module):
            continue  # of unknown version: built from source, say
        if version is None and package.tool and shutil.which(package.tool):
            continue
        if version is None:
            yield Missing(f"{package.name} is not installed, {wanted}", package.name, package.lost)
        elif _numbers(version) < _numbers(package.least):
            yield Missing(f"{package.name} {version}, {wanted}", package.name, package.lost)
        elif package.name == "torch" and version.endswith("+cpu"):
            yield Missing(f"torch {version} is built without CUDA", "torch", "")


def _tools() -> Iterator[Missing]:
    if not any(shutil.which(name) for name in ("c++", "g++", "clang++")):
        yield Missing("no C++ compiler (c++, g++ or clang++)", "", "")
    if not any(shutil.which(name) for name in ("cc", "gcc", "clang")):
        yield Missing("no C compiler (cc, gcc or clang), which Triton compiles launchers with", "", "")
    include = Path(sysconfig.get_path("include"))
    if not (include / "Python.h").is_file():
        yield Missing(f"no Python.h in {include}: the headers of this Python", "", "")
    folders = (Path("/usr/local/cuda/bin"),)
    if not shutil.which("nvcc") and not any((folder / "nvcc").is_file() for folder in folders):
        lost = "the fat binaries: NVRTC compiles the CUDA C++ kernels when they are first used"
        yield Missing("no nvcc on PATH or in /usr/local/cuda/bin", "", lost)


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _has_module(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:  # of what it lies in
        return False


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version.partition("+")[0])[:3])


def main() -> None:
    missing = needs()
    for each in missing:
        print(f"{each.what}; without it: {each.lost or 'nothing runs'}")
    if any(each.package for each in missing):
        print(travel(missing))
    raise SystemExit(any(not each.lost for each in missing))


if __name__ == "__main__":
    main()
