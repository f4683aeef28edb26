"""Compiling and refitting a module: ONNX, profiles, TensorRT's build or refit, what LoRAs need, the timing
cache.
"""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastdiff.config import Precision
from fastdiff.errors import CaptureError, EngineDamagedError, TargetError
from fastdiff.targets import Compiled, CompileOptions, parameters
from fastdiff.targets.gpu import Gpu
from fastdiff.targets.tensorrt import backend, merge_network, originals
from fastdiff.targets.tensorrt.interface import (
    Api,
    BuildRequest,
    DeviceMemoryError,
    InputShapes,
    TensorRtError,
)
from fastdiff.targets.tensorrt.profiles import input_shapes, make_profiles
from fastdiff.targets.tensorrt.progress import BuildProgress
from fastdiff.targets.tensorrt.timing_cache import TimingCache

if TYPE_CHECKING:
    from fastdiff.build.capture import CapturedModule
    from fastdiff.manifest import ModuleEntry

__all__ = ["SUFFIX", "compile_module", "load_api", "plan_of", "refit_module", "requirements"]

SUFFIX = ".plan"

_WORKSPACE = 0.75
"""Share of the free device memory that one layer may use as scratch while it is tuned and run."""


def compile_module(captured: CapturedModule, folder: Path, options: CompileOptions) -> Compiled:
    """Write ``<module>.plan``, built for the first GPU, and with ``refit`` what LoRAs need.

    Raises CaptureError, TargetError and OutputError.
    """
    usual = {symbol: options.sizes.get(symbol, size.minimum) for symbol, size in captured.spec.shapes.items()}
    profiles, ranges = make_profiles(captured.spec.shapes, usual)
    builder, plan = _Builder(folder, options), folder / f"{captured.name}{SUFFIX}"
    network = _network(captured, folder, options.precision)
    with network as onnx, _failures(captured.name, "build"), builder.device.active():
        builder.build(onnx, plan, [input_shapes(profile, captured.spec.inputs) for profile in profiles])
        more: tuple[str, ...] = ()
        if options.refit:
            weights = _write_weights(captured, onnx, plan, options.precision)
            more = (*weights.files, builder.build_merge(plan, weights.matrices)) if weights.files else ()
    tactics: dict[str, Any] = {
        "outputs": _output_names(captured),
        "profiles": [{symbol: list(sizes) for symbol, sizes in profile.items()} for profile in profiles],
        "refittable": options.refit,
    }
    return Compiled((plan.name, *more), tactics, requirements(builder.gpu), ranges)


def refit_module(captured: CapturedModule, old: Path, folder: Path, entry: ModuleEntry) -> tuple[str, ...]:
    """Write the plan in ``old`` with the weights of ``captured`` to ``folder``, and those weights for LoRAs
    where the engine has the old ones; the file names.

    Raises CaptureError where the weights are not those of the same network.
    """
    api, device = load_api(), backend.device(0)
    plan, merge_plan = plan_of(entry), f"{captured.name}{merge_network.SUFFIX}"
    if plan is None:
        raise EngineDamagedError(f"{old}: module {captured.name} lists no plan; build it again")
    names: tuple[str, ...] = (plan,)
    network = _network(captured, folder, entry.precision)
    with network as onnx, _failures(captured.name, "refit"), device.active():
        api.refit(old / plan, onnx, folder / plan)
        if merge_plan in entry.files:
            weights = _write_weights(captured, onnx, folder / plan, entry.precision)
            shutil.copyfile(old / merge_plan, folder / merge_plan)
            names += (*weights.files, merge_plan)
    return names


def plan_of(entry: ModuleEntry) -> str | None:
    """The file of a module's plan."""
    plans = [
        file for file in entry.files if file.endswith(SUFFIX) and not file.endswith(merge_network.SUFFIX)
    ]
    return next(iter(plans), None)


class _Builder:
    """Builds plans for the first GPU, with the timing cache beside the engine."""

    def __init__(self, folder: Path, options: CompileOptions) -> None:
        self.api, self.device, self.gpu = load_api(), backend.device(0), backend.gpus()[0][0]
        self._cache = TimingCache(folder.parent, self.gpu, backend.version())
        self._options = options

    def build(self, network: Path, plan: Path, profiles: Sequence[InputShapes]) -> None:
        """Build a module's plan, which can be refitted where that is asked for."""
        self._build(
            network, plan, profiles, self._options.refit, self._options.progress or (lambda share: None)
        )

    def build_merge(self, plan: Path, matrices: Collection[tuple[int, int]]) -> str:
        """Build what adds updates to weights of these rows and columns, beside the module's plan; its name.

        It is small, and so is its part of the time, which has no progress of its own.
        """
        path = plan.with_name(plan.name.removesuffix(SUFFIX) + merge_network.SUFFIX)
        network = path.with_suffix(".onnx")
        merge_network.write_merge(network, self._options.precision is Precision.FP16)
        try:
            self._build(network, path, [merge_network.merge_shapes(matrices)], False, lambda share: None)
        finally:
            network.unlink(missing_ok=True)
        return path.name

    def _build(
        self,
        network: Path,
        plan: Path,
        profiles: Sequence[InputShapes],
        refittable: bool,
        progress: Callable[[float], None],
    ) -> None:
        before = self._cache.read()
        request = BuildRequest(
            profiles=tuple(profiles),
            workspace=int(self.device.free_bytes() * _WORKSPACE),
            refittable=refittable,
            timing_cache=before,
            phases=BuildProgress(progress),
        )
        self._cache.update(self.api.build(network, plan, request), before, self.api)


@dataclass(frozen=True)
class _Written:
    """What LoRAs need of a plan: the files, none where it takes none, and rows and columns of its weights."""

    files: tuple[str, ...] = ()
    matrices: tuple[tuple[int, int], ...] = ()


def _write_weights(captured: CapturedModule, network: Path, plan: Path, precision: Precision) -> _Written:
    """Write which weights of a plan can be updated, and their values."""
    from fastdiff.targets.tensorrt.adaptable import find_adaptable

    dtype = "float16" if precision is Precision.FP16 else "float32"
    layers, values = find_adaptable(captured, network, load_api().load(plan), dtype)
    if not layers:
        return _Written()
    files = parameters.write(plan.parent, captured.name, layers)
    matrices = tuple(
        merge_network.matrix_of(values[name].shape) for layer in layers.values() for name, _ in layer.places
    )
    return _Written((*files, originals.write(plan.parent, captured.name, values)), matrices)


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
