"""What the kernels of ``csrc/cuda/`` take of a GPU, as ``nvcc -Xptxas -v`` says it: no GPU is needed."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from fastdiff.errors import TargetError
from fastdiff.kernels.cuda.compiler import architectures, source_folder

__all__ = ["Resources", "measure", "nvcc", "ops", "parse"]

_ENTRY = re.compile(
    r"Compiling entry function '(?P<kernel>\w+)' for 'sm_(?P<arch>\w+)'.*?"
    r"(?P<stack>\d+) bytes stack frame, (?P<stores>\d+) bytes spill stores, (?P<loads>\d+) bytes spill .*?"
    r"Used (?P<registers>\d+) registers(?P<rest>[^\n]*)",
    re.DOTALL,
)


@dataclass(frozen=True)
class Resources:
    """Of one kernel on one architecture: registers per thread, static shared memory in bytes per block,
    stack and spills (stores and loads) in bytes per thread.
    """

    op: str
    kernel: str
    arch: str
    registers: int
    shared: int
    stack: int
    spills: int


def ops() -> list[str]:
    """The ops that have a ``.cu``."""
    return sorted(path.stem for path in source_folder().glob("*.cu"))


def nvcc() -> Path | None:
    """The compiler, where CMake looks for it."""
    folders = [
        *(f"{os.environ[name]}/bin" for name in ("CUDA_HOME", "CUDA_PATH") if name in os.environ),
        *os.environ.get("PATH", os.defpath).split(os.pathsep),
        "/usr/local/cuda/bin",
    ]
    found = shutil.which("nvcc", path=os.pathsep.join(folders))
    return None if found is None else Path(found)


def parse(op: str, log: str) -> list[Resources]:
    """Every kernel that a log of ``-Xptxas -v`` names."""
    found = []
    for match in _ENTRY.finditer(log):
        shared = re.search(r"(\d+) bytes smem", match["rest"])
        found.append(
            Resources(
                *(op, match["kernel"], match["arch"], int(match["registers"])),
                *(int(shared[1]) if shared else 0, int(match["stack"])),
                int(match["stores"]) + int(match["loads"]),
            )
        )
    return found


def measure(op: str) -> list[Resources]:
    """Compile ``<op>.cu`` for each of its architectures; TargetError with the log where that fails."""
    compiler = nvcc()
    if compiler is None:
        raise TargetError("nvcc: not found; put it on PATH or set CUDA_HOME")

    def one(arch: str) -> list[Resources]:
        with tempfile.TemporaryDirectory() as folder:
            command = [
                *(
                    str(compiler),
                    "-cubin",
                    "-std=c++17",
                    "-allow-unsupported-compiler",
                    "-Werror",
                    "all-warnings",
                ),
                *("-Xptxas", "-v", f"-arch=sm_{arch}", "-o", f"{folder}/out.cubin"),
                str(source_folder() / f"{op}.cu"),
            ]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise TargetError(f"nvcc cannot compile {op}.cu for sm_{arch}: {done.stdout}{done.stderr}")
        return parse(op, done.stdout + done.stderr)

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return [row for rows in pool.map(one, architectures(op)) for row in rows]
