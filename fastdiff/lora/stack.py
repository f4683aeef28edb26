"""Several LoRAs at once: their updates by module and layer."""

from __future__ import annotations

from collections.abc import Iterable

from fastdiff.lora.file import Lora
from fastdiff.lora.update import LowRank

__all__ = ["Updates", "stack"]

Updates = dict[str, list[LowRank]]
"""The updates of a module's layers, by the path of the layer in the checkpoint's module."""


def stack(loras: Iterable[tuple[Lora, float]]) -> dict[str, Updates]:
    """The updates of several LoRAs, each with a scale, by module."""
    result: dict[str, Updates] = {}
    for lora, scale in loras:
        for module, layers in lora.modules.items():
            for path, update in layers.items():
                result.setdefault(module, {}).setdefault(path, []).append(update.times(scale))
    return result
