"""A module's function as CUDA graphs, one per combination of sizes: text encoder, VAE, single steps."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fastdiff.targets.cuda.graphs import Buffer, Captured, GraphCache, Key, capture

__all__ = ["GraphedCall"]

Array = NDArray[Any]
_NUMPY = {torch.float32: np.float32, torch.int64: np.int64}


@dataclass(eq=False)
class _Call(Captured):
    """The graph ``run`` with its inputs and outputs."""


class GraphedCall:
    """Calls ``function`` with arrays: into static buffers, a replay, and out.

    ``function`` maps tensors on the device by name to tensors by name and can be captured, see
    `fastdiff.targets.cuda.backend.Backend.capture`. Floating outputs come back as float32.
    """

    def __init__(
        self, cache: GraphCache, function: Callable[[Mapping[str, Tensor]], Mapping[str, Tensor]]
    ) -> None:
        self._cache = cache
        self._function = function
        self._owner = object()

    def __call__(self, arrays: Mapping[str, Array]) -> dict[str, Array]:
        """One array per output. The first call with new sizes captures. Arrays have one axis or more."""
        sizes = tuple((name, array.shape, array.dtype.str) for name, array in sorted(arrays.items()))
        key: Key = (self._owner, sizes)
        backend = self._cache.backend
        with self._cache.running(key, lambda: self._capture(key, arrays)) as call:
            try:
                for name, array in arrays.items():
                    call.inputs[name].upload(array)
                call.graphs["run"].replay()
                for output in call.outputs.values():
                    output.fetch()
            finally:
                # Also after an exception: the next call writes to memory that copies may still read.
                backend.record().synchronize()
            return {name: output.array.copy() for name, output in call.outputs.items()}

    def run_tensors(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The same on tensors of the device, without waiting: copies in, a replay.

        The results are the static outputs themselves, floating ones in float32: the next call overwrites
        them.
        """
        shapes = {name: np.empty(tuple(x.shape), _NUMPY[x.dtype]) for name, x in tensors.items()}
        sizes = tuple((name, array.shape, array.dtype.str) for name, array in sorted(shapes.items()))
        key: Key = (self._owner, sizes)
        with self._cache.running(key, lambda: self._capture(key, shapes)) as call:
            for name, tensor in tensors.items():
                call.inputs[name].tensor.copy_(tensor)
            call.graphs["run"].replay()
            return {name: output.tensor for name, output in call.outputs.items()}

    def close(self) -> None:
        """Free what was captured."""
        self._cache.close(self._owner)

    def _capture(self, key: Key, arrays: Mapping[str, Array]) -> _Call:
        backend = self._cache.backend
        inputs = {name: Buffer.like(backend, array) for name, array in arrays.items()}
        tensors = {name: buffer.tensor for name, buffer in inputs.items()}
        outputs = {
            name: Buffer(
                backend, tuple(value.shape), torch.float32 if value.is_floating_point() else value.dtype
            )
            for name, value in backend.warm_up(lambda: self._function(tensors)).items()
        }

        def run() -> None:
            for name, value in self._function(tensors).items():
                outputs[name].tensor.copy_(value)

        return _Call(key, {"run": capture(backend, run)}, inputs, outputs)
