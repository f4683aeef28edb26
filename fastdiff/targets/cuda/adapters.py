"""LoRAs of an opened module: updates are added to its weights in place.

Captured graphs read weights where they are, so that what was captured goes on with the updated ones. Copies
of the weights that are updated stay on the device, from which they are put back as they were.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from fastdiff.errors import NumericError
from fastdiff.targets.cuda.executor import Executor
from fastdiff.targets.parameters import Layer

if TYPE_CHECKING:
    from fastdiff.lora.update import LowRank

__all__ = ["PLACE", "Adapters"]

PLACE = (int, int, int)
"""Of a layer's weight: the weight in the graph, its first row there, and the power of two it is scaled by."""


class Adapters:
    """The updates of an executor's weights."""

    def __init__(self, executor: Executor, layers: Mapping[str, Layer]) -> None:
        self.layers = layers
        self._executor = executor
        self._originals: dict[int, Tensor] = {}

    def set(self, updates: Mapping[str, Sequence[LowRank]]) -> None:
        """Have these updates in place of those that there are.

        Raises NumericError for one that takes a weight out of the range of its precision; nothing changes.
        """
        wanted: dict[int, list[tuple[str, int, int]]] = {}
        for path in updates:
            for index, first, exponent in self.layers[path].places:
                wanted.setdefault(index, []).append((path, first, exponent))
        originals = {index: self._original(index) for index in wanted}
        changed = {
            index: self._updated(originals[index], places, updates) for index, places in wanted.items()
        }
        self._check(changed, wanted)
        for index, original in self._originals.items():
            if index not in wanted:
                self._executor.replace_weight(index, original)
        for index, weight in changed.items():
            self._executor.replace_weight(index, weight)
        self._originals = originals

    def _original(self, index: int) -> Tensor:
        """The weight as the engine has it, in memory of its own."""
        known = self._originals.get(index)
        return self._executor.weights[index].clone() if known is None else known

    def _updated(
        self,
        original: Tensor,
        places: Sequence[tuple[str, int, int]],
        updates: Mapping[str, Sequence[LowRank]],
    ) -> Tensor:
        """A weight with its updates, computed in float32."""
        total = original.to(torch.float32, copy=True)
        for path, first, exponent in places:
            rows = total[first : first + self.layers[path].shape[0]]
            for part in updates[path]:
                down = torch.from_numpy(part.down).to(total.device).flatten(1)
                up = torch.from_numpy(part.up).to(total.device) * (part.scale * 2.0**exponent)
                rows += (up @ down).reshape(rows.shape)
        return total.to(original.dtype)

    @staticmethod
    def _check(changed: Mapping[int, Tensor], places: Mapping[int, Sequence[tuple[str, int, int]]]) -> None:
        """Raises NumericError. The device is waited for once, not for each weight."""
        if not changed:
            return
        finite = torch.stack([weight.isfinite().all() for weight in changed.values()]).tolist()
        for index, fits in zip(changed, finite, strict=True):
            if not fits:
                paths, dtype = ", ".join(path for path, _, _ in places[index]), changed[index].dtype
                raise NumericError(
                    f"a LoRA takes the weight of {paths} out of the range of {dtype}: give it a smaller"
                    " scale, or build the engine with --precision bf16"
                )
