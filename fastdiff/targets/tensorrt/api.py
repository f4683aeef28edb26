"""All use of TensorRT's Python API: what versions 10.1 to 11 have in common.

Networks are strongly typed: types follow the ONNX file, and version 11 knows nothing else. Only names that
both versions have are used; tests/targets/tensorrt/test_names.py checks this file against the signatures of
both.
"""

from __future__ import annotations

import mmap
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeVar

import tensorrt as trt

from fastdiff.targets.tensorrt.interface import (
    BuildRequest,
    Context,
    Engine,
    Phases,
    Shape,
    TensorRtError,
    Values,
)

__all__ = ["TensorRt"]

_OPTIMIZATION_LEVEL = 5
"""Kernels are generated and compared with the precompiled ones for every layer: the longest build, once."""

_REFIT_SINCE = (10, 14)
"""First version whose plans can be refitted after they were refitted."""

_DTYPES = {
    trt.DataType.FLOAT: "float32",
    trt.DataType.HALF: "float16",
    trt.DataType.INT32: "int32",
    trt.DataType.INT64: "int64",
}
_WEIGHTS = {"float32": trt.DataType.FLOAT, "float16": trt.DataType.HALF}

T = TypeVar("T")


class _Log(trt.ILogger):  # type: ignore[misc, unused-ignore]
    """Keeps errors for the exception that follows them; TensorRT wants one log for the whole process."""

    def __init__(self) -> None:
        trt.ILogger.__init__(self)
        self.errors: list[str] = []

    def log(self, severity: trt.ILogger.Severity, msg: str) -> None:
        if severity in (trt.ILogger.Severity.ERROR, trt.ILogger.Severity.INTERNAL_ERROR):
            self.errors.append(" ".join(msg.split()))


_LOG = _Log()


class TensorRt:
    """``interface.Api`` by TensorRT itself."""

    def build(self, network: Path, plan: Path, request: BuildRequest) -> bytes:
        """Build ``network`` into ``plan``: for this GPU and this version only, without TF32."""
        builder = _made("a builder", lambda: trt.Builder(_LOG))
        flags = 1 << trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED.value
        definition = _made("a network", lambda: builder.create_network(flags))
        parser = _made("a parser", lambda: trt.OnnxParser(definition, _LOG))
        if not parser.parse_from_file(str(network)):
            raise TensorRtError(_parser_errors(parser))
        config = _made("a configuration", builder.create_builder_config)
        config.builder_optimization_level = _OPTIMIZATION_LEVEL
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, request.workspace)
        config.clear_flag(trt.BuilderFlag.TF32)
        if request.refittable:
            _check_refit()
            config.set_flag(trt.BuilderFlag.REFIT)
        for shapes in request.profiles:
            profile = builder.create_optimization_profile()
            for name, (least, usual, most) in shapes.items():
                profile.set_shape(name, trt.Dims(list(least)), trt.Dims(list(usual)), trt.Dims(list(most)))
            if config.add_optimization_profile(profile) < 0:
                raise TensorRtError(f"the shapes {dict(shapes)} make no profile{_reason(': ')}")
        _set_timing_cache(config, request.timing_cache)
        monitor = _Monitor(request.phases)
        config.progress_monitor = monitor
        built = _made("a plan", lambda: builder.build_serialized_network(definition, config), monitor)
        with plan.open("wb") as stream:
            stream.write(built)
        return bytes(config.get_timing_cache().serialize())

    def merge_timing_caches(self, first: bytes, second: bytes) -> bytes:
        """Entries of both; those of a cache of another GPU or version are left out."""
        builder = _made("a builder", lambda: trt.Builder(_LOG))
        config = builder.create_builder_config()
        merged = _set_timing_cache(config, first)
        other = config.create_timing_cache(second)
        if other is not None:
            merged.combine(other, ignore_mismatch=False)
        return bytes(merged.serialize())

    def load(self, plan: Path) -> Engine:
        """Read a plan on the current GPU."""
        return _Engine(_deserialized(plan))

    def refit(self, plan: Path, network: Path, refitted: Path) -> None:
        """Replace the weights of ``plan``; all of them must be in ``network``, under the same names."""
        _check_refit()
        engine = _deserialized(plan)
        if not engine.refittable:
            raise TensorRtError("the plan was not built to be refitted")
        refitter = _made("a refitter", lambda: trt.Refitter(engine, _LOG))
        parser = _made("a parser", lambda: trt.OnnxParserRefitter(refitter, _LOG))
        _LOG.errors.clear()
        if not parser.refit_from_file(str(network)):
            raise TensorRtError(_parser_errors(parser))
        if missing := refitter.get_missing_weights():
            raise TensorRtError(f"{len(missing)} weights are missing, the first is {missing[0]}")
        if not refitter.refit_cuda_engine():
            raise TensorRtError(f"the weights do not fit{_reason(': ')}")
        config = engine.create_serialization_config()
        config.set_flag(trt.SerializationFlag.INCLUDE_REFIT)
        with refitted.open("wb") as stream:
            stream.write(_made("a plan", lambda: engine.serialize_with_config(config)))


