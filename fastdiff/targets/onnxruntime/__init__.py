"""Target ``onnxruntime``: the module as ONNX, run by ONNX Runtime on the CPU, or with CUDA on a GPU.

On the CPU the file that is stored has been through ONNX Runtime's basic optimisations (constant folding,
redundant nodes), which stay within standard operators and fit any machine. A session opens it without further
optimisation: that halves the time to open, and the extended and layout levels did not shorten a step in
measurements. Weights of 256 MB and more lie beside the model; sessions map them.

For CUDA (``--device cuda --precision fp16``) the graph computes in fp16 with the operators that ONNX Runtime
adds for its CUDA provider: ``contrib.py`` writes them, ``optimise.py`` lets ONNX Runtime's transformer
optimiser do the rest, ``cuda.py`` and ``session_cuda.py`` run the result on buffers that stay on the device,
as CUDA graphs. Nothing falls back to the CPU silently.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.metadata
import importlib.util
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastdiff.config import Precision
from fastdiff.errors import CaptureError, EngineDamagedError, FastdiffError, TargetError
from fastdiff.manifest import ModuleEntry
from fastdiff.targets import Availability, Compiled, CompileOptions, parameters
from fastdiff.targets.onnxruntime import cuda
from fastdiff.targets.onnxruntime.adapters import PLACE, SUFFIX, feeds_of, write_adaptable
from fastdiff.targets.onnxruntime.options import cpu_options, open_on_cpu, session_options
from fastdiff.targets.onnxruntime.session_cuda import CudaSession
from fastdiff.targets.session import Array, Session
from fastdiff.targets.shared import open_shared

if TYPE_CHECKING:
    from fastdiff.build.capture import CapturedModule
    from fastdiff.lora.update import LowRank

__all__ = [
    "ANY_SIDES",
    "COMPUTES_IN",
    "DEVICES",
    "NEEDS_GRAPH",
    "PRECISIONS",
    "SELF_CHECKING",
    "availability",
    "compile",
    "mismatch",
    "open",
]

ANY_SIDES = True
NEEDS_GRAPH = True
PRECISIONS = (Precision.FP32,)
DEVICES = {"cpu": PRECISIONS, "cuda": (Precision.FP16,)}
COMPUTES_IN = (Precision.FP16,)
SELF_CHECKING: tuple[str, ...] = ()

_OPTIMISED = "basic, at build"
_INSTALL = "install it with: pip install 'fastdiff[onnxruntime]'"
_INSTALL_GPU = "install it with: pip uninstall onnxruntime && pip install onnxruntime-gpu"


def availability(device: str = "cpu") -> Availability:
    """Whether ONNX Runtime is installed; with ``device`` "cuda", whether it is the package with CUDA.

    Whether the CUDA libraries that it needs are there shows when a module is opened.
    """
    if importlib.util.find_spec("onnxruntime") is None:
        return Availability(False, "the package onnxruntime is not installed", _INSTALL)
    if device == "cuda":
        return _cuda_availability()
    for package in ("onnxruntime", "onnxruntime-gpu"):
        try:
            return Availability(True, f"{package} {importlib.metadata.version(package)}")
        except importlib.metadata.PackageNotFoundError:
            continue
    return Availability(True, "onnxruntime, of unknown version")


def _cuda_availability() -> Availability:
    """Whether the installed ONNX Runtime was built with the CUDA provider."""
    import onnxruntime  # type: ignore[import-untyped, unused-ignore]

    version = f"ONNX Runtime {onnxruntime.__version__}"
    if cuda.PROVIDER not in onnxruntime.get_available_providers():
        return Availability(
            False, f"{version} was built without CUDA, wanted the package onnxruntime-gpu", _INSTALL_GPU
        )
    return Availability(True, f"{version} with CUDA")


def mismatch(entry: ModuleEntry) -> str | None:
    """What an engine's module was built for where that is not here: CUDA without onnxruntime-gpu."""
    if entry.requires.get("device") != "cuda":
        return None
    available = _cuda_availability()
    return None if available.ok else f"CUDA, but {available.reason}; {available.fix}"


def compile(captured: CapturedModule, folder: Path, options: CompileOptions) -> Compiled:
    """Export to ONNX and store it with the basic optimisations applied. Raises CaptureError."""
    if options.device == "cuda":
        return _compile_for_cuda(captured, folder)
    from fastdiff.build.onnx import OPSET, export_onnx
    from fastdiff.targets.onnxruntime.group_norm import translations

    path = folder / f"{captured.name}.onnx"
    exported = export_onnx(captured, path, translations=translations())
    files = tuple(file.name for file in exported)
    try:
        _optimise(path, _is_mapped(files))
    except Exception as error:  # ONNX Runtime raises one class per status code
        reason = " ".join(str(error).split())[:200]
        raise CaptureError(f"ONNX Runtime cannot prepare {captured.name}: {reason}") from error
    more = write_adaptable(captured, folder, path.name)
    return Compiled((*files, *more), {"format": "onnx", "opset": OPSET, "optimisation": _OPTIMISED})


def _optimise(path: Path, mapped: bool) -> None:
    """Apply the basic optimisations to a file in place. Weights beside it stay where they are, and it goes on
    referring to them.
    """
    result = path.with_suffix(".optimised.onnx")
    options = cpu_options(1, "ORT_ENABLE_BASIC", mapped)
    options.optimized_model_filepath = str(result)
    open_on_cpu(path, options)
    result.replace(path)


