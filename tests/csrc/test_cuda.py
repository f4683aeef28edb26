"""The CUDA sources: every .cu compiles for every architecture, and the build makes of them what the loader
takes.
"""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest

from fastdiff.errors import TargetError
from fastdiff.kernels.cuda import compiler, resources
from tests.csrc.conftest import ROOT, tool

FOLDER = ROOT / "csrc" / "cuda"
OPS = resources.ops()
needs_nvcc = pytest.mark.skipif(resources.nvcc() is None, reason="nvcc is not installed")

TINY = """
// fastdiff-cuda-architecture: 90a
#include "host_device.h"
extern "C" __global__ void tiny(int32_t* x) { x[threadIdx.x] = 1; }
"""


@needs_nvcc
@pytest.mark.parametrize("op", OPS)
def test_nvcc_compiles_without_a_spill(op: str) -> None:
    rows = resources.measure(op)
    assert sorted({row.arch for row in rows}) == sorted(compiler.architectures(op))
    for row in rows:
        assert row.spills == row.stack == 0, row
        assert 0 < row.registers <= 255
        assert row.shared <= 48 * 1024
    names = {row.kernel for row in rows}
    assert len(rows) == len(names) * len(compiler.architectures(op))  # every kernel for every architecture


@needs_nvcc
def test_a_spill_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """64 numbers that live at once, in 24 registers."""
    (tmp_path / "architectures.txt").write_text("80")
    (tmp_path / "greedy.cu").write_text(
        'extern "C" __global__ void __maxnreg__(24) greedy(float* x) {\n'
        "  float a[64];\n#pragma unroll\n  for (int i = 0; i < 64; ++i) a[i] = x[i * 1024 + threadIdx.x];\n"
        "  __syncthreads();\n#pragma unroll\n"
        "  for (int i = 0; i < 64; ++i) x[i * 1024 + threadIdx.x] = a[63 - i] * a[i];\n}\n"
    )
    for module in (compiler, resources):
        monkeypatch.setattr(module, "source_folder", lambda: tmp_path)
    (row,) = resources.measure("greedy")
    assert (row.kernel, row.arch) == ("greedy", "80")
    assert row.spills > 0
    (tmp_path / "wrong.cu").write_text("int f() { return g(); }")
    with pytest.raises(TargetError, match="identifier"):
        resources.measure("wrong")


@pytest.mark.parametrize("op", OPS)
def test_nvrtc_compiles(op: str) -> None:
    """NVRTC has nvcc's optimiser and none of its headers; one architecture shows those where nvcc is."""
    pytest.importorskip("cuda.core")
    names = compiler.architectures(op)
    for name in names if resources.nvcc() is None else names[3:4]:
        program = compiler.compile_source((FOLDER / f"{op}.cu").read_text(), f"sm_{name}", name=f"{op}.cu")
        assert program.startswith(b"\x7fELF")


def configure(folder: Path, option: str, *, nvcc: bool) -> subprocess.CompletedProcess[str]:
    """Configure csrc/cuda of a copy alone, where a package's folder is beside it."""
    find = "" if nvcc else "macro(find_program name)\n set(${name} ${name}-NOTFOUND)\nendmacro()\n"
    (folder / "CMakeLists.txt").write_text(
        f"cmake_minimum_required(VERSION 3.24)\nproject(x LANGUAGES NONE)\n{find}"
        f"set(FASTDIFF_PYTHON_OUTPUT {folder}/package)\nadd_subdirectory(cuda)\n"
    )
    command = [tool("cmake", "CMAKE_BIN_DIR"), "-S", folder, "-B", folder / "build", "-G", "Ninja"]
    ninja = f"-DCMAKE_MAKE_PROGRAM={tool('ninja', 'BIN_DIR')}"
    return subprocess.run(
        [*command, ninja, f"-DFASTDIFF_CUDA={option}"], capture_output=True, text=True, check=False
    )


@pytest.fixture
def sources(tmp_path: Path) -> Path:
    """A copy of the build's files with one small kernel, and a package with an older binary of it."""
    (tmp_path / "cuda").mkdir()
    for name in ("CMakeLists.txt", "describe.cmake", "architectures.txt", "host_device.h"):
        shutil.copy(FOLDER / name, tmp_path / "cuda" / name)
    (tmp_path / "cuda" / "tiny.cu").write_text(TINY)
    package = tmp_path / "package" / "kernels" / "cuda"
    package.mkdir(parents=True)
    for name in ("tiny.fatbin", "tiny.fatbin.json"):
        (package / name).write_text("old")
    return tmp_path


@pytest.mark.parametrize("option", ["on", "auto", "off", "perhaps"])
def test_options_without_nvcc(sources: Path, option: str) -> None:
    done = configure(sources, option, nvcc=False)
    text = " ".join((done.stdout + done.stderr).split())
    assert (done.returncode == 0) == (option in ("auto", "off")), text
    wanted = {
        "on": "FASTDIFF_CUDA is on but nvcc was not found",
        "auto": "compiled by NVRTC when they are first used",
        "off": "Configuring done",
        "perhaps": "FASTDIFF_CUDA is 'perhaps', wanted auto, on or off",
    }
    assert wanted[option] in text
    old = sources / "package" / "kernels" / "cuda" / "tiny.fatbin"
    assert old.exists() == (option != "off")


@needs_nvcc
def test_what_the_build_writes_is_what_the_loader_takes(
    sources: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert configure(sources, "on", nvcc=True).returncode == 0
    command = [tool("cmake", "CMAKE_BIN_DIR"), "--build", sources / "build", "--target", "fastdiff_cuda"]
    subprocess.run(command, capture_output=True, check=True)
    package = sources / "package" / "kernels" / "cuda"
    about = json.loads((package / "tiny.fatbin.json").read_text())
    assert about["architectures"] == ["80", "86", "89", "90a", "100", "120"]
    monkeypatch.setattr(compiler, "PACKAGE", package)
    monkeypatch.setattr(compiler, "source_folder", lambda: sources / "cuda")
    assert about["sources"] == compiler.digest("tiny")
    for arch in ("sm_80", "sm_86", "sm_87", "sm_90", "sm_103", "sm_120", "sm_121", "sm_130"):
        assert compiler.fat_binary("tiny", arch) == (package / "tiny.fatbin").read_bytes()
    # No program for 11.0, and PTX of a newer one only.
    assert compiler.fat_binary("tiny", "sm_110") is None
    (sources / "cuda" / "host_device.h").write_text("// another header\n")
    assert compiler.fat_binary("tiny", "sm_90") is None


def test_the_package_s_binaries_are_of_these_sources() -> None:
    """Where the build found nvcc; elsewhere there are none."""
    found = sorted(compiler.PACKAGE.glob("*.fatbin"))
    if not found:
        pytest.skip("the package was built without nvcc")
    assert [path.stem for path in found] == OPS
    for op in OPS:
        assert compiler.fat_binary(op, "sm_90") is not None
