"""Compiling and refitting a module: ONNX, profiles, TensorRT's build or refit, the timing cache."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastdiff.config import Precision
from fastdiff.errors import CaptureError, TargetError
from fastdiff.targets import Compiled, CompileOptions
from fastdiff.targets.gpu import Gpu
from fastdiff.targets.tensorrt import backend
from fastdiff.targets.tensorrt.interface import Api, BuildRequest, DeviceMemoryError, TensorRtError
from fastdiff.targets.tensorrt.profiles import input_shapes, make_profiles
from fastdiff.targets.tensorrt.progress import BuildProgress
from fastdiff.targets.tensorrt.timing_cache import TimingCache

if TYPE_CHECKING:
    from fastdiff.build.capture import CapturedModule
    from fastdiff.manifest import ModuleEntry

__all__ = ["SUFFIX", "compile_module", "load_api", "refit_module", "requirements"]

SUFFIX = ".plan"

_WORKSPACE = 0.75
"""Share of the free device memory that one layer may use as scratch while it is tuned and run."""


def compile_module(captured: CapturedModule, folder: Path, options: CompileOptions) -> Compiled:
    """Write ``<module>.plan``, built for the first GPU. Raises CaptureError and TargetError."""
    api, device, gpu = load_api(), backend.device(0), backend.gpus()[0][0]
    usual = {symbol: options.sizes.get(symbol, size.minimum) for symbol, size in captured.spec.shapes.items()}
    profiles, ranges = make_profiles(captured.spec.shapes, usual)
    cache = TimingCache(folder.parent, gpu, backend.version())
    before = cache.read()
    name = f"{captured.name}{SUFFIX}"
    network = _network(captured, folder, options.precision)
    with network as onnx, _failures(captured.name, "build"), device.active():
        request = BuildRequest(
            profiles=tuple(input_shapes(profile, captured.spec.inputs) for profile in profiles),
            workspace=int(device.free_bytes() * _WORKSPACE),
            refittable=options.refit,
            timing_cache=before,
            phases=BuildProgress(options.progress or (lambda fraction: None)),
        )
        after = api.build(onnx, folder / name, request)
        cache.update(after, before, api)
    tactics: dict[str, Any] = {
        "outputs": _output_names(captured),
        "profiles": [{symbol: list(sizes) for symbol, sizes in profile.items()} for profile in profiles],
        "refittable": options.refit,
    }
    return Compiled((name,), tactics, requirements(gpu), ranges)


def refit_module(captured: CapturedModule, old: Path, folder: Path, entry: ModuleEntry) -> tuple[str, ...]:
    """Write the plan in ``old`` with the weights of ``captured`` to ``folder``; the file names.

    Raises CaptureError where the weights are not those of the same network.
    """
    api, device = load_api(), backend.device(0)
    names = tuple(entry.files)
    network = _network(captured, folder, entry.precision)
    with network as onnx, _failures(captured.name, "refit"), device.active():
        for name in names:
            api.refit(old / name, onnx, folder / name)
    return names


def load_api() -> Api:
    """TensorRT. Raises TargetError when its libraries cannot be loaded."""
    try:
        return backend.api()
    except ImportError as error:
        reason = " ".join(str(error).split())[:200]
        raise TargetError(
            f"target 'tensorrt' cannot run here: TensorRT cannot be loaded ({reason}); install it again with:"
            " pip install --force-reinstall 'fastdiff[tensorrt]'"
        ) from error


def requirements(gpu: Gpu) -> dict[str, str]:
    """What a plan that was built here needs: the manifest's ``requires``."""
    return {
        "gpu": gpu.name,
        "compute_capability": gpu.compute_capability,
        "tensorrt": backend.version(),
    }


def _output_names(captured: CapturedModule) -> list[str]:
    from fastdiff.build.onnx import onnx_output_names

    return onnx_output_names(captured)


@contextlib.contextmanager
def _network(captured: CapturedModule, folder: Path, precision: Precision) -> Iterator[Path]:
    """The module as an ONNX file, which is gone afterwards."""
    from fastdiff.build.onnx import export_onnx

    files = export_onnx(captured, folder / f"{captured.name}.onnx", precision)
    try:
        yield files[0]
    finally:
        for file in files:
            file.unlink(missing_ok=True)


@contextlib.contextmanager
def _failures(name: str, what: str) -> Iterator[None]:
    try:
        yield
    except DeviceMemoryError as error:
        raise CaptureError(f"TensorRT cannot {what} {name}: {error}: free some, or build for less") from error
    except TensorRtError as error:
        raise CaptureError(f"TensorRT cannot {what} {name}: {error}") from error
