"""Which layers of a checkpoint's module the layers of a lowered one are: what a LoRA's update goes to."""

from __future__ import annotations

from typing import Any

from fastdiff.build.capture import CapturedModule
from fastdiff.build.lower import Layer, Lowered
from fastdiff.lora.update import MODULES

__all__ = ["adaptable_shapes", "source_layers", "source_shapes"]

_WEIGHT = ".weight"


def source_shapes(captured: CapturedModule) -> dict[str, tuple[int, ...]]:
    """Shapes of the weights that a LoRA may update, by the layer's path in the checkpoint's module.

    Linear layers and convolutions alone; none for a module that no LoRA is for.
    """
    return adaptable_shapes(captured.name, captured.source)


def adaptable_shapes(name: str, source: Any) -> dict[str, tuple[int, ...]]:
    """As ``source_shapes``, of a library's own module."""
    from torch import nn

    if name not in MODULES:
        return {}
    return {
        path: tuple(layer.weight.shape)
        for path, layer in source.named_modules()
        if isinstance(layer, nn.Linear | nn.Conv2d)
    }


def source_layers(
    captured: CapturedModule, lowered: Lowered
) -> dict[str, tuple[tuple[int, ...], list[tuple[Layer, int]]]]:
    """By path the shape of a layer's weight, and the lowered layers that hold it, each with the row where it
    begins there. A layer that was lowered into something else is left out.
    """
    shapes = source_shapes(captured)
    found: dict[str, tuple[tuple[int, ...], list[tuple[Layer, int]]]] = {}
    for layer in lowered.layers:
        first = 0
        for name, rows in layer.parts:
            path = _path(name, shapes)
            if path is not None:
                found.setdefault(path, (shapes[path], []))[1].append((layer, first))
            first += rows
    return found


def _path(name: str, shapes: dict[str, tuple[int, ...]]) -> str | None:
    """The path of the layer whose weight a parameter is; the module's wrapper has put names in front."""
    if not name.endswith(_WEIGHT):
        return None
    path = name.removesuffix(_WEIGHT)
    while path and path not in shapes:
        path = path.partition(".")[2]
    return path or None
