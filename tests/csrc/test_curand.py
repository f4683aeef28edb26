"""csrc/cuda/philox.h against cuRAND's own headers, compiled for the CPU."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest

from fastdiff.kernels.cuda.resources import nvcc
from tests.csrc.conftest import ROOT, run

# cuRAND's multiply-adds are fused on the GPU, so that they must be here.
SOURCE = r"""
#define QUALIFIERS static inline
#include <cuda_runtime.h>
#include <curand_kernel.h>
#include <cstdio>
#include "cuda/philox.h"

int main() {
    long wrong = 0, all = 0;
    const unsigned threads = 300000;
    for (unsigned long long seed : {0ull, 42ull, 0x123456789abcdefull, ~0ull}) {
        for (unsigned long long offset : {0ull, 4ull, 400ull, 4ull * 0xfffffffeull, 1ull << 40}) {
            for (unsigned long long thread = 0; thread < threads; thread += 7919) {
                curandStatePhilox4_32_10_t state;
                curand_init(seed, thread, offset, &state);
                for (int block = 0; block < 4; ++block) {
                    const float4 wanted = curand_normal4(&state);
                    for (int k = 0; k < 4; ++k, ++all) {
                        const unsigned long long i = thread + (4ull * block + k) * threads;
                        wrong += fastdiff::cuda::philox_normal(seed, offset, i, threads) != (&wanted.x)[k];
                    }
                }
            }
        }
    }
    std::printf("%ld of %ld differ\n", wrong, all);
}
"""


def includes() -> list[Path]:
    """The folders of cuda_runtime.h and curand_kernel.h, from the toolkit or the wheels that PyTorch
    brings.
    """
    compiler = nvcc()
    folders = [] if compiler is None else [compiler.resolve().parents[1] / "include"]
    folders.append(Path("/usr/local/cuda/include"))
    for place in map(Path, sys.path):
        folders += sorted(place.glob("nvidia/*/include"))
    found = [
        next((folder for folder in folders if (folder / name).is_file()), None)
        for name in ("cuda_runtime.h", "curand_kernel.h")
    ]
    return [folder for folder in found if folder is not None]


def test_normals_are_curand_s(tmp_path: Path) -> None:
    folders = includes()
    compiler = shutil.which("g++")
    flags = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").is_file() else ""
    if len(folders) != 2 or compiler is None or " fma " not in flags:
        pytest.skip("needs cuRAND's headers, g++ and a CPU with fused multiply-add")
    source, program = tmp_path / "curand.cpp", tmp_path / "curand"
    source.write_text(SOURCE)
    # -isystem: its warnings are not ours.
    search = [f"-I{ROOT / 'csrc'}", *(f"-isystem{folder}" for folder in folders)]
    run(compiler, "-std=c++17", "-O2", "-mfma", "-ffp-contract=fast", "-w", *search, source, "-o", program)
    assert run(program) == "0 of 12160 differ\n"
