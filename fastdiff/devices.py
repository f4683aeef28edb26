"""Names of devices, and whether an engine can run on them: numbers for GPUs, ``cpu`` for the CPU."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Literal

from fastdiff.arguments import integer
from fastdiff.errors import EngineMismatchError, InputError, TargetError
from fastdiff.manifest import Manifest
from fastdiff.targets import runs_on_gpu
from fastdiff.targets.gpu import find_gpus

__all__ = [
    "Device",
    "check_device",
    "check_devices",
    "default_device",
    "device_name",
    "gpu_number",
    "parse_devices",
    "share_threads",
]

Device = int | Literal["cpu"]
"""The number of a GPU, as the NVIDIA driver counts those that the process may use, or the CPU."""


def parse_devices(text: str) -> tuple[Device, ...]:
    """``0,1`` or ``cpu,cpu`` as devices. Raises InputError."""
    return tuple(_parse(word.strip()) for word in text.split(","))


def _parse(word: str) -> Device:
    if word == "cpu":
        return "cpu"
    if word.isascii() and word.isdigit():
        return int(word)
    raise InputError(f"device {word!r} is unknown: give numbers of GPUs or cpu, such as 0,1 or cpu,cpu")


def device_name(device: Device) -> str:
    """As messages have it."""
    return "CPU" if device == "cpu" else f"GPU {device}"


def default_device(manifest: Manifest) -> Device:
    """What an engine runs on when nobody says: the first GPU if it needs one."""
    return 0 if any(runs_on_gpu(entry) for entry in manifest.modules.values()) else "cpu"


def gpu_number(device: Device | None) -> int | None:
    """What a target's ``open`` takes."""
    return None if device is None or device == "cpu" else device


def check_devices(manifest: Manifest, devices: Sequence[Device]) -> None:
    """Whether the engine runs on each of ``devices``, before any process is started or library imported.

    Raises InputError for none, for one of another kind than the engine's, and for a GPU that is given twice,
    TargetError for a GPU that is not there, EngineMismatchError for one of another compute capability.
    """
    if not devices:
        raise InputError("no devices: give at least one, such as 0 or cpu")
    for index, device in enumerate(devices):
        if device != "cpu" and device in devices[:index]:
            raise InputError(
                f"{device_name(device)} is given twice: give each GPU once; only cpu may be repeated, for "
                "processes that share its cores"
            )
        check_device(manifest, device)


def check_device(manifest: Manifest, device: Device) -> None:
    """``check_devices`` for one. The GPUs are asked of the driver, which takes no memory on them."""
    if device != "cpu" and (isinstance(device, bool) or not isinstance(device, int) or device < 0):
        raise InputError(f"device {device!r} is unknown: give the number of a GPU, or 'cpu'")
    on_gpu = [name for name, entry in manifest.modules.items() if runs_on_gpu(entry)]
    if device == "cpu":
        if on_gpu:
            raise InputError(
                f"device cpu: {on_gpu[0]} of this engine was built for GPUs, target "
                f"{manifest.modules[on_gpu[0]].target!r}: give numbers of GPUs, or build with --target native"
            )
        return
    if not on_gpu:
        name, entry = next(iter(manifest.modules.items()))
        raise InputError(
            f"device {device} is a GPU, and {name} of this engine was built for the CPU, target "
            f"{entry.target!r}: give cpu, or build with --target cuda"
        )
    _check_gpu(manifest, device)


def _check_gpu(manifest: Manifest, device: int) -> None:
    gpus, reason = find_gpus()
    if device >= len(gpus):
        there = f"this machine has {len(gpus)}, numbered from 0" if gpus else reason
        raise TargetError(f"GPU {device}: {there}")
    gpu = gpus[device]
    for name, entry in manifest.modules.items():
        wanted = entry.requires.get("compute_capability")
        # TensorRT has plans for more than one capability and compares for itself
        if entry.target == "cuda" and wanted is not None and wanted != gpu.compute_capability:
            raise EngineMismatchError(
                f"GPU {device} is {gpu.name} (compute capability {gpu.compute_capability}), {name} was built "
                f"for {entry.requires.get('gpu', 'a GPU')} ({wanted}); build an engine for it"
            )


def share_threads(devices: Sequence[Device], threads: int | None) -> list[int | None]:
    """Threads for each of ``devices``, of ``threads`` in all, None: every core. GPUs take what is given."""
    if threads is not None:
        threads = integer("threads", threads, minimum=1)
    sharing = [index for index, device in enumerate(devices) if device == "cpu"]
    total = threads or len(os.sched_getaffinity(0))
    shares: list[int | None] = [threads] * len(devices)
    for place, index in enumerate(sharing):
        shares[index] = max(1, (total * (place + 1)) // len(sharing) - (total * place) // len(sharing))
    return shares
