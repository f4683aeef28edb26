"""TensorRT and CUDA of this machine, imported when they are first wanted; tests put stand-ins here."""

from __future__ import annotations

import functools
import importlib.metadata
import importlib.util
import re

from fastdiff.targets import gpu
from fastdiff.targets.gpu import Gpu
from fastdiff.targets.tensorrt.interface import Api, Device

__all__ = ["api", "device", "gpus", "missing_packages", "version"]

_DISTRIBUTIONS = ("tensorrt", "tensorrt-cu13", "tensorrt-cu12")


@functools.cache
def api() -> Api:
    """TensorRT. Raises ImportError with the loader's reason where its libraries cannot be loaded."""
    from fastdiff.targets.tensorrt.api import TensorRt

    return TensorRt()


@functools.cache
def device(index: int) -> Device:
    """GPU number ``index``."""
    from fastdiff.targets.tensorrt.device import CudaDevice

    return CudaDevice(index)


def gpus() -> tuple[tuple[Gpu, ...], str]:
    """The GPUs that this process may use, and why there are none."""
    return gpu.find_gpus()


def missing_packages() -> list[str]:
    """What is not installed of ``tensorrt`` and ``cuda-python``, without importing either."""
    missing = [] if importlib.util.find_spec("tensorrt") else ["tensorrt"]
    parent = importlib.util.find_spec("cuda")
    if parent is None or importlib.util.find_spec("cuda.bindings") is None:
        missing.append("cuda-python")
    return missing


def version() -> str:
    """TensorRT's version, ``"10.16.1.11"``, from the installed package; empty where that does not tell."""
    for name in _DISTRIBUTIONS:
        try:
            found = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
        if match := re.match(r"\d+(\.\d+){1,3}", found):
            return match[0]
    return ""
