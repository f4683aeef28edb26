"""The NVIDIA GPUs of this machine, asked of the driver itself: no library of a vendor is imported."""

from __future__ import annotations

import ctypes
import functools
from dataclasses import dataclass

__all__ = ["Gpu", "find_gpus"]

_MAJOR, _MINOR = 75, 76
"""CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR and _MINOR of CUDA's driver API."""


@dataclass(frozen=True)
class Gpu:
    """One GPU: its number among those that this process may use, name and compute capability, ``"9.0"``."""

    index: int
    name: str
    compute_capability: str


@functools.cache
def find_gpus() -> tuple[tuple[Gpu, ...], str]:
    """The GPUs, and why there are none.

    Starts the driver in this process, which takes some tenths of a second once; CUDA cannot be used in
    processes forked from it.
    """
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return (), "there is no NVIDIA driver"
    if status := driver.cuInit(0):
        return (), f"the NVIDIA driver does not start (error {status})"
    count = ctypes.c_int()
    driver.cuDeviceGetCount(ctypes.byref(count))
    gpus = tuple(_gpu(driver, index) for index in range(count.value))
    return gpus, "" if gpus else "there is no NVIDIA GPU"


def _gpu(driver: ctypes.CDLL, index: int) -> Gpu:
    device, name, value = ctypes.c_int(), ctypes.create_string_buffer(256), ctypes.c_int()
    driver.cuDeviceGet(ctypes.byref(device), index)
    driver.cuDeviceGetName(name, len(name), device)
    capability = []
    for attribute in (_MAJOR, _MINOR):
        driver.cuDeviceGetAttribute(ctypes.byref(value), attribute, device)
        capability.append(str(value.value))
    return Gpu(index, name.value.decode("utf-8", "replace"), ".".join(capability))
