"""Target ``native``: modules as files of native nodes with packed weights, run by ``csrc/`` on any CPU.

docs/native.md describes the graph, the stages and the file. Opening a module maps its file; weights are
read when a kernel first wants them.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastdiff.config import Precision
from fastdiff.errors import EngineDamagedError, InputError, TargetError
from fastdiff.manifest import ModuleEntry
from fastdiff.targets import Availability, Compiled, CompileOptions, parameters
from fastdiff.targets.session import Array, Session
from fastdiff.targets.shared import open_shared

if TYPE_CHECKING:
    from fastdiff.build.capture import CapturedModule
    from fastdiff.lora.update import LowRank
    from fastdiff.samplers import Callback, NoiseSource, StepTable

__all__ = ["ANY_SIDES", "NEEDS_GRAPH", "PRECISIONS", "SELF_CHECKING", "availability", "compile", "open"]

ANY_SIDES = True
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
    path = folder / file
    module = open_shared(path, "native", lambda: _C.NativeModule(str(path)))
    threads = threads or len(os.sched_getaffinity(0))
    return _NativeSession(folder, name, entry, module, _C.NativeSession(module, threads))


class _NativeSession(Session):
    def __init__(self, folder: Path, name: str, entry: ModuleEntry, module: Any, session: Any) -> None:
        super().__init__(name, entry.inputs, entry.outputs, entry.shapes)
        self._module = module  # the next session of the file finds it as long as somebody refers to it
        self._session: Any = session
        self._folder = folder
        self._entry = entry

    def _run(self, arrays: dict[str, Array]) -> dict[str, Array]:
        results: dict[str, Array] = self._session.run(arrays)
        return results

    def planned_bytes(self, sizes: dict[str, int]) -> int | None:
        """The arena's."""
        return int(self._session.planned_bytes(sizes))

    def held_bytes(self) -> int:
        return int(self._session.arena_bytes)

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

    def adaptable(self) -> Mapping[str, tuple[int, ...]]:
        return {path: layer.shape for path, layer in self._layers.items()}

    def _set_adapters(self, updates: Mapping[str, Sequence[LowRank]]) -> None:
        """Updates are computed beside the layers, whose weights stay: csrc/runtime/adapters.h."""
        layers = self._layers if updates else {}
        values: dict[int, list[tuple[int, Array, Array, float]]] = {}
        for path, parts in updates.items():
            for value, first in layers[path].places:
                values.setdefault(value, []).extend((first, p.down, p.up, p.scale) for p in parts)
        self._session.set_adapters(values)

    @functools.cached_property
    def _layers(self) -> dict[str, parameters.Layer]:
        return parameters.read(self._folder, self.name, self._entry, (int, int))

    def close(self) -> None:
        self._session = self._module = None