class _Engine:
    def __init__(self, engine: trt.ICudaEngine) -> None:
        self._engine = engine
        names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
        dtypes = {name: engine.get_tensor_dtype(name) for name in names}
        self.tensors: Mapping[str, str] = {
            name: _DTYPES.get(dtype, dtype.name) for name, dtype in dtypes.items()
        }

    def memory(self, profile: int) -> int:
        size: int = self._engine.get_device_memory_size_for_profile_v2(profile)
        return size

    def create_context(self, profile: int, stream: int) -> Context:
        return _Context(self._engine, profile, stream)

    def replaceable(self) -> Mapping[str, tuple[str, int]]:
        if not self._engine.refittable:
            return {}
        refitter = self._refitter()
        found = {name: refitter.get_weights_prototype(name) for name in refitter.get_all_weights() if name}
        return {name: (_DTYPES.get(kind.dtype, kind.dtype.name), kind.size) for name, kind in found.items()}

    def also_needed(self, weights: Mapping[str, Values]) -> list[str]:
        refitter = self._refitter()
        _set_weights(refitter, weights)
        return list(refitter.get_missing_weights())

    def replace(self, weights: Mapping[str, Values], others: Callable[[str], Values], stream: int) -> None:
        refitter = self._refitter()
        _set_weights(refitter, weights)
        _set_weights(refitter, {name: others(name) for name in refitter.get_missing_weights()})
        if not refitter.refit_cuda_engine_async(stream):
            raise TensorRtError(f"the weights cannot be replaced{_reason(': ')}")

    def _refitter(self) -> trt.Refitter:
        refitter = _made("a refitter", lambda: trt.Refitter(self._engine, _LOG))
        refitter.weights_validation = False  # of conversions, which a strongly typed network has none of
        return refitter


class _Context:
    def __init__(self, engine: trt.ICudaEngine, profile: int, stream: int) -> None:
        strategy = trt.ExecutionContextAllocationStrategy.USER_MANAGED
        self._most: int = engine.get_device_memory_size_for_profile_v2(profile)
        self._context = _made("a context", lambda: engine.create_execution_context(strategy))
        if not self._context.set_optimization_profile_async(profile, stream):
            raise TensorRtError(f"profile {profile} cannot be used{_reason(': ')}")

    def set_shapes(self, shapes: Mapping[str, Shape]) -> int:
        for name, shape in shapes.items():
            if not self._context.set_input_shape(name, tuple(shape)):
                raise TensorRtError(f"{name} cannot have shape {list(shape)}{_reason(': ')}")
        # 0 stands for "none" and for "unknown"; the profile's bound serves both
        size: int = self._context.update_device_memory_size_for_shapes()
        return size or self._most

    def set_memory(self, address: int, size: int) -> None:
        self._context.set_device_memory(address, size)

    def set_address(self, name: str, address: int) -> None:
        if not self._context.set_tensor_address(name, address):
            raise TensorRtError(f"{name} has no tensor{_reason(': ')}")

    def enqueue(self, stream: int) -> None:
        _LOG.errors.clear()
        if not self._context.execute_async_v3(stream):
            raise TensorRtError(f"the run failed{_reason(': ')}")


