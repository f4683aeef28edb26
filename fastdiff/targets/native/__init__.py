"""Target ``native``: modules as files of native nodes with packed weights, run by ``csrc/`` on any CPU.

docs/native.md describes the graph, the stages and the file. Opening a module maps its file; weights are
read when a kernel first wants them.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastdiff.config import Precision
from fastdiff.errors import EngineDamagedError, InputError, TargetError
from fastdiff.manifest import ModuleEntry
from fastdiff.targets import Availability, Compiled, CompileOptions
from fastdiff.targets.session import Array, Session

if TYPE_CHECKING:
    from fastdiff.build.capture import CapturedModule
    from fastdiff.samplers import Callback, NoiseSource, StepTable

__all__ = ["NEEDS_GRAPH", "PRECISIONS", "SELF_CHECKING", "availability", "compile", "open"]

NEEDS_GRAPH = True
PRECISIONS = (Precision.FP32, Precision.FP16)
SELF_CHECKING = (".fdn",)
"""Files whose graph section carries a checksum that is verified at every opening."""


def availability() -> Availability:
    """Whether fastdiff's compiled part is there; it runs on every CPU."""
    try:
        from fastdiff import _C
    except ImportError as error:
        reason = f"fastdiff's compiled part cannot be loaded ({error})"
        return Availability(False, reason, "install fastdiff again: pip install --force-reinstall fastdiff")
    return Availability(True, f"kernels for {_C.isa()}")


def compile(captured: CapturedModule, folder: Path, options: CompileOptions) -> Compiled:
    """Fuse, lower, tune, pack and write ``<module>.fdn``. Raises CaptureError and OutputError."""
    from fastdiff.targets.native.compiler import compile_module

    return compile_module(captured, folder, options)


def open(
    folder: Path, name: str, entry: ModuleEntry, threads: int | None, device: int | None = None
) -> Session:
    """Open a module; ``threads`` None means every core. Raises TargetError or EngineDamagedError."""
    available = availability()
    if not available.ok:
        raise TargetError(f"target 'native' cannot run here: {available.reason}; {available.fix}")
    from fastdiff import _C

    file = next((file for file in entry.files if file.endswith(SELF_CHECKING)), None)
    if file is None:
        raise EngineDamagedError(f"{folder}: module {name} lists no .fdn file; build the engine again")
    module = _C.NativeModule(str(folder / file))
    return _NativeSession(name, entry, _C.NativeSession(module, threads or len(os.sched_getaffinity(0))))


class _NativeSession(Session):
    def __init__(self, name: str, entry: ModuleEntry, session: Any) -> None:
        super().__init__(name, entry.inputs, entry.outputs, entry.shapes)
        self._session: Any = session

    def _run(self, arrays: dict[str, Array]) -> dict[str, Array]:
        results: dict[str, Array] = self._session.run(arrays)
        return results

    def planned_bytes(self, sizes: dict[str, int]) -> int | None:
        """The arena's."""
        return int(self._session.planned_bytes(sizes))

    has_loop = True
    takes_any_noise = False

    def sample(
        self,
        table: StepTable,
        latents: Array,
        inputs: dict[str, Array],
        guidance: float,
        noise: NoiseSource,
        callback: Callback | None,
    ) -> Array:
        """One call into ``csrc/runtime/loop.cpp``; the prompt and the schedule are computed once."""
        from fastdiff.samplers import Generator

        if table.stochastic and not isinstance(noise, Generator):
            raise InputError(
                f"noise is a {type(noise).__name__}: the native loop draws from a Generator alone"
            )
        state = noise.state if table.stochastic and isinstance(noise, Generator) else None
        result: Array = self._session.sample(table, latents, inputs, guidance, state, callback)
        return result

    def close(self) -> None:
        self._session = None
