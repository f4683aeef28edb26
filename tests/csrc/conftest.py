"""csrc/ built as a C++ project, without Python, once for all tests."""

from __future__ import annotations

import importlib
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def tool(name: str, attribute: str) -> str:
    """The program of the PyPI wheel ``name``, which need not be on PATH."""
    folder = getattr(importlib.import_module(name), attribute)
    found = shutil.which(name, path=folder)
    assert found is not None, f"{name} is not in {folder}"
    return found


def run(*command: str | Path) -> str:
    """Output of a command that must succeed; its own words are the failure's message."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{command[0]} exited with {done.returncode}:\n{done.stdout}{done.stderr}"
    return done.stdout


@pytest.fixture(scope="session")
def build() -> Path:
    """Kept, so that the next run compiles only what changed."""
    folder = ROOT / "build" / "tests"
    cache = folder / "CMakeCache.txt"
    if cache.is_file() and f"CMAKE_HOME_DIRECTORY:INTERNAL={ROOT}\n" not in cache.read_text():
        shutil.rmtree(folder)  # configured for another checkout
    cmake = tool("cmake", "CMAKE_BIN_DIR")
    ninja = tool("ninja", "BIN_DIR")
    options = ["-DFASTDIFF_BUILD_PYTHON=OFF", "-DFASTDIFF_BUILD_TESTS=ON", "-DFASTDIFF_WERROR=ON"]
    run(cmake, "-S", ROOT, "-B", folder, "-G", "Ninja", f"-DCMAKE_MAKE_PROGRAM={ninja}", *options)
    run(cmake, "--build", folder)
    return folder