class _Monitor(trt.IProgressMonitor):  # type: ignore[misc, unused-ignore]
    """Passes progress on. An exception, Ctrl-C too, cannot cross TensorRT: it ends the build and waits."""

    def __init__(self, phases: Phases) -> None:
        trt.IProgressMonitor.__init__(self)
        self._phases = phases
        self.error: BaseException | None = None

    def phase_start(self, phase_name: str, parent_phase: str, num_steps: int) -> None:
        self._tell(lambda: self._phases.start(phase_name, parent_phase, num_steps))

    def step_complete(self, phase_name: str, step: int) -> bool:
        self._tell(lambda: self._phases.step(phase_name, step))
        return self.error is None

    def phase_finish(self, phase_name: str) -> None:
        self._tell(lambda: self._phases.finish(phase_name))

    def _tell(self, call: Callable[[], None]) -> None:
        try:
            if self.error is None:
                call()
        except BaseException as error:  # noqa: BLE001 (raised again after the build)
            self.error = error


def _made(what: str, make: Callable[[], T | None], monitor: _Monitor | None = None) -> T:
    """What ``make`` returns; TensorRT returns None, or raises, for what it cannot make."""
    _LOG.errors.clear()
    try:
        made, failure = make(), ""
    except (RuntimeError, TypeError) as error:
        made, failure = None, f": {error}"
    if monitor is not None and monitor.error is not None:
        raise monitor.error
    if made is None:
        raise TensorRtError(f"{what} cannot be made{_reason(': ') or failure}")
    return made


def _deserialized(plan: Path) -> trt.ICudaEngine:
    runtime = _made("a runtime", lambda: trt.Runtime(_LOG))
    with plan.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as data:
        return _made("an engine", lambda: runtime.deserialize_cuda_engine(data))


def _set_timing_cache(config: trt.IBuilderConfig, data: bytes) -> trt.ITimingCache:
    """Attach a timing cache, an empty one where ``data`` is of another GPU or version or damaged."""
    cache = config.create_timing_cache(data)
    if cache is None or not config.set_timing_cache(cache, ignore_mismatch=False):
        cache = config.create_timing_cache(b"")
        config.set_timing_cache(cache, ignore_mismatch=False)
    return cache


def _set_weights(refitter: trt.Refitter, weights: Mapping[str, Values]) -> None:
    _LOG.errors.clear()
    for name, values in weights.items():
        location = trt.TensorLocation.DEVICE if values.on_device else trt.TensorLocation.HOST
        given = trt.Weights(_WEIGHTS[values.dtype], values.address, values.count)
        if not refitter.set_named_weights(name, given, location):
            raise TensorRtError(f"the weight {name} cannot be replaced{_reason(': ')}")


def _check_refit() -> None:
    version = tuple(int(part) for part in trt.__version__.split(".")[:2])
    if version < _REFIT_SINCE:
        wanted = ".".join(map(str, _REFIT_SINCE))
        raise TensorRtError(f"refitting takes version {wanted} or newer, here is {trt.__version__}")


def _parser_errors(parser: trt.OnnxParser | trt.OnnxParserRefitter) -> str:
    found = [parser.get_error(index).desc() for index in range(parser.num_errors)]
    return "; ".join(" ".join(text.split()) for text in found[:2]) or _reason() or "no reason given"


def _reason(before: str = "") -> str:
    """The first errors in the log."""
    return before + "; ".join(_LOG.errors[:2])[:300] if _LOG.errors else ""
