"""LoRAs of an opened module: low-rank updates as inputs of the graph in ``<module>.lora.onnx``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from fastdiff.targets import parameters
from fastdiff.targets.parameters import Layer

if TYPE_CHECKING:
    from fastdiff.build.capture import CapturedModule
    from fastdiff.lora.update import LowRank

__all__ = ["PLACE", "SUFFIX", "feeds_of", "write_adaptable"]

SUFFIX = ".lora.onnx"
PLACE = (str,)
"""Of a layer: what the names of its two inputs begin with."""


def write_adaptable(captured: CapturedModule, folder: Path, model: str) -> tuple[str, ...]:
    """Write what LoRAs need beside the file ``model`` of a module; names of the files. Raises OutputError."""
    from fastdiff.build.onnx_weights import find_weights
    from fastdiff.targets.onnxruntime.branches import write_branches

    located = find_weights(captured, folder, model)
    if not located:
        return ()
    name = f"{captured.name}{SUFFIX}"
    layers = write_branches(folder, model, name, located)
    return (name, *parameters.write(folder, captured.name, layers)) if layers else ()


def feeds_of(
    layers: Mapping[str, Layer], updates: Mapping[str, Sequence[LowRank]]
) -> dict[str, NDArray[np.float32]]:
    """The inputs for some updates: of each layer ``down`` and ``up``.

    A layer without any has rank 0, a convolution rank 1 and zeros: over no channels, ONNX Runtime's gives
    back what was in its memory.
    """
    feeds: dict[str, NDArray[np.float32]] = {}
    for path, layer in layers.items():
        ((place,),) = layer.places
        out, inner = layer.shape[0], layer.shape[1:]
        none = 1 if len(inner) > 1 else 0
        down, up = np.zeros((none, *inner), np.float32), np.zeros((out, none), np.float32)
        if parts := updates.get(path):
            down = np.concatenate([part.down for part in parts])
            up = np.concatenate([part.up * np.float32(part.scale) for part in parts], axis=1)
        if len(inner) > 1:
            up = up.reshape(*up.shape, *(1 for _ in inner[1:]))
        else:
            down, up = np.ascontiguousarray(down.T), np.ascontiguousarray(up.T)
        feeds[f"{place}/down"], feeds[f"{place}/up"] = down, up
    return feeds
