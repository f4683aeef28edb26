"""Packaging: the metadata is in pyproject.toml; this file compiles ``csrc/`` with CMake and ninja.

``pip install .`` and ``pip install -e .`` both end with ``fastdiff/_C.<abi>.so`` and, where nvcc is found,
with the CUDA kernels as ``fastdiff/kernels/cuda/<op>.fatbin``. ``FASTDIFF_CUDA`` is auto, on (an error
without nvcc) or off. Two environment variables help developers: ``FASTDIFF_WERROR=1`` turns compiler
warnings into errors, ``CMAKE_ARGS`` is appended to the configure command.
"""

from __future__ import annotations

import importlib
import os
import runpy
import shlex
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
VERSION = runpy.run_path(str(ROOT / "fastdiff" / "_version.py"))["__version__"]


def find_tool(name: str, module_attribute: str) -> str:
    """Path of ``cmake`` or ``ninja``: the wheel of that name first, since PATH need not hold its folder."""
    try:
        folder = Path(getattr(importlib.import_module(name), module_attribute))
    except (ImportError, AttributeError):
        folder = Path("no such folder")
    found = shutil.which(name, path=str(folder)) or shutil.which(name)
    if found is None:
        raise SystemExit(f"fastdiff: {name} not found; run: python -m pip install {name}")
    return found


class BuildWithCMake(build_ext):
    """Build every extension by running CMake on the repository root."""

    def build_extension(self, ext: Extension) -> None:
        include = Path(sysconfig.get_path("include"))
        if not (include / "Python.h").is_file():
            raise SystemExit(
                f"fastdiff: Python.h not found in {include}; install the headers of Python "
                f"{sys.version_info.major}.{sys.version_info.minor} (Debian: apt install python3-dev)"
            )
        import pybind11

        cmake = find_tool("cmake", "CMAKE_BIN_DIR")
        destination = Path(self.get_ext_fullpath(ext.name)).resolve().parent
        # One build tree per interpreter, kept, so that a second build compiles only what changed.
        build = ROOT / "build" / f"cmake-{sysconfig.get_platform()}-{sys.implementation.cache_tag}"
        cache = build / "CMakeCache.txt"
        if cache.is_file():
            known = cache.read_text()
            if f"={sys.executable}\n" not in known or f"CMAKE_HOME_DIRECTORY:INTERNAL={ROOT}\n" not in known:
                shutil.rmtree(build)  # configured for another virtual environment or another checkout
        build.mkdir(parents=True, exist_ok=True)
        configure = [
            cmake,
            "-S",
            str(ROOT),
            "-B",
            str(build),
            "-G",
            "Ninja",
            f"-DCMAKE_MAKE_PROGRAM={find_tool('ninja', 'BIN_DIR')}",
            f"-DCMAKE_BUILD_TYPE={'Debug' if self.debug else 'Release'}",
            f"-DPython_EXECUTABLE={sys.executable}",
            f"-Dpybind11_DIR={pybind11.get_cmake_dir()}",
            f"-DFASTDIFF_VERSION={VERSION}",
            f"-DFASTDIFF_PYTHON_OUTPUT={destination}",
            f"-DFASTDIFF_CUDA={os.environ.get('FASTDIFF_CUDA', 'auto')}",
            f"-DFASTDIFF_WERROR={'ON' if os.environ.get('FASTDIFF_WERROR') == '1' else 'OFF'}",
            *shlex.split(os.environ.get("CMAKE_ARGS", "")),
        ]
        subprocess.run(configure, check=True)
        jobs = ["--parallel", str(self.parallel)] if self.parallel else []
        subprocess.run([cmake, "--build", str(build), "--target", "_C", "fastdiff_cuda", *jobs], check=True)
        if not self.inplace:
            self.copy_cuda_sources(destination / "kernels" / "cuda" / "src")

    def copy_extensions_to_source(self) -> None:
        """Of an editable installation: the fat binaries go beside the extension into the checkout."""
        super().copy_extensions_to_source()
        folder = Path("fastdiff") / "kernels" / "cuda"
        for built in (Path(self.build_lib) / folder).glob("*.fatbin*"):
            shutil.copy2(built, ROOT / folder / built.name)

    def copy_cuda_sources(self, folder: Path) -> None:
        """For NVRTC, in a package that is installed apart from ``csrc/``."""
        folder.mkdir(parents=True, exist_ok=True)
        for pattern in ("*.cu", "*.h", "architectures.txt"):
            for source in (ROOT / "csrc" / "cuda").glob(pattern):
                shutil.copy2(source, folder / source.name)


setup(ext_modules=[Extension("fastdiff._C", sources=[])], cmdclass={"build_ext": BuildWithCMake})
