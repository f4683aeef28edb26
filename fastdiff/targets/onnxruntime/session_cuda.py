"""A module on CUDA: buffers that stay on the device, and the second graph for LoRAs.

ONNX Runtime takes weights when it opens a file. The first LoRA therefore opens the module's second graph,
which has low-rank updates among its inputs, in place of the first. From one LoRA to another only matrices are
copied. Without one the next call opens the first graph again, so that it computes what it computed at first,
bit for bit. The device never holds both: one is closed before the other opens.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from fastdiff.errors import EngineDamagedError
from fastdiff.manifest import ModuleEntry
from fastdiff.targets import parameters
from fastdiff.targets.onnxruntime import cuda
from fastdiff.targets.onnxruntime.adapters import SUFFIX
from fastdiff.targets.onnxruntime.adapters_cuda import PLACE, matrices_of
from fastdiff.targets.session import Array, Session

if TYPE_CHECKING:
    from fastdiff.lora.update import LowRank

__all__ = ["CudaSession"]

_CHANGING = ("sample", "timestep", "latent_sample", "input_ids")
"""Inputs that are others in every call."""


class CudaSession(Session):
    """A module on buffers that stay on the device.

    Inputs other than the sample and its time, such as a prompt's embeddings, are copied there only when they
    change, the matrices of LoRAs when they are set. Arrays in, arrays out: of a step, the latents alone move.

    ``model`` is the file in ``folder`` that computes the module, ``open_graph`` opens one there by its name,
    ``threads`` is how many round the matrices.
    """

    def __init__(
        self,
        folder: Path,
        name: str,
        entry: ModuleEntry,
        model: str,
        open_graph: Callable[[str], cuda.Device],
        threads: int = 1,
    ) -> None:
        super().__init__(name, entry.inputs, entry.outputs, entry.shapes)
        self._folder, self._entry, self._threads = folder, entry, threads
        self._plain, self._adapted = model, f"{name}{SUFFIX}"
        self._open_graph = open_graph
        self._updated = False
        self._opened: tuple[str, list[str], cuda.Bindings] | None = None
        self._bindings_of(model)

    def _run(self, arrays: dict[str, Array]) -> dict[str, Array]:
        """Without updates by the first graph, which opens here: other updates may come before any call."""
        bindings = self._bindings_of(self._adapted if self._updated else self._plain)
        results = bindings.run(list(arrays.values()))
        return {spec.name: result for spec, result in zip(self.outputs, results, strict=True)}

    def adaptable(self) -> Mapping[str, tuple[int, ...]]:
        """The layers that have a branch in the second graph."""
        return {path: layer.shape for path, layer in self._layers.items()}

    def _set_adapters(self, updates: Mapping[str, Sequence[LowRank]]) -> None:
        if not updates:
            self._updated = False
            return
        matrices = matrices_of(self._layers, updates, self._threads)
        before = None if self._opened is None else self._opened[0]
        try:
            bindings = self._bindings_of(self._adapted)
            bindings.set_parameters([matrices[name] for name in self._parameters(set(matrices))])
        except BaseException:
            if before != self._adapted:
                self._bindings_of(self._plain)
            raise
        self._updated = True

    def _parameters(self, wanted: set[str]) -> list[str]:
        """The open graph's inputs behind the module's own, in its order. Raises EngineDamagedError."""
        assert self._opened is not None
        found = self._opened[1][len(self.inputs) :]
        if set(found) != wanted:
            other = ", ".join(sorted(set(found) ^ wanted)[:3])
            raise EngineDamagedError(
                f"{self._folder}: {self._adapted} and {self.name}.parameters.json are not of one build"
                f" ({other}, … in one of them); build it again"
            )
        return found

    def _bindings_of(self, file: str) -> cuda.Bindings:
        """A graph's bindings. The other graph, if that is open, is closed first."""
        if self._opened is None or self._opened[0] != file:
            self.close()
            device = self._open_graph(file)
            bindings = cuda.Bindings(
                device,
                self.outputs,
                cuda.output_shapes(self.inputs, self.outputs),
                kept=frozenset(i for i, spec in enumerate(self.inputs) if spec.name not in _CHANGING),
            )
            self._opened = file, device.names, bindings
        return self._opened[2]

    @functools.cached_property
    def _layers(self) -> dict[str, parameters.Layer]:
        return parameters.read(self._folder, self.name, self._entry, PLACE)

    def close(self) -> None:
        """Free the buffers and the weights; a call opens them again."""
        if self._opened is not None:
            self._opened[2].close()
        self._opened = None
