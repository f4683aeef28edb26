"""The CUDA kernels on the GPU, and on the CPU with tests/cpp/cuda_emulation.h in place of one."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.csrc.conftest import build

__all__ = ["build", "device", "emulated_launch"]


def emulated_launch(library: ctypes.CDLL) -> Callable[..., None]:
    """``loader.launch`` for kernels that are names; arguments become what cuLaunchKernel would be given."""
    from fastdiff.kernels.cuda import loader

    def launch(
        kernel: str,
        grid: Sequence[int] | int,
        block: int,
        args: Sequence[Any],
        shared: int = 0,
        cluster: int | None = None,
    ) -> None:
        values = [loader._argument(arg) for arg in args]
        held = [ctypes.c_uint64(value) if isinstance(value, int) else value for value in values]
        pointers = (ctypes.c_void_p * len(held))(*(ctypes.addressof(value) for value in held))
        x, y, _ = loader._three(grid)
        assert x % (cluster or 1) == 0
        assert block % 32 == 0
        run = getattr(library, f"emulate_{kernel}")
        run.argtypes = [ctypes.c_uint] * 4 + [ctypes.c_size_t, ctypes.c_void_p]
        run(x, y, block, cluster or 1, shared, pointers)

    return launch


@pytest.fixture(params=["emulated", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Where a test's tensors live. Emulated, the wrappers run unchanged down to the launch."""
    if request.param == "cuda":
        return "cuda"
    from fastdiff.kernels.cuda import attention, group_norm_silu, scheduler_step

    folder: Path = request.getfixturevalue("build")
    launch = emulated_launch(ctypes.CDLL(str(folder / "tests" / "cpp" / "libcuda_emulation.so")))
    small = group_norm_silu.Gpu(multiprocessors=3, shared=48 * 1024, clusters=True)
    for module in (attention, group_norm_silu, scheduler_step):
        monkeypatch.setattr(module, "launch", launch)
        monkeypatch.setattr(module, "kernel", lambda op, name, arch: name)
        monkeypatch.setattr(module, "architecture", lambda device: "emulated")
    monkeypatch.setattr(group_norm_silu, "gpu_of", lambda device: small)
    monkeypatch.setattr(attention, "_multiprocessors", lambda device: small.multiprocessors)
    return "cpu"
