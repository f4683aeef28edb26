"""Targets: each compiles a module into files of an engine and opens them again as a Session.

A target is a Python module with ``availability``, ``compile`` and ``open`` (see Target). Importing it imports
no vendor library; those are imported inside its functions.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, cast

from fastdiff.config import Precision, SizeRange
from fastdiff.errors import InputError, TargetError
from fastdiff.targets.session import Session

if TYPE_CHECKING:
    from fastdiff.build.capture import CapturedModule
    from fastdiff.manifest import ModuleEntry

__all__ = [
    "TARGETS",
    "Availability",
    "CompileOptions",
    "Compiled",
    "Session",
    "Target",
    "available_on",
    "computes_in",
    "default_precision",
    "get_target",
    "require_target",
    "resolve_target",
    "runs_on_gpu",
]

TARGETS: Mapping[str, str] = {
    "cuda": "fastdiff.targets.cuda",
    "native": "fastdiff.targets.native",
    "onnxruntime": "fastdiff.targets.onnxruntime",
    "tensorrt": "fastdiff.targets.tensorrt",
    "torch": "fastdiff.targets.torch",
}
"""Target names and the modules that implement them."""


@dataclass(frozen=True)
class Availability:
    """Whether a target can run here: ``reason`` says what is there or missing, ``fix`` how to get it."""

    ok: bool
    reason: str
    fix: str = ""


@dataclass(frozen=True)
class Compiled:
    """Result of compiling a module: file names inside the engine folder, tactics and requirements.

    ``shapes`` are the ranges of sizes that it takes where they are narrower than the module's, else None.
    """

    files: tuple[str, ...]
    tactics: dict[str, Any] = field(default_factory=dict)
    requires: dict[str, str] = field(default_factory=dict)
    shapes: dict[str, SizeRange] | None = None


@dataclass(frozen=True)
class CompileOptions:
    """What a build wants of a module, for the targets that can make use of it.

    precision  of the weights, one of the target's PRECISIONS
    sizes      symbolic sizes that the engine will mostly run at, which tactics are measured for; empty: none
    memory     bytes that weights may take, as a multiple of their bytes in float32
    threads    threads to measure tactics with; None means every core
    device     "cpu" or "cuda", for a target that runs on either
    refit      whether the weights can be replaced later, for a target that has ``refit``
    progress   called with the share of the work that is done, by a target that knows it
    """

    precision: Precision = Precision.FP32
    sizes: Mapping[str, int] = field(default_factory=dict)
    memory: float = 2.0
    threads: int | None = None
    device: str = "cpu"
    refit: bool = False
    progress: Callable[[float], None] | None = None


class Target(Protocol):
    """What a target's module offers.

    ``NEEDS_GRAPH`` says whether it compiles the captured graph, ``PRECISIONS`` what it can store, what it
    takes when none is asked for first,
    ``SELF_CHECKING`` the endings of files whose structure it checks itself whenever it opens them: large ones
    among them are hashed by ``fastdiff verify`` alone.

    A target that runs on GPUs alone has ``ON_GPU = True``, one that compiles U-Nets for sides of any length
    ``ANY_SIDES = True``: with DEVICES, on the first of them alone.
    A target that computes in a precision of 16 bits, and does not only store weights in it, names it in
    ``COMPUTES_IN``. One that compiles for several devices has ``DEVICES``: the precisions that it has on
    each, those of the first being PRECISIONS; its ``availability`` takes a device.

    A target whose files fit one kind of machine also has ``mismatch(entry) -> str | None``: what an entry was
    built for and what is here instead, None where it fits. It is asked once ``availability`` is ok.
    One that can replace weights without compiling again has ``refit(captured, old, folder, entry)``, which
    writes the entry's files of the engine folder ``old`` with other weights and returns their names.
    """

    NEEDS_GRAPH: bool
    PRECISIONS: tuple[Precision, ...]
    SELF_CHECKING: tuple[str, ...]

    def availability(self) -> Availability:
        """Whether the target can run on this machine; quick, imports no vendor library."""

    def compile(self, captured: CapturedModule, folder: Path, options: CompileOptions) -> Compiled:
        """Write a module's compiled form into the engine folder. Raises CaptureError."""

    def open(
        self, folder: Path, name: str, entry: ModuleEntry, threads: int | None, device: int | None = None
    ) -> Session:
        """Open a compiled module, on GPU number ``device`` where the target runs on GPUs, None: the first.

        Raises TargetError or EngineDamagedError.
        """


def resolve_target(name: str) -> str:
    """The target that ``name`` stands for: ``auto`` is ``cuda`` where it can run, else ``native``.

    Raises InputError for an unknown name.
    """
    if name == "auto":
        return "cuda" if get_target("cuda").availability().ok else "native"
    if name not in TARGETS:
        known = ", ".join(("auto", *TARGETS))
        raise InputError(f"unknown target {name!r}: known are {known}")
    return name


def get_target(name: str) -> Target:
    """The target called ``name``; raises as ``resolve_target`` does."""
    return cast(Target, importlib.import_module(TARGETS[resolve_target(name)]))


def require_target(name: str, precision: Precision = Precision.FP32, device: str | None = None) -> Target:
    """The target called ``name``, which has ``precision`` and can run here on ``device``, None: its own.

    Raises TargetError saying what is missing and InputError for a precision or a device that the target does
    not have.
    """
    target = get_target(name)
    devices: Mapping[str, tuple[Precision, ...]] = getattr(target, "DEVICES", {})
    if device is not None and devices and device not in devices:
        raise InputError(f"target {name!r} has no device {device!r}: use {' or '.join(devices)}")
    if device is not None and not devices:
        having = [other for other in TARGETS if device in getattr(get_target(other), "DEVICES", ())]
        raise InputError(
            f"target {name!r} compiles for one kind of device: leave --device out"
            + (f", or use --target {having[0]}" if having else "")
        )
    precisions = target.PRECISIONS if device is None else devices[device]
    if precision not in precisions:
        having = [other for other in TARGETS if precision in get_target(other).PRECISIONS]
        having.sort(key=lambda other: not get_target(other).availability().ok)  # what runs here comes first
        on = "" if device is None else f" on {device}"
        raise InputError(
            f"target {name!r} has no precision {precision.value}{on}: use {', '.join(precisions)}"
            + (f", or --target {having[0]}" if having else "")
        )
    availability = target.availability() if device is None else available_on(target, device)
    if not availability.ok:
        raise TargetError(f"target {name!r} cannot run here: {availability.reason}; {availability.fix}")
    return target


def available_on(target: Target, device: str) -> Availability:
    """Whether a target with DEVICES can run on one of them here."""
    answer: Availability = cast(Any, target).availability(device)
    return answer


def default_precision(name: str, device: str | None = None) -> Precision:
    """What a target takes when no precision is asked for: the first of its PRECISIONS, on that device."""
    target = get_target(name)
    precisions = target.PRECISIONS if device is None else getattr(target, "DEVICES", {}).get(device)
    return (precisions or target.PRECISIONS)[0]


def runs_on_gpu(entry: ModuleEntry) -> bool:
    """Whether a module was compiled for a GPU."""
    return bool(getattr(get_target(entry.target), "ON_GPU", False)) or entry.requires.get("device") == "cuda"


def computes_in(name: str, precision: Precision) -> bool:
    """Whether a target computes in ``precision``, where others only store weights in it."""
    return precision in getattr(get_target(name), "COMPUTES_IN", ())
