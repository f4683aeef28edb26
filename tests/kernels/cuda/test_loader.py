"""Loading and launching: arguments, sizes and errors without a GPU, all of it with one."""

from __future__ import annotations

import ctypes
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from fastdiff.errors import InputError, TargetError
from fastdiff.kernels.cuda import compiler, loader

pytest.importorskip("cuda.core")


def test_arguments() -> None:
    tensor = torch.zeros(4)
    assert loader._argument(tensor[1:]) == tensor.data_ptr() + 4
    assert loader._argument(None) == 0
    number32, number = ctypes.c_int32, ctypes.c_float
    for value, kind in ((7, number32), (-(2**31), number32), (True, number32), (0.5, number)):
        found = loader._argument(value)
        assert type(found) is kind
        assert found.value == value
    long = ctypes.c_uint64(2**63)
    assert loader._argument(long) is long
    with pytest.raises(InputError, match=r"found 2147483648, wanted 32 bits or a ctypes\.c_int64"):
        loader._argument(2**31)


class Recorder:
    """cuda.core's names that launch uses."""

    def __init__(self) -> None:
        self.config: Any = None
        self.values: tuple[Any, ...] = ()

    def __getattr__(self, name: str) -> Any:
        raise AssertionError(f"cuda.core.{name} is not expected")

    def LaunchConfig(self, **fields: Any) -> Any:  # noqa: N802
        return SimpleNamespace(**fields)

    def launch(self, stream: Any, config: Any, kernel: Any, *values: Any) -> None:
        self.config, self.values = config, values


@pytest.fixture
def core(monkeypatch: pytest.MonkeyPatch) -> Recorder:
    recorder = Recorder()
    monkeypatch.setattr(loader, "cuda_core", lambda: recorder)
    monkeypatch.setattr(loader, "_enter", lambda core, device: None)
    monkeypatch.setattr(loader, "_stream", lambda device, handle: ("stream", device, handle))
    monkeypatch.setattr(torch.cuda, "device", nullcontext)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: SimpleNamespace(cuda_stream=5))
    return recorder


def test_the_grid_counts_blocks(core: Recorder) -> None:
    loader.launch(None, 6, 64, (1, 2.0))
    assert (core.config.grid, core.config.block, core.config.shmem_size) == ((6, 1, 1), (64, 1, 1), 0)
    assert [value.value for value in core.values] == [1, 2.0]
    loader.launch(None, (6, 4), (32, 2), (), shared=100, cluster=3)
    # cuda.core counts clusters.
    assert (core.config.grid, core.config.cluster) == ((2, 4, 1), (3, 1, 1))
    assert (core.config.block, core.config.shmem_size) == ((32, 2, 1), 100)
    with pytest.raises(InputError, match=r"wanted a multiple of the cluster \(4, 1, 1\)"):
        loader.launch(None, (6, 4), 32, (), cluster=4)


def test_tensors_must_be_on_one_gpu(core: Recorder) -> None:
    with pytest.raises(InputError, match="found them on cpu, wanted all on one GPU"):
        loader.launch(None, 1, 32, (torch.zeros(1),))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu() -> None:
    with pytest.raises(TargetError, match="PyTorch finds no NVIDIA GPU"):
        loader.kernel("scheduler_step", "normal")


def test_what_the_driver_refuses_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """cuda.core raises a class of its own, which is a plain Exception."""
    from cuda.core._utils.cuda_utils import CUDAError

    class Code:
        def get_kernel(self, name: str) -> Any:
            raise CUDAError("CUDA_ERROR_NOT_FOUND: a named\nsymbol was not found")

    monkeypatch.setattr(loader, "_code", lambda op, arch: Code())
    with pytest.raises(
        TargetError,
        match=r"^CUDA kernel a of b cannot be loaded for sm_90: CUDA_ERROR_NOT_FOUND: a named",
    ):
        loader.kernel("b", "a", "sm_90")


@pytest.mark.gpu
@pytest.mark.parametrize("source", ["fat binary", "NVRTC"])
def test_a_kernel_runs(source: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    if source == "NVRTC":
        monkeypatch.setattr(loader, "fat_binary", lambda op, arch: None)
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    elif compiler.fat_binary("scheduler_step", loader.architecture()) is None:
        pytest.skip("the package was built without nvcc")
    loader._kernel.cache_clear()
    loader._code.cache_clear()
    run = loader.kernel("scheduler_step", "normal")
    state = torch.tensor([42, 0], device="cuda")
    side = torch.cuda.Stream()
    for stream in (None, side):
        out = torch.zeros(4, device="cuda")
        torch.cuda.synchronize()
        loader.launch(run, 1, 256, (state, 0, 256, out, 4), stream=stream)
        torch.cuda.synchronize()
        assert torch.allclose(out.cpu(), torch.tensor([0.1940, 2.1614, -0.1721, 0.8491]), atol=1e-4)
    assert bool(list(tmp_path.rglob("*.cubin"))) == (source == "NVRTC")
    with pytest.raises(TargetError, match="CUDA kernel nothing of scheduler_step cannot be loaded"):
        loader.kernel("scheduler_step", "nothing")
    loader._kernel.cache_clear()
    loader._code.cache_clear()