def _compile_for_cuda(captured: CapturedModule, folder: Path) -> Compiled:
    """Export in fp16 with fused operators, and optimise. Raises CaptureError."""
    from fastdiff.build.onnx import OPSET
    from fastdiff.targets.onnxruntime import adapters_cuda
    from fastdiff.targets.onnxruntime.contrib import export_contrib
    from fastdiff.targets.onnxruntime.optimise import optimise

    name = f"{captured.name}.onnx"
    exported = export_contrib(captured, folder / f"{captured.name}.exported.onnx")
    fused = optimise(exported[0], captured.name, folder / name, external=len(exported) > 1)
    for path in exported:
        path.unlink()
    data = folder / f"{name}.data"
    files = (name, data.name) if data.is_file() else (name,)
    more = adapters_cuda.write_adaptable(captured, folder, name)
    tactics = {"format": "onnx", "opset": OPSET, "optimisation": "transformer optimiser", "fused": fused}
    return Compiled((*files, *more), tactics, requires={"device": "cuda"})


def open(
    folder: Path,
    name: str,
    entry: ModuleEntry,
    threads: int | None,
    device: int | None = None,
    stream: int | None = None,
) -> Session:
    """Open a module on the device that it was built for. Raises TargetError or EngineDamagedError.

    ``device`` is the number of the GPU, ``stream`` the address of a CUDA stream to share with the caller's
    own work; None: GPU 0, and a stream of the session's own. On the CPU both mean nothing.
    """
    on_cuda = entry.requires.get("device") == "cuda"
    available = availability()
    if available.ok and on_cuda:
        available = _cuda_availability()
    if not available.ok:
        raise TargetError(f"target 'onnxruntime' cannot run here: {available.reason}; {available.fix}")
    if on_cuda:
        return _open_on_cuda(folder, name, entry, threads, device or 0, stream)
    return _OnnxRuntimeSession(folder, name, entry, threads)


def _open_on_cuda(
    folder: Path, name: str, entry: ModuleEntry, threads: int | None, device: int, stream: int | None
) -> Session:
    model = _model_file(folder, name, entry)
    provider = cuda.provider_options(device, stream)
    options = session_options(threads, "ORT_ENABLE_BASIC")  # moves transposes out of the way

    def open_graph(file: str) -> cuda.Device:
        with _refusal(folder, file):
            return cuda.OrtDevice(cuda.open_session(folder / file, options, provider), "cuda", device)

    return CudaSession(folder, name, entry, model, open_graph, options.intra_op_num_threads)


def _model_file(folder: Path, name: str, entry: ModuleEntry) -> str:
    models = [file for file in entry.files if file.endswith(".onnx") and not file.endswith(SUFFIX)]
    model = next(iter(models), None)
    if model is None:
        raise EngineDamagedError(f"{folder}: module {name} lists no .onnx file; build the engine again")
    return model


@contextlib.contextmanager
def _refusal(folder: Path, model: str) -> Iterator[None]:
    """Say of which file it is when ONNX Runtime refuses to open one."""
    try:
        yield
    except (MemoryError, FastdiffError):
        raise
    except Exception as error:  # ONNX Runtime raises one class per status code
        reason = " ".join(str(error).split())[:200]
        raise EngineDamagedError(
            f"{folder}: ONNX Runtime refuses {model} ({reason}); build it again"
        ) from error


class _OnnxRuntimeSession(Session):
    """A module on the CPU.

    ONNX Runtime takes weights when it opens a file. The first LoRA therefore opens the module's second graph,
    which has low-rank updates among its inputs, in place of the first.
    """

    def __init__(self, folder: Path, name: str, entry: ModuleEntry, threads: int | None) -> None:
        super().__init__(name, entry.inputs, entry.outputs, entry.shapes)
        self._folder = folder
        self._entry = entry
        self._threads = threads
        self._feeds: dict[str, Array] | None = None  # of the second graph
        self._session: Any = self._opened(_model_file(folder, name, entry))
        self._input_names = [item.name for item in self._session.get_inputs()]

    def _run(self, arrays: dict[str, Array]) -> dict[str, Array]:
        feeds = dict(zip(self._input_names, arrays.values(), strict=True))
        results = self._session.run(None, feeds if self._feeds is None else {**feeds, **self._feeds})
        return {spec.name: result for spec, result in zip(self.outputs, results, strict=True)}

    def adaptable(self) -> Mapping[str, tuple[int, ...]]:
        return {path: layer.shape for path, layer in self._layers.items()}

    def _set_adapters(self, updates: Mapping[str, Sequence[LowRank]]) -> None:
        """Without updates the second graph stays, and adds zeros: to open the first takes as long again."""
        if self._feeds is None:
            if not updates:
                return
            self._session = None  # first, so that the weights are never there twice
            try:
                self._session = self._opened(f"{self.name}{SUFFIX}")
            except BaseException:
                self._session = self._opened(_model_file(self._folder, self.name, self._entry))
                raise
        self._feeds = feeds_of(self._layers, updates)

    def _opened(self, model: str) -> Any:
        """A graph of the module. Sessions of one file and as many threads share it: one may run at once for
        many. Engines of earlier versions may have graphs that are yet to be optimised.
        """
        optimised = self._entry.tactics.get("optimisation") == _OPTIMISED
        level = "ORT_DISABLE_ALL" if optimised else "ORT_ENABLE_BASIC"
        options = cpu_options(self._threads, level, _is_mapped(self._entry.files))
        file = self._folder / model
        kind = ("onnxruntime", options.intra_op_num_threads)
        with _refusal(self._folder, model):
            return open_shared(file, kind, lambda: open_on_cpu(file, options))

    @functools.cached_property
    def _layers(self) -> dict[str, parameters.Layer]:
        return parameters.read(self._folder, self.name, self._entry, PLACE)

    def close(self) -> None:
        self._session = self._feeds = None


def _is_mapped(files: Iterable[str]) -> bool:
    """Whether the weights of a module with these files lie beside its model."""
    return any(file.endswith(".data") for file in files)
