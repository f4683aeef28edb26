"""Target ``onnxruntime``: the module as ONNX, run by ONNX Runtime on the CPU.

The file that is stored has been through ONNX Runtime's basic optimisations (constant folding, redundant
nodes), which stay within standard operators and fit any machine. A session opens it without further
optimisation: that halves the time to open, and the extended and layout levels did not shorten a step in
measurements.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastdiff.config import Precision
from fastdiff.errors import CaptureError, EngineDamagedError, TargetError
from fastdiff.manifest import ModuleEntry
from fastdiff.targets import Availability, Compiled, CompileOptions
from fastdiff.targets.session import Array, Session

if TYPE_CHECKING:
    from fastdiff.build.capture import CapturedModule

__all__ = ["NEEDS_GRAPH", "PRECISIONS", "SELF_CHECKING", "availability", "compile", "open"]

NEEDS_GRAPH = True
PRECISIONS = (Precision.FP32,)
SELF_CHECKING: tuple[str, ...] = ()

_INSTALL = "install it with: pip install 'fastdiff[onnxruntime]'"


def availability() -> Availability:
    """Whether ONNX Runtime is installed."""
    if importlib.util.find_spec("onnxruntime") is None:
        return Availability(False, "the package onnxruntime is not installed", _INSTALL)
    for package in ("onnxruntime", "onnxruntime-gpu"):
        try:
            return Availability(True, f"{package} {importlib.metadata.version(package)}")
        except importlib.metadata.PackageNotFoundError:
            continue
    return Availability(True, "onnxruntime, of unknown version")


def compile(captured: CapturedModule, folder: Path, options: CompileOptions) -> Compiled:
    """Export to ONNX and store it with the basic optimisations applied. Raises CaptureError."""
    from fastdiff.build.onnx import OPSET, export_onnx

    name = f"{captured.name}.onnx"
    exported = export_onnx(captured, folder / f"{captured.name}.exported.onnx")
    tactics: dict[str, Any] = {"format": "onnx", "opset": OPSET}
    if len(exported) > 1:  # ONNX refers to external data by file name, so these keep theirs
        return Compiled(
            tuple(path.name for path in exported), {**tactics, "optimisation": "basic, when opened"}
        )
    session_options = _options(1, "ORT_ENABLE_BASIC")
    session_options.optimized_model_filepath = str(folder / name)
    try:
        _open(exported[0], session_options)
    except Exception as error:  # ONNX Runtime raises one class per status code
        reason = " ".join(str(error).split())[:200]
        raise CaptureError(f"ONNX Runtime cannot prepare {captured.name}: {reason}") from error
    exported[0].unlink()
    return Compiled((name,), {**tactics, "optimisation": "basic, at build"})


def open(
    folder: Path, name: str, entry: ModuleEntry, threads: int | None, device: int | None = None
) -> Session:
    """Open a module on the CPU. Raises TargetError or EngineDamagedError."""
    available = availability()
    if not available.ok:
        raise TargetError(f"target 'onnxruntime' cannot run here: {available.reason}; {available.fix}")
    optimised = entry.tactics.get("optimisation") == "basic, at build"
    options = _options(threads, "ORT_DISABLE_ALL" if optimised else "ORT_ENABLE_BASIC")
    model = next((file for file in entry.files if file.endswith(".onnx")), None)
    if model is None:
        raise EngineDamagedError(f"{folder}: module {name} lists no .onnx file; build the engine again")
    try:
        session = _open(folder / model, options)
    except MemoryError:
        raise
    except Exception as error:  # ONNX Runtime raises one class per status code
        reason = " ".join(str(error).split())[:200]
        raise EngineDamagedError(
            f"{folder}: ONNX Runtime refuses {model} ({reason}); build it again"
        ) from error
    return _OnnxRuntimeSession(name, entry, session)


class _OnnxRuntimeSession(Session):
    def __init__(self, name: str, entry: ModuleEntry, session: Any) -> None:
        super().__init__(name, entry.inputs, entry.outputs, entry.shapes)
        self._session: Any = session
        self._input_names = [item.name for item in session.get_inputs()]

    def _run(self, arrays: dict[str, Array]) -> dict[str, Array]:
        results = self._session.run(None, dict(zip(self._input_names, arrays.values(), strict=True)))
        return {spec.name: result for spec, result in zip(self.outputs, results, strict=True)}

    def close(self) -> None:
        self._session = None


def _options(threads: int | None, level: str) -> Any:
    """Session options: ``threads`` None means every core that the process may use.

    Threads sleep while they wait. Spinning gains little on an idle machine and doubles the time of a step
    on one where other processes want the cores too.
    """
    import onnxruntime  # type: ignore[import-untyped, unused-ignore]

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads or len(os.sched_getaffinity(0))
    options.inter_op_num_threads = 1
    options.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, level)
    options.log_severity_level = 4
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return options


def _open(path: Path, options: Any) -> Any:
    import onnxruntime  # type: ignore[import-untyped, unused-ignore]

    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
