"""CUDA's runtime as device.py calls it. Without a driver a call must fail as CUDA does."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("cuda.bindings.runtime")

from cuda.bindings import runtime

from fastdiff.targets.gpu import find_gpus
from fastdiff.targets.tensorrt import device as module
from fastdiff.targets.tensorrt.device import CudaDevice
from fastdiff.targets.tensorrt.interface import Device, DeviceMemoryError, TensorRtError

ARRAY = np.arange(12, dtype=np.float32).reshape(3, 4)


def test_names_exist() -> None:
    tree = ast.parse(Path(module.__file__).read_text(encoding="utf-8"))
    used = [node for node in ast.walk(tree) if isinstance(node, ast.Attribute)]
    names = {node.attr for node in used if isinstance(node.value, ast.Name) and node.value.id == "runtime"}
    assert len(names) > 20
    assert [name for name in sorted(names) if not hasattr(runtime, name)] == []


CALLS: dict[str, tuple[Any, ...]] = {
    "allocate": (1000,),
    "free": (4096,),
    "free_bytes": (),
    "create_stream": (),
    "destroy_stream": (4096,),
    "upload": (4096, ARRAY, 8192),
    "download": (ARRAY.copy(), 4096, 8192),
    "synchronize": (4096,),
    "order": (4096, 8192),
    "begin_capture": (4096,),
    "end_capture": (4096,),
    "launch": (4096, 8192),
    "destroy_graph": (4096,),
}


@pytest.mark.skipif(bool(find_gpus()[0]), reason="would be carried out where there is a GPU")
@pytest.mark.parametrize("name", CALLS)
def test_arguments_are_what_cuda_takes(name: str) -> None:
    with pytest.raises(TensorRtError, match=r"^CUDA: .+ \(cudaError\w+\)$"):
        getattr(CudaDevice(0), name)(*CALLS[name])


@pytest.mark.skipif(bool(find_gpus()[0]), reason="would be carried out where there is a GPU")
def test_selecting_and_abandoning_without_a_gpu() -> None:
    with pytest.raises(TensorRtError, match="CUDA"), CudaDevice(0).active():
        pass
    CudaDevice(0).abandon_capture(4096)  # raises nothing: it cleans up after an error


def test_calls_are_those_of_the_interface() -> None:
    wanted = {name for name in vars(Device) if not name.startswith("_")}
    assert wanted == {*CALLS, "active", "abandon_capture"}
    assert wanted <= set(dir(CudaDevice))


def test_full_memory_is_an_error_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    full = runtime.cudaError_t.cudaErrorMemoryAllocation
    monkeypatch.setattr(runtime, "cudaMalloc", lambda size: (full, None))
    monkeypatch.setattr(
        runtime, "cudaMemGetInfo", lambda: (runtime.cudaError_t.cudaSuccess, 3 << 20, 8 << 20)
    )
    with pytest.raises(DeviceMemoryError, match="GPU 2 has no 5 MiB left, 3 MiB are free"):
        CudaDevice(2).allocate(5 << 20)


@pytest.mark.gpu
def test_copies_streams_and_graphs() -> None:
    device = CudaDevice(0)
    with device.active():
        stream, other = device.create_stream(), device.create_stream()
        source, target = device.allocate(ARRAY.nbytes), device.allocate(ARRAY.nbytes)
        assert source % 256 == target % 256 == 0
        device.upload(source, ARRAY, stream)
        kind = runtime.cudaMemcpyKind.cudaMemcpyDeviceToDevice
        device.synchronize(stream)
        device.begin_capture(stream)
        runtime.cudaMemcpyAsync(target, source, ARRAY.nbytes, kind, stream)
        graph = device.end_capture(stream)
        device.upload(source, 2 * ARRAY, stream)
        device.launch(graph, stream)
        device.order(stream, other)
        found = np.empty_like(ARRAY)
        device.download(found, target, other)
        device.synchronize(other)
        np.testing.assert_array_equal(found, 2 * ARRAY)
        device.destroy_graph(graph)
        for address in (source, target):
            device.free(address)
        for handle in (stream, other):
            device.destroy_stream(handle)


@pytest.mark.gpu
def test_gpu_is_what_cuda_says() -> None:
    gpus, reason = find_gpus()
    assert gpus
    assert reason == ""
    _, properties = runtime.cudaGetDeviceProperties(0)
    assert gpus[0].name == properties.name.decode()
    assert gpus[0].compute_capability == f"{properties.major}.{properties.minor}"
