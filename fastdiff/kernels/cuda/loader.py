"""Loads the kernels of ``csrc/cuda/`` and launches them through ``cuda.core`` on PyTorch's stream.

    f = kernel("group_norm_silu", "group_norm_silu_f16")
    launch(f, grid=(32, 2), block=256, args=(x, out, 4096, 1e-5), shared=16384)

A launch allocates nothing on the GPU and waits for nothing, so that it can be captured into a CUDA graph;
load and launch a kernel once before, as any work is warmed up before its capture.
"""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Sequence
from functools import cache
from typing import Any

import torch

from fastdiff.errors import FastdiffError, InputError, TargetError
from fastdiff.kernels.cuda.compiler import cubin, cuda_core, fat_binary

__all__ = ["architecture", "kernel", "launch"]

_DEFAULT_SHARED = 48 * 1024
"""Bytes of dynamic shared memory that a kernel has without asking."""
_thread = threading.local()
_lock = threading.Lock()
_granted: dict[tuple[Any, int], int] = {}
"""The most dynamic shared memory that a kernel was granted on a device."""


def architecture(device: int | None = None) -> str:
    """The architecture of a GPU, the current one by default, as the compilers call it: "sm_90"."""
    if not torch.cuda.is_available():
        raise TargetError(
            "CUDA kernels: PyTorch finds no NVIDIA GPU; run where torch.cuda.is_available() is true"
        )
    return _architecture(torch.cuda.current_device() if device is None else device)


@cache
def _architecture(device: int) -> str:
    major, minor = torch.cuda.get_device_capability(device)
    if major < 8:
        raise TargetError(f"GPU {device}: found compute capability {major}.{minor}, wanted 8.0 or newer")
    return f"sm_{major}{minor}"


def kernel(op: str, name: str, arch: str | None = None) -> Any:
    """The kernel ``name`` of ``csrc/cuda/<op>.cu`` for ``arch``, by default that of the current GPU.

    From the package's fat binary, else compiled by NVRTC once and cached. Kept for the process and valid on
    all of its GPUs of that architecture. Raises TargetError in one line where there is no driver, no NVRTC,
    or the compilation fails, InputError for an op that does not exist.
    """
    return _kernel(op, name, arch or architecture())


@cache
def _kernel(op: str, name: str, arch: str) -> Any:
    try:
        return _code(op, arch).get_kernel(name)
    except FastdiffError:
        raise
    except Exception as problem:  # cuda.core's own class for what the driver refuses, and others
        text = " ".join(str(problem).split())
        raise TargetError(f"CUDA kernel {name} of {op} cannot be loaded for {arch}: {text}") from problem


@cache
def _code(op: str, arch: str) -> Any:
    objects = cuda_core().ObjectCode
    program = fat_binary(op, arch)
    if program is not None:
        return objects.from_fatbin(program, name=op)
    return objects.from_cubin(cubin(op, arch), name=op)


def launch(
    kernel: Any,
    grid: Sequence[int] | int,
    block: Sequence[int] | int,
    args: Sequence[Any],
    shared: int = 0,
    cluster: Sequence[int] | int | None = None,
    stream: torch.cuda.Stream | None = None,
) -> None:
    """Launch ``kernel`` on ``stream``, by default PyTorch's current stream of the device that the tensors
    are on.

    ``grid`` and ``block`` count blocks and threads, also with ``cluster``, the blocks that share their
    memory, which must divide the grid. ``shared``: bytes of dynamic shared memory.

    ``args`` in the kernel's order: a tensor is the pointer to its first element and None a null pointer,
    int is int32_t, float is float, and objects of :mod:`ctypes` are what they are.
    """
    core = cuda_core()
    tensors = [arg for arg in args if isinstance(arg, torch.Tensor)]
    device = stream.device.index if stream is not None else tensors[0].device.index if tensors else None
    if any(not tensor.is_cuda or tensor.device.index != device for tensor in tensors):
        places = ", ".join(sorted({str(tensor.device) for tensor in tensors}))
        raise InputError(f"tensors of a CUDA kernel: found them on {places}, wanted all on one GPU")
    if device is None:
        device = torch.cuda.current_device()
    blocks = _three(grid)
    if cluster is not None:
        shape = _three(cluster)
        if any(size % part for size, part in zip(blocks, shape, strict=True)):
            raise InputError(f"grid: found {blocks} blocks, wanted a multiple of the cluster {shape}")
        blocks = tuple(size // part for size, part in zip(blocks, shape, strict=True))
        config = core.LaunchConfig(grid=blocks, block=_three(block), cluster=shape, shmem_size=shared)
    else:
        config = core.LaunchConfig(grid=blocks, block=_three(block), shmem_size=shared)
    values = [_argument(arg) for arg in args]
    with torch.cuda.device(device):
        _enter(core, device)
        if shared > _DEFAULT_SHARED:
            _grant(kernel, device, shared)
        handle = (stream or torch.cuda.current_stream(device)).cuda_stream
        core.launch(_stream(device, handle), config, kernel, *values)


def _three(size: Sequence[int] | int) -> tuple[int, ...]:
    sizes = (size,) if isinstance(size, int) else tuple(size)
    return (*sizes, *(1,) * (3 - len(sizes)))


def _argument(value: Any) -> Any:
    match value:
        case None:
            return 0  # cuda.core takes an int for a pointer
        case torch.Tensor():
            return value.data_ptr()
        case bool() | int():
            if not -(2**31) <= value < 2**31:
                raise InputError(
                    f"argument of a CUDA kernel: found {value}, wanted 32 bits or a ctypes.c_int64"
                )
            return ctypes.c_int32(value)
        case float():
            return ctypes.c_float(value)
    return value


def _enter(core: Any, device: int) -> None:
    """Make the device's context this thread's: PyTorch does so only at its own first call in a thread."""
    entered: set[int] = _thread.__dict__.setdefault("entered", set())
    if device not in entered:
        core.Device(device).set_current()
        entered.add(device)


@cache
def _stream(device: int, handle: int) -> Any:
    """PyTorch's streams live as long as the process, so that the object that wraps one can be kept."""
    return cuda_core().Stream.from_handle(handle)


def _grant(kernel: Any, device: int, shared: int) -> None:
    """Let a kernel have more than 48 KiB of dynamic shared memory."""
    from cuda.bindings import driver

    key = (kernel, device)
    if _granted.get(key, 0) >= shared:
        return
    attribute = driver.CUfunction_attribute.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
    handle = kernel.handle if hasattr(kernel, "handle") else kernel._handle
    (error,) = driver.cuKernelSetAttribute(attribute, shared, handle, driver.CUdevice(device))
    if int(error) != 0:
        raise TargetError(
            f"GPU {device}: {shared} bytes of shared memory per block are too many ({error.name})"
        )
    with _lock:
        _granted[key] = max(shared, _granted.get(key, 0))
